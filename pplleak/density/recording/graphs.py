"""Graphs of recorded tensor operations, simplified: the same function with fewer of them.

A graph is what `make_fx` records: one operation of torch a node, the constants (weights, observation) beside it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten
SAME = {aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default, aten.clone.default}
FILLED = {aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.new_zeros.default}
RESHAPES = {aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default, aten.squeeze.dim,
            aten.squeeze.dims, aten.reshape.default}  # fmt: skip
SHAPED = RESHAPES | {aten.permute.default, aten.transpose.int, aten.expand.default, aten.slice.Tensor,
                     aten.select.int}  # fmt: skip
CAST = aten._to_copy.default
SLOPES = {aten.gelu_backward.default, aten.silu_backward.default, aten.softplus_backward.default}


def recorded(function: Callable[..., Any], example: Sequence[Tensor]) -> fx.GraphModule:
    """What a function of tensors does to them, simplified.

    `make_fx` notes every value's shape in a tensor without storage, under a mode that it makes anew for each, with a
    stack trace, where none is there already: half of the time of a recording.

    Raises:
        RuntimeError, TypeError: it looks at values, or has an operation that is not recorded.
        ValueError: it draws random numbers or changes a tensor in place.
    """
    with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
        return simplify(make_fx(function)(*(t.clone() for t in example)), example)


def simplify(module: fx.GraphModule, example: Sequence[Tensor]) -> fx.GraphModule:
    """The same function with fewer operations: constants computed once, copies and reshapes that do nothing dropped,
    equal operations done once.

    Raises:
        ValueError: the graph draws random numbers or changes a tensor in place.
    """
    like = Shapes(module).record(example)
    graph, env, constants = fx.Graph(), {}, _Constants(module, example)
    seen: dict[Any, fx.Node] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            env[node] = graph.node_copy(node)
        elif node.op == "get_attr":
            constants.values[node] = attribute(module, node.target)
        elif node.op == "output":
            constants.emit(node.all_input_nodes, graph, env)
            graph.node_copy(node, env.__getitem__)
        else:
            _make_pure(node)
            if node.target in FILLED or all(n in constants.values for n in node.all_input_nodes):
                constants.compute(node, like)
                continue
            constants.emit(node.all_input_nodes, graph, env)
            same = _source(node, like, constants)
            if same is not None:
                env[node] = env[same]
                continue
            made = _merged(node, like, env, graph) or graph.node_copy(node, env.__getitem__)
            env[node] = seen.setdefault(_key(made), made)
            if env[node] is not made:
                graph.erase_node(made)
    _share_slopes(graph, constants, {made: like[node] for node, made in env.items() if node in like})
    graph.eliminate_dead_code()
    return fx.GraphModule(constants.holder, graph)


class Shapes(fx.Interpreter):
    """Shape, strides and type of every node's value, as tensors without storage."""

    def record(self, example: Sequence[Tensor]) -> dict[fx.Node, Tensor]:
        self.like: dict[fx.Node, Tensor] = {}
        with torch.no_grad():
            self.run(*example)
        return self.like

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.like[n] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        return value


class _Constants:
    """Values of nodes that do not depend on the input; those that the rest asks for end up in the new module."""

    def __init__(self, module: fx.GraphModule, example: Sequence[Tensor]) -> None:
        self.module, self.holder = module, torch.nn.Module()
        self.values: dict[fx.Node, Any] = {}
        self.device = example[0].device

    def compute(self, node: fx.Node, like: dict[fx.Node, Tensor]) -> None:
        env = dict(self.values)
        for n in node.all_input_nodes:  # zeros_like of something that is not constant needs its shape only
            if n not in env:
                env[n] = torch.zeros(like[n].shape, dtype=like[n].dtype, device=self.device)
        with torch.no_grad():
            self.values[node] = call(node, env)

    def emit(self, nodes: Sequence[fx.Node], graph: fx.Graph, env: dict[fx.Node, fx.Node]) -> None:
        for node in nodes:
            if node in self.values and node not in env:
                env[node] = self.add(self.values[node], graph)

    def add(self, value: Tensor, graph: fx.Graph) -> fx.Node:
        name = f"constant_{len(self.holder._buffers)}"
        self.holder.register_buffer(name, value)
        return graph.get_attr(name)


def attribute(module: fx.GraphModule, path: str) -> Tensor:
    tensor = operator.attrgetter(path)(module)
    return tensor.detach()


def call(node: fx.Node, env: dict[fx.Node, Any]) -> Any:
    return node.target(*fx.map_arg(node.args, env.__getitem__), **fx.map_arg(node.kwargs, env.__getitem__))  # type: ignore[operator]


def _make_pure(node: fx.Node) -> None:
    """An operation in place on a value that nobody else sees becomes one that returns its result."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return
    if torch.Tag.nondeterministic_seeded in target.tags:
        raise ValueError(f"{target} draws random numbers")
    if not target._schema.is_mutable:
        return
    changed, packet = node.args[0], getattr(aten, target._opname.removesuffix("_"), None)
    private = isinstance(changed, fx.Node) and changed.target not in SHAPED | SAME and set(changed.users) == {node}
    if not private or packet is None or target._overloadname not in packet.overloads():
        raise ValueError(f"{target} changes a tensor that others see")
    node.target = getattr(packet, target._overloadname)


def _source(node: fx.Node, like: dict[fx.Node, Tensor], constants: _Constants) -> fx.Node | None:
    """The node that this one only repeats."""
    if node not in like or not node.args or not isinstance(node.args[0], fx.Node) or node.args[0] not in like:
        return None
    first, here = node.args[0], like[node]
    if (like[first].shape, like[first].dtype) != (here.shape, here.dtype):
        return None
    if node.target in SAME | SHAPED | {CAST}:
        return first if like[first].stride() == here.stride() else None
    other = node.args[1] if len(node.args) > 1 else None
    value = constants.values.get(other) if isinstance(other, fx.Node) else other
    neutral = {aten.add.Tensor: 0, aten.sub.Tensor: 0, aten.mul.Tensor: 1, aten.div.Tensor: 1, aten.mul.Scalar: 1,
               aten.pow.Tensor_Scalar: 1}  # fmt: skip
    if node.target not in neutral or value is None or node.kwargs:
        return None
    return first if bool(torch.all(torch.as_tensor(value) == neutral[node.target])) else None


def _merged(node: fx.Node, like: dict[fx.Node, Tensor], env: dict[fx.Node, fx.Node], graph: fx.Graph) -> fx.Node | None:
    """A reshape of a reshape as one, where the values lie in order."""
    source = node.args[0] if node.args else None
    if node.target not in RESHAPES | {aten.permute.default} or not isinstance(source, fx.Node):
        return None
    if node.target is aten.permute.default and not _moves_ones_only(node, like[source]):
        return None
    if not (like[source].is_contiguous() and like[node].is_contiguous()):
        return None
    first = env[source]
    first = first.meta.get("in_order", first)
    made = graph.call_function(aten.view.default, (first, list(like[node].shape)))
    made.meta["in_order"] = first
    return made


def _share_slopes(graph: fx.Graph, constants: _Constants, like: dict[fx.Node, Tensor]) -> None:
    """An activation's slope at one point, asked for several times, is computed once: gradient · slope."""
    groups: dict[Any, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.target in SLOPES:
            groups.setdefault((node.target, repr(node.args[1:]), repr(node.kwargs)), []).append(node)
    for first, *others in groups.values():
        if not others:
            continue
        with graph.inserting_before(first):
            ones = constants.add(torch.ones_like(like[first], device=constants.device), graph)
            slope = graph.call_function(first.target, (ones, *first.args[1:]), first.kwargs)  # type: ignore[arg-type]
        for node in (first, *others):
            with graph.inserting_before(node):
                product = graph.call_function(aten.mul.Tensor, (node.args[0], slope))
            node.replace_all_uses_with(product)
            graph.erase_node(node)


def _moves_ones_only(node: fx.Node, source: Tensor) -> bool:
    dims: Any = node.args[1]
    order = [d for d in dims if source.shape[d] != 1]
    return order == sorted(order)


def _key(node: fx.Node) -> Any:
    return node.target, repr(node.args), repr(sorted(node.kwargs.items()))
