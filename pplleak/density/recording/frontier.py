"""Where a recorded graph stops being affine or quadratic in its input, and the graph cut there.

The first dimension of the input counts chains, which do not see each other.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pplleak.density.recording.graphs import CAST, SHAPED, Shapes, aten, attribute, call

BLOCK = 64  # times as many unit vectors at once as there are chains


def root(module: fx.GraphModule) -> fx.Node:
    """The graph's only input."""
    (placeholder,) = [n for n in module.graph.nodes if n.op == "placeholder"]
    return placeholder


def frontier(module: fx.GraphModule, example: Tensor) -> tuple[list[fx.Node], list[fx.Node]]:
    """Where the graph stops being affine in its input: affine nodes, and one-number-a-chain quadratic ones, through
    which everything else sees the input. ([the input], []) where multiplying the maps out would cost more."""
    like = Shapes(module).record([example])
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
        self.like = Shapes(module).record([example])

    def linear(self, nodes: Sequence[fx.Node]) -> tuple[Tensor, Tensor]:
        """A (dim, m) and a (m,) with values z A + a, m counting the entries of all nodes, one after the other."""
        offset = self._flat(nodes, torch.zeros_like(self.example))[0]
        rows = [self._flat(nodes, block) - offset for block in self._unit_vectors()]
        return torch.cat(rows)[: len(self.example[0])], offset

    def quadratic(self, node: fx.Node) -> tuple[Tensor, Tensor, Tensor]:
        """H (dim, dim), k (dim,) and c with the value ½ zᵀHz + kᵀz + c."""
        constant, slope = self._slope(node, torch.zeros_like(self.example))
        rows = [self._slope(node, block)[1] - slope[0] for block in self._unit_vectors()]
        return torch.cat(rows)[: len(self.example[0])], slope[0], constant[0]

    def _unit_vectors(self) -> Iterator[Tensor]:
        """Of z, with zeros behind the last, (BLOCK · chains, dim) at a time."""
        chains, dim = self.example.shape
        size = chains * max(1, min(BLOCK, -(-dim // chains)))
        for block in torch.eye(dim, dtype=torch.float64, device=self.example.device).split(size):
            yield torch.cat([block, block.new_zeros(-len(block) % chains, dim)])

    def _flat(self, nodes: Sequence[fx.Node], z: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([v.reshape(len(z), -1) for v in self._values(nodes, z)], 1)

    def _slope(self, node: fx.Node, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            (value,) = self._values([node], z.requires_grad_())
            (slope,) = torch.autograd.grad(value.sum(), z)
        return value.detach().flatten(), slope

    def _values(self, nodes: Sequence[fx.Node], z: Tensor) -> list[Tensor]:
        """At any multiple of the chains that the graph was recorded for, (n · chains, dim)."""
        groups = z.unflatten(0, (-1, len(self.example)))
        if len(groups) == 1:
            return self._values_of_one(nodes, z)
        return [v.flatten(0, 1) for v in torch.vmap(functools.partial(self._values_of_one, nodes))(groups)]

    def _values_of_one(self, nodes: Sequence[fx.Node], z: Tensor) -> list[Tensor]:
        needed, env = _needed(nodes, set()), {}
        for node in self.module.graph.nodes:
            if node not in needed:
                continue
            if node.op == "placeholder":
                env[node] = z
            elif node.op == "get_attr":
                value = attribute(self.module, node.target)
                env[node] = value.double() if value.is_floating_point() else value
            elif node.target is CAST:
                env[node] = env[node.args[0]]
            else:
                env[node] = call(node, env)
        return [env[n] for n in nodes]


def _needed(nodes: Sequence[fx.Node], stop: set[fx.Node]) -> set[fx.Node]:
    reached: set[fx.Node] = set()
    queue = list(nodes)
    while queue:
        node = queue.pop()
        if node not in reached:
            reached.add(node)
            queue += [] if node in stop else node.all_input_nodes
    return reached


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
    if any(not _same_rows(attribute(module, n.target), len(shape)) for n in inputs if n.op == "get_attr"):  # type: ignore[arg-type]
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
