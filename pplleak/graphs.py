"""Graphs of recorded tensor operations: simplify them, find what is affine or quadratic in their input, cut them there.

A graph is what `make_fx` records: one operation of torch a node, the constants (weights, observation) beside it. Here
the first dimension of the input counts chains, which do not see each other.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
SAME = {aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default, aten.clone.default}
FILLED = {aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.new_zeros.default}
RESHAPES = {aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default, aten.squeeze.dim,
            aten.squeeze.dims, aten.reshape.default}  # fmt: skip
SHAPED = RESHAPES | {aten.permute.default, aten.transpose.int, aten.expand.default, aten.slice.Tensor,
                     aten.select.int}  # fmt: skip
CAST = aten._to_copy.default
SLOPES = {aten.gelu_backward.default, aten.silu_backward.default, aten.softplus_backward.default}


def simplify(module: fx.GraphModule, example: Sequence[Tensor]) -> fx.GraphModule:
    """The same function with fewer operations: constants computed once, copies and reshapes that do nothing dropped,
    equal operations done once.

    Raises:
        ValueError: the graph draws random numbers or changes a tensor in place.
    """
    like = _Shapes(module).record(example)
    graph, env, constants = fx.Graph(), {}, _Constants(module, example)
    seen: dict[Any, fx.Node] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            env[node] = graph.node_copy(node)
        elif node.op == "get_attr":
            constants.values[node] = _attribute(module, node.target)
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


def root(module: fx.GraphModule) -> fx.Node:
    """The graph's only input."""
    (found,) = [n for n in module.graph.nodes if n.op == "placeholder"]
    return found


def frontier(module: fx.GraphModule, example: Tensor) -> tuple[list[fx.Node], list[fx.Node]]:
    """Where the graph stops being affine in its input: affine nodes, and one-number-a-chain quadratic ones, through
    which everything else sees the input. ([the input], []) where multiplying the maps out would cost more."""
    like = _Shapes(module).record([example])
    degree = {n: _degree(n, like, {}, module) for n in module.graph.nodes if n.op in ("placeholder", "get_attr")}
    for node in module.graph.nodes:
        if node not in degree:
            degree[node] = _degree(node, like, degree, module)
    chains, dim = example.shape
    for node in reversed(list(module.graph.nodes)):  # a square is only worth keeping once it is summed
        wide = degree[node] == 2 and like[node].numel() > chains
        if wide and any(degree[user] != 2 for user in node.users):
            degree[node] = None
            _spread(node, degree)
    ends = [n for n, d in degree.items() if d in (1, 2) and any(degree[u] is None for u in n.users)]
    quadratic = [n for n in ends if degree[n] == 2]
    linear = list(dict.fromkeys(n.args[0] if n.target is CAST else n for n in ends if degree[n] == 1))
    products = [n for n, d in degree.items() if d == 1 and n.target in (aten.mm.default, aten.addmm.default)]
    plain = sum(like[n.args[-2]].shape[1] * like[n].shape[1] for n in products)
    folded = dim * sum(like[n].numel() // chains for n in linear)
    return (linear, quadratic) if linear and folded <= plain else ([root(module)], [])


def cut(module: fx.GraphModule, leaves: Sequence[fx.Node]) -> fx.GraphModule:
    """The rest of the graph as a function of the values at `leaves`, in their order."""
    graph = fx.Graph()
    env = {leaf: graph.placeholder(f"leaf_{k}") for k, leaf in enumerate(leaves)}
    (output,) = [n for n in module.graph.nodes if n.op == "output"]
    needed = _needed([output], set(leaves))
    for node in module.graph.nodes:
        if node in needed and node not in env:
            env[node] = graph.node_copy(node, env.__getitem__)
    return fx.GraphModule(module, graph)


class Evaluated:
    """The affine part of a graph in float64: its maps as matrices."""

    def __init__(self, module: fx.GraphModule, example: Tensor) -> None:
        self.module, self.example = module, example.double()
        self.like = _Shapes(module).record([example])

    def linear(self, nodes: Sequence[fx.Node]) -> tuple[Tensor, Tensor]:
        """A (dim, m) and a (m,) with values z A + a, m counting the entries of all nodes, one after the other."""
        offset = self._flat(nodes, torch.zeros_like(self.example))[0]
        rows = [self._flat(nodes, block)[:used] - offset for block, used in self._unit_vectors()]
        return torch.cat(rows), offset

    def quadratic(self, node: fx.Node) -> tuple[Tensor, Tensor, Tensor]:
        """H (dim, dim), k (dim,) and c with the value ½ zᵀHz + kᵀz + c."""
        constant, slope = self._slope(node, torch.zeros_like(self.example))
        rows = [self._slope(node, block)[1][:used] - slope[0] for block, used in self._unit_vectors()]
        return torch.cat(rows), slope[0], constant[0]

    def _unit_vectors(self) -> Iterator[tuple[Tensor, int]]:
        chains, dim = self.example.shape
        for block in torch.eye(dim, dtype=torch.float64, device=self.example.device).split(chains):
            yield torch.cat([block, block.new_zeros(chains - len(block), dim)]), len(block)

    def _flat(self, nodes: Sequence[fx.Node], z: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([v.reshape(len(z), -1) for v in self._values(nodes, z)], 1)

    def _slope(self, node: fx.Node, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            (value,) = self._values([node], z.requires_grad_())
            (slope,) = torch.autograd.grad(value.sum(), z)
        return value.detach().flatten(), slope

    def _values(self, nodes: Sequence[fx.Node], z: Tensor) -> list[Tensor]:
        needed, env = _needed(nodes, set()), {}
        for node in self.module.graph.nodes:
            if node not in needed:
                continue
            if node.op == "placeholder":
                env[node] = z
            elif node.op == "get_attr":
                value = _attribute(self.module, node.target)
                env[node] = value.double() if value.is_floating_point() else value
            elif node.target is CAST:
                env[node] = env[node.args[0]]
            else:
                env[node] = _call(node, env)
        return [env[n] for n in nodes]


class _Shapes(fx.Interpreter):
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
            self.values[node] = _call(node, env)

    def emit(self, nodes: Sequence[fx.Node], graph: fx.Graph, env: dict[fx.Node, fx.Node]) -> None:
        for node in nodes:
            if node in self.values and node not in env:
                env[node] = self.add(self.values[node], graph)

    def add(self, value: Tensor, graph: fx.Graph) -> fx.Node:
        name = f"constant_{len(self.holder._buffers)}"
        self.holder.register_buffer(name, value)
        return graph.get_attr(name)


def _attribute(module: fx.GraphModule, path: str) -> Tensor:
    found = operator.attrgetter(path)(module)
    return found.detach()


def _call(node: fx.Node, env: dict[fx.Node, Any]) -> Any:
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


def _needed(nodes: Sequence[fx.Node], stop: set[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    queue = list(nodes)
    while queue:
        node = queue.pop()
        if node not in found:
            found.add(node)
            queue += [] if node in stop else node.all_input_nodes
    return found


def _spread(node: fx.Node, degree: dict[fx.Node, int | None]) -> None:
    """What is computed from a node that is not affine or quadratic is neither."""
    for user in node.users:
        if degree[user] is not None:
            degree[user] = None
            _spread(user, degree)


def _degree(
    node: fx.Node, like: dict[fx.Node, Tensor], degree: dict[fx.Node, int | None], module: fx.GraphModule
) -> int | None:
    """0, 1 or 2: constant, affine or quadratic in the input, row by row; None: anything else."""
    if node.op in ("placeholder", "get_attr"):
        return 1 if node.op == "placeholder" else 0
    inputs = node.all_input_nodes
    if node.op != "call_function" or node not in like or any(degree[n] is None for n in inputs):
        return None
    shape = like[node].shape
    moving = [n for n in inputs if degree[n]]
    chains = like[moving[0]].shape[0] if moving and like[moving[0]].dim() else 0
    if not moving or any(like[n].shape[:1] != (chains,) for n in [node, *moving]) or not like[node].is_floating_point():
        return None
    highest = max(degree[n] or 0 for n in moving)
    if node.target in (CAST, aten.neg.default, aten.mul.Scalar, aten.div.Scalar):
        return highest
    if node.target in SHAPED:
        return highest if _keeps_rows(node, like) else None
    if node.target is aten.sum.dim_IntList:
        dims = [d % like[inputs[0]].dim() for d in node.args[1]]  # type: ignore[union-attr, operator]
        return highest if dims and 0 not in dims else None
    if node.target is aten.mm.default:
        return highest if moving == [node.args[0]] else None
    if node.target is aten.addmm.default:
        return highest if moving == [node.args[1]] and like[node.args[0]].dim() == 1 else None  # type: ignore[index]
    if node.target is aten.pow.Tensor_Scalar:
        return 2 if node.args[1] == 2 and highest == 1 else None
    if node.target not in (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor):
        return None
    if any(like[n].dim() != len(shape) for n in moving):
        return None  # broadcasting would move the chains to another dimension
    if any(not _same_rows(_attribute(module, n.target), len(shape)) for n in inputs if n.op == "get_attr"):  # type: ignore[arg-type]
        return None
    if node.target is aten.div.Tensor:
        return highest if moving == [node.args[0]] else None
    if node.target is aten.mul.Tensor and isinstance(node.args[1], fx.Node):
        total = sum(degree[n] or 0 for n in node.args[:2])  # type: ignore[index, misc]
        return total if total <= 2 else None
    return highest


def _keeps_rows(node: fx.Node, like: dict[fx.Node, Tensor]) -> bool:
    """A change of shape that leaves the chains where they are."""
    arguments: Any = node.args
    source = like[arguments[0]]
    if node.target is aten.permute.default:
        return bool(arguments[1][0] == 0)
    if node.target is aten.transpose.int:
        return 0 not in [d % source.dim() for d in arguments[1:3]]
    if node.target in (aten.slice.Tensor, aten.select.int):
        return bool(arguments[1] % source.dim() != 0)
    if node.target is aten.expand.default:
        return like[node].dim() == source.dim()
    return True  # a reshape in order, whose first dimension still counts the chains


def _same_rows(value: Tensor, dims: int) -> bool:
    """A constant that is the same for every chain."""
    return value.dim() < dims or bool((value == value[:1]).all())
