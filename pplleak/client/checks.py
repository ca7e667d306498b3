"""What a client's network decides: looked up once, on two probe images, before anything is computed with it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pplleak.client import closed_form, kernels, masks, sizes, targets
from pplleak.client.loss import check, get
from pplleak.client.loss import probe as probe_loss
from pplleak.client.networks import Normalise
from pplleak.client.smoothness import probe
from pplleak.data.vocabulary import SPECIAL
from pplleak.errors import BadInput

if TYPE_CHECKING:
    from pplleak.client.client import Client

# of finite differences: a kink may lie within one, or the slope turn within it. BatchNorm of two numbers in train mode
# is the sign of their difference, but for its ε: a chain of such (EfficientNet-B0 at 32 pixels) turns within 1e-10
STEPS = (1e-4, 1e-5, 1e-7, 1e-9, 1e-10, 1e-12)
LARGEST = 5_000_000  # parameters of a network whose slopes are compared with finite differences


def found(client: Client) -> dict[str, Any]:
    """The fields of a client that its network decides, and the frozen copy of the network itself."""
    network, local = unwrapped(client.network), client.local
    get(client.loss)
    sizes.require_real(network)
    network = copy.deepcopy(network)
    layers = {name: p.shape for name, p in network.named_parameters() if p.requires_grad}
    if not layers:
        raise BadInput("the network has no trainable parameters, so it shares no gradient")
    if strange := [n for n in client.withheld if n not in layers]:
        raise BadInput(f"'{strange[0]}' is withheld, and no trainable parameter of the network, which has "
                       f"{', '.join(list(layers)[:5])}, …")  # fmt: skip
    layers = {n: s for n, s in layers.items() if n not in client.withheld}
    if not layers:
        raise BadInput("all of the network's parameters are withheld, so it shares no gradient")
    for name, p in network.named_parameters():
        if not p.isfinite().all():
            raise BadInput(f"the network's parameter '{name}' holds NaN or infinity: load sound weights")
    network.requires_grad_(False)
    for module in network.modules():
        if getattr(module, "inplace", False):
            # an in-place activation would overwrite the outputs that the taps hold
            setattr(module, "inplace", False)  # noqa: B010 (mypy knows no such attribute)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            # train mode uses the batch's statistics; vmap cannot update the running ones in place
            module.running_mean = module.running_var = module.num_batches_tracked = None
            module.track_running_stats = False

    x = two_examples(next(network.parameters()), client)
    masked = masks.draw_from_noise(network, x)
    noise_shape = getattr(network, "noise_shape", None)
    if noise_shape is not None and local is not None:
        raise BadInput("a network that draws noise (precode, dropout) and local training: each step draws anew, "
                       "which is not modelled; share one gradient")  # fmt: skip
    generator_state = torch.get_rng_state()
    with kernels.plain():  # a fused kernel would hide the kinks inside it
        kinks, logits = probe(network, x)
        drew = not torch.equal(generator_state, torch.get_rng_state())  # a rare dropout changes no output, but draws
        kind = get(client.loss).targets
        output: Any = logits
        of_tokens = get(client.loss).of_tokens
        if of_tokens:
            logits = _at_places(logits, client)
        elif kind == "input" and isinstance(logits, Tensor):  # an image is an output, too
            logits = logits.flatten(1)
        classes = client.num_classes or (logits.shape[-1] if isinstance(logits, Tensor) and logits.dim() == 2 else "K")
        if not isinstance(logits, Tensor) or logits.shape != (2, classes):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise BadInput(f"the network must return logits (batch, {classes}), but for a batch of 2 it returns {got}")
        if not logits.is_floating_point():
            raise BadInput(f"the network returns {logits.dtype}: logits are floating-point numbers")
        if not logits.isfinite().all():
            raise BadInput("the network returns NaN or infinity: its weights are too large for its precision")
        with torch.enable_grad():
            if client.vocabulary is None and not network(x.detach().clone().requires_grad_()).requires_grad:
                raise BadInput("the network's logits have no slope in the images, and its gradient says nothing of "
                               "them: does it compute by .detach(), .item() or numpy?")  # fmt: skip
        check(client.loss, int(logits.shape[-1]), math.prod(client.input_shape))
        if kind == "input" and any(isinstance(hook, Normalise) for hook in network._forward_pre_hooks.values()):
            raise BadInput("inputs that are normalised outside the network are other ones than the loss compares with "
                           "(targets=input): leave one of them out")  # fmt: skip
        given = x if kind == "input" else _targets(client.loss, x, int(logits.shape[-1]))
        probe_loss(client.loss, output, given)
        if drew or not torch.equal(output, network(x)):
            raise BadInput("the network is random (a dropout that is no module, in train mode?): call .eval() before "
                           "sharing a gradient")  # fmt: skip
        mixes = _mixes(network, x)
    kinks = (*kinks, "dropout") if masked else kinks
    return {
        "network": network, "input_shape": tuple(client.input_shape), "num_classes": classes, "layers": layers,
        "mixes_batch": mixes, "kinks": kinks, "noise_shape": noise_shape,
    }  # fmt: skip


def _at_places(logits: Any, client: Client) -> Tensor:
    """The logits (2, V) at a place of logits (2, length, V), of a causal language model."""
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if not isinstance(logits, Tensor) or logits.dim() != 3 or logits.shape[:2] != (2, *client.input_shape):
        raise BadInput(f"the loss next_token takes logits of the next token at every place, (batch, "
                       f"{client.input_shape[0]}, tokens), and for a batch of 2 the network returns {shape}: take the "
                       "network gpt2, or return a causal language model's logits")  # fmt: skip
    if client.vocabulary is None or logits.shape[2] < len(client.vocabulary):
        raise BadInput("the loss next_token is of text, with a logit for each of its tokens: attack FILE.txt")
    return logits[:, 0]


@torch.no_grad()
def _mixes(network: nn.Module, x: Tensor) -> bool:
    """Whether an example's output depends on the rest of its batch; looked at again in float64 where that may be
    rounding."""
    try:
        whole, alone = network(x)[:1], network(x[:1])
        if torch.allclose(alone, whole, rtol=1e-3, atol=1e-4):
            return False
        if x.dtype == torch.float64:
            return True
        precise = copy.deepcopy(network).double()
        whole, alone = precise(x.double())[:1], precise(x[:1].double())
        return not torch.allclose(alone, whole, rtol=1e-6, atol=1e-6 * float(whole.abs().max()))
    except (RuntimeError, ValueError):  # batch statistics of one example do not exist
        return True


def unwrapped(network: nn.Module) -> nn.Module:
    """The network that a wrapper for several devices, a compiler or Opacus holds: the same function of the same
    weights."""
    if isinstance(network, nn.DataParallel | DistributedDataParallel):
        return unwrapped(network.module)
    name = "_module" if type(network).__module__.startswith("opacus.") else "_orig_mod"  # GradSampleModule; compile
    inner = getattr(network, name, None)
    return unwrapped(inner) if isinstance(inner, nn.Module) else network


def two_examples(like: Tensor, client: Client) -> Tensor:
    """Two examples that the checks look at: images, or a long sentence and a short one."""
    draw = torch.Generator().manual_seed(0)
    if client.vocabulary is None:
        return torch.rand(2, *client.input_shape, generator=draw).to(like)
    (length,), words = client.input_shape, len(client.vocabulary) - len(SPECIAL)
    own = [torch.randint(words, (n,), generator=draw) + len(SPECIAL) for n in (length - 2, length // 2 - 1)]
    return torch.stack([client.vocabulary.framed(ids.tolist(), length) for ids in own]).to(like)


def _targets(loss: str, like: Tensor, outputs: int) -> Tensor:
    """What the two examples of the checks are mapped onto: labels, or vectors of any kind."""
    if get(loss).targets not in targets.VECTORS:
        return torch.arange(2, device=like.device) % outputs
    return torch.eye(max(outputs, 2), device=like.device, dtype=like.dtype)[:2, :outputs]


def path(client: Client) -> str:
    """Which way to the update a network allows, the cheapest that is right: `lazy`, `vmap` or `loop`."""
    if _closed_form(client) or (client.dtype != torch.float64 and _closed_form(in_double(client), precisely=True)):
        return "lazy"
    x = two_examples(next(client.network.parameters()), client)[:, None]
    y = _targets(client.loss, x, client.num_classes)[:, None]
    if client.mixes_batch:
        x, y = x.transpose(0, 1), y.transpose(0, 1)
    try:
        with torch.no_grad():
            replace(client, path="vmap", local=None).materialised(x, y)  # which local steps are made of
    except (RuntimeError, ValueError, TypeError):  # an operation that vmap has no rule for
        return "loop"
    return "vmap"


def require_slopes(client: Client) -> None:
    """Raise BadInput for a network whose update has no slope in the images, which is what an attack follows."""
    x = two_examples(next(client.network.parameters()), client)[None]
    x = (x if client.mixes_batch else x[:, :1]).requires_grad_()
    y = _targets(client.loss, x, client.num_classes)[None, : x.shape[1]]
    with torch.enable_grad():
        try:
            square = replace(client, local=None).update(x, y).sqnorm()  # which local steps are made of
            if square.requires_grad:
                torch.autograd.grad(square.sum(), x, allow_unused=True)
                _require_true_slopes(client, x.detach(), y)
                return
        except RuntimeError as error:
            raise BadInput("the network cannot be differentiated twice, and an attack follows the slope of a gradient: "
                           f"{str(error).splitlines()[0]}") from error  # fmt: skip
    raise BadInput("the network's update does not depend on the images: does it compute by numpy, .item() or "
                   ".detach()?")  # fmt: skip


def _require_true_slopes(client: Client, x: Tensor, y: Tensor) -> None:
    """Raise BadInput where the slopes of the gradient are not those of finite differences: a function of the network's
    own (`torch.autograd.Function`) may be differentiable once, and what has been taken out of its graph (.detach(),
    .item()) has no slope.

    Where there are kinks, or many parameters, only a network that is under suspicion is looked at: differences across a
    kink are wrong themselves.
    """
    if client.path != "loop" and (client.kinks or client.update_size > LARGEST):
        with torch.enable_grad():
            if not _has_own_functions(client.network(x[0].clone().requires_grad_())):
                return
    precise = replace(in_double(client), local=None)
    x, along = x.double(), torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x).double()

    def square(t: Tensor) -> Tensor:
        return precise.update(x + t * along, y).sqnorm().sum()

    t = torch.zeros((), dtype=torch.float64, device=x.device, requires_grad=True)
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(square(t), t)
    with torch.no_grad():
        rounding, step = 1e-7 * float(square(t)), slope
        for h in STEPS:
            step = (square(t + h) - square(t - h)) / (2 * h)
            if torch.isclose(slope, step, rtol=1e-2, atol=rounding):
                return
    raise BadInput(
        f"the slope of the network's gradient is {float(slope):.3g} by autograd, {float(step):.3g} by finite "
        "differences: does it compute by .detach() or .item(), or is its autograd.Function differentiable once?"
    )


def _has_own_functions(output: Any) -> bool:
    """Whether a network's output has gone through an autograd.Function of somebody's own."""
    queue, seen = [output.grad_fn], set()
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            return True
        seen.add(node)
        queue += [following for following, _ in node.next_functions]
    return False


def in_double(client: Client) -> Client:
    """The same client in float64."""
    return replace(client, network=copy.deepcopy(client.network).double())


def _closed_form(client: Client, precisely: bool = False) -> bool:
    """True where the taps give the very gradient that plain autograd gives, of each of two examples.

    A deep network in float32 may round a unit to either side of a kink, and only `precisely`, in float64, is it seen
    that the two agree.
    """
    if client.mixes_batch or client.local:
        return False
    x = two_examples(next(client.network.parameters()), client)[:, None]
    y = _targets(client.loss, x, client.num_classes)[:, None]
    try:
        noise = None
        if client.noise_shape is not None:
            noise = torch.linspace(-1, 1, 2 * math.prod(client.noise_shape), dtype=x.dtype, device=x.device)
            noise = noise.reshape(2, 1, *client.noise_shape)
        lazy = closed_form.update(client, x, y, noise)
        filled = [where for factor in lazy.factors for where in factor.slices]
        if sorted(filled, key=lambda s: s.start) != list(client.slices.values()):
            return False  # a parameter without a tap, or with two: there would be cross terms between its factors
        reference = replace(client, path="loop").materialised(x, y, noise).materialise()
        off, largest = (1e-9, 1e-9) if precisely else (1e-3, 1e-5)
        tolerance = largest * float(reference.abs().max())
        return all(
            torch.allclose(entries, reference[:, where], rtol=off, atol=tolerance)
            for factor in lazy.factors
            for where, entries in factor.entries()
        )
    except (RuntimeError, ValueError, IndexError):  # shapes that are not (examples, …) throughout
        return False


@contextmanager
def one_example(client: Client, batch: int) -> Iterator[None]:
    """What torch says of the statistics of one example, in one line."""
    try:
        yield
    except ValueError as error:
        if client.mixes_batch and batch == 1 and "more than 1 value per channel" in str(error):
            raise BadInput("BatchNorm in train mode has no statistics of one example: give the client's own batch "
                           "(a batch size of 2 or more), or put the network in eval mode") from error  # fmt: skip
        raise
