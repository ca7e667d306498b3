"""What a training step shows to who only looks: the network's inputs, the loss with its labels, the optimiser.

Inputs are seen by a hook before the network's forward pass, losses by a mode through which torch's functions are called
(`torch.overrides.TorchFunctionMode`), steps by the hooks that every `torch.optim` optimiser has. Nothing is changed,
and all of it is gone when the block is left.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode

from pplleak.client import weights
from pplleak.client.checks import unwrapped
from pplleak.errors import BadInput
from pplleak.federation.capture import dpsgd

LOSSES: dict[Any, str] = {
    F.cross_entropy: "cross_entropy", F.nll_loss: "cross_entropy",  # of log-softmax, which softmax leaves as it is
    F.mse_loss: "mse", F.binary_cross_entropy_with_logits: "bce",
}  # fmt: skip
ARGUMENTS = ("input", "target", "weight")  # by place; those that follow are given by name


@dataclass
class Step:
    """One step of the optimiser: the inputs of its forward passes, what its losses were, its settings; what Opacus
    adds.

    before, gradient: the weights that it began with and the gradient that it followed, of the first step and of those
    of DP-SGD.
    """

    inputs: list[Tensor] = field(default_factory=list)
    losses: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)  # name with settings, output, labels
    settings: list[dict[str, Any]] = field(default_factory=list)  # of each parameter group
    added: dpsgd.Added | None = None
    before: dict[str, Tensor] = field(default_factory=dict)
    gradient: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Seen:
    """All that was seen of a training. `outer` is what the user calls, `network` what is inside its wrappers."""

    outer: nn.Module | None = None
    network: nn.Module | None = None
    before: dict[str, Tensor] = field(default_factory=dict)
    mode: str = ""
    open: Step = field(default_factory=Step)  # since the last step
    steps: list[Step] = field(default_factory=list)
    optimizer: torch.optim.Optimizer | None = None
    fresh: bool = True  # the optimiser remembered nothing of earlier steps
    doubts: list[str] = field(default_factory=list)


@contextlib.contextmanager
def watched(network: nn.Module | None = None) -> Iterator[Seen]:
    """What is seen of the training of a network inside the block; of the first one that is called with gradients, where
    none is named."""
    seen = Seen()
    with contextlib.ExitStack() as stack:

        def enter(module: nn.Module) -> None:
            seen.outer, seen.network = module, unwrapped(module)
            handle = module.register_forward_pre_hook(lambda m, a, k: _forward(seen, a, k), with_kwargs=True)
            stack.callback(handle.remove)

        if network is not None:
            enter(network)
        else:

            def first(module: nn.Module, args: Any) -> None:
                if seen.outer is None and torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters()):
                    search.remove()
                    enter(module)
                    _forward(seen, args, {})  # the hook is heard from the next call on

            search = register_module_forward_pre_hook(first)
            stack.callback(search.remove)
        for handle in (
            register_optimizer_step_pre_hook(lambda o, *_: _before(seen, o)),
            register_optimizer_step_post_hook(lambda o, *_: _after(seen, o)),
        ):
            stack.callback(handle.remove)
        stack.enter_context(_Functions(lambda *said: seen.open.losses.append(said)))
        yield seen


class _Functions(TorchFunctionMode):
    def __init__(self, tell: Callable[[str, Tensor, Tensor], object]) -> None:
        super().__init__()
        self.tell = tell

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in LOSSES and torch.is_grad_enabled() and isinstance(result, Tensor) and result.requires_grad:
            given = {**dict(zip(ARGUMENTS, args, strict=False)), **kwargs}
            self.tell(*_loss(LOSSES[func], given))
        return result


def _loss(name: str, given: dict[str, Any]) -> tuple[str, Tensor, Tensor]:
    """The name of a loss with its settings, as `pplleak.client.loss` reads it, with its output and its labels; where it
    has none of the kind, the name is "" and says so later."""
    output, target, weight = given["input"].detach(), given["target"].detach(), given.get("weight")
    settings = []
    if given.get("label_smoothing"):
        settings.append(f"label_smoothing={given['label_smoothing']}")
    if (reduction := given.get("reduction", "mean")) != "mean":
        settings.append(f"reduction={reduction}")
    if weight is not None:
        settings.append(f"weights=({','.join(map(str, weight.tolist()))},)")
    if target.is_floating_point():
        one_hot = target.dim() == 2 and bool(((target == 0) | (target == 1)).all() and (target.sum(1) == 1).all())
        name, target = (name, target.argmax(1)) if one_hot else ("", target)
    known = target.dim() == 1 and reduction in ("mean", "sum") and output.dim() == 2
    known &= (
        bool((target >= 0).all()) and given.get("pos_weight") is None and not (name != "cross_entropy" and settings)
    )
    return (f"{name}:{','.join(settings)}" if settings else name) if known else "", output, target.cpu()


def _forward(seen: Seen, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before a forward pass; those without gradients are evaluations, and passed over."""
    network = seen.network
    if network is None or not torch.is_grad_enabled():
        return
    if not seen.before:
        seen.before = _copy(weights.state(network))
        seen.mode = "train" if network.training else "eval"
    elif seen.mode != ("train" if network.training else "eval"):
        seen.doubts.append("the network changed between train and eval mode")
    taken = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
    if len(taken) == 1 and taken[0].is_floating_point():
        seen.open.inputs.append(taken[0].detach().cpu().clone())
    else:
        seen.doubts.append("the network takes other inputs than one tensor of floating-point numbers")


def _before(seen: Seen, optimizer: torch.optim.Optimizer) -> None:
    """Before a step of an optimiser; those of other networks are passed over."""
    network = seen.network
    if network is None or not _of(optimizer, network):
        return
    if not seen.steps:
        seen.optimizer, seen.fresh = optimizer, not optimizer.state
        stepped = {id(p) for g in optimizer.param_groups for p in g["params"]}
        if any(p.requires_grad and id(p) not in stepped for p in network.parameters()):
            seen.doubts.append("the optimiser leaves some trainable parameters as they are: freeze those")
    elif optimizer is not seen.optimizer:
        seen.doubts.append("more than one optimiser trains the network")
    try:
        seen.open.added = dpsgd.added(optimizer)
    except BadInput as error:  # said when the training is done
        seen.doubts.append(str(error))
    if seen.open.added is not None or not seen.steps:
        seen.open.before = _copy(weights.state(network)) if seen.steps else seen.before
        named = network.named_parameters()
        seen.open.gradient = _copy({n: p.grad for n, p in named if p.grad is not None})
    seen.open.settings = [{n: v for n, v in g.items() if n != "params"} for g in optimizer.param_groups]


def _after(seen: Seen, optimizer: torch.optim.Optimizer) -> None:
    if seen.network is not None and _of(optimizer, seen.network):
        seen.steps.append(seen.open)
        seen.open = Step()


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in tensors.items()}


def _of(optimizer: torch.optim.Optimizer, network: nn.Module) -> bool:
    own = {id(p) for p in network.parameters()}
    return any(id(p) in own for g in optimizer.param_groups for p in g["params"])


def require_seen(seen: Seen) -> None:
    """Raise BadInput where nothing was trained, or something that no observation can say."""
    if seen.network is None or not seen.before:
        raise BadInput("nothing was recorded: inside the block, the network was not called with gradients")
    if seen.doubts:
        raise BadInput(f"this training is not one that an observation can say: {seen.doubts[0]}")
    for k, step in enumerate(seen.steps, 1):
        if len(step.inputs) != 1:
            raise BadInput(f"step {k} of the optimiser followed {len(step.inputs)} forward passes: pplleak knows one a "
                           "step (no accumulated gradients, no second network)")  # fmt: skip
