"""What a network and a batch take of the memory, told before it is taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.nn.parameter import is_lazy

from pplleak import memory
from pplleak.client import weights
from pplleak.errors import BadInput

if TYPE_CHECKING:
    from pplleak.client.client import Client

COPIES = 14  # of the parameters, when a client is made, checked and attacked: 1e8 of them were seen to take 5.4 GB
TENSORS = 2_000  # parameters and buffers of the deepest network


@contextmanager
def counted(what: str) -> Iterator[None]:
    """Parameters and buffers are counted while a network is being built.

    Raises:
        BadInput: as soon as they are more than the memory takes, or more than `TENSORS`. A parameter is counted before
            its weights are drawn, which is when its memory is taken.
    """
    free, taken, tensors = memory.available(), 0, 0

    def count(_: nn.Module, name: str, value: Any) -> None:
        nonlocal taken, tensors
        if not isinstance(value, Tensor) or is_lazy(value):
            return
        tensors, taken = tensors + 1, taken + value.numel() * value.element_size()
        if tensors > TENSORS:
            raise BadInput(f"{what} has more than {TENSORS} parameters and buffers: take a shallower one")
        if COPIES * taken > free:
            memory.require(COPIES * taken, f"{what} (at least {taken // 2**20} MiB of weights)", "take a smaller one")

    watching = (
        hooks.register_module_parameter_registration_hook(count),
        hooks.register_module_buffer_registration_hook(count),
    )
    try:
        yield
    finally:
        for hook in watching:
            hook.remove()


def shaped(network: Any, input_shape: tuple[int, ...]) -> Any:
    """A network whose lazy layers have been given their shapes, by one image of zeros; any other as it is."""
    if not isinstance(network, nn.Module) or not any(is_lazy(p) for p in network.parameters()):
        return network
    trained = {module: module.training for module in network.modules()}
    with torch.no_grad():
        network.eval()(torch.zeros(1, *input_shape))  # eval: no statistics are counted
    for module, mode in trained.items():
        module.training = mode
    return network


def require_real(network: nn.Module) -> None:
    """Raise BadInput for a network whose parameters are not there yet, or are no numbers that have a gradient."""
    for name, p in network.named_parameters():
        if is_lazy(p):
            raise BadInput(f"the network's parameter '{name}' has no shape yet (a lazy layer): call the network "
                           "once, or name the sizes of its layers")  # fmt: skip
        if p.is_meta:
            raise BadInput(f"the network's parameter '{name}' lies on the meta device, without values: build it on cpu")
        if p.layout != torch.strided or not p.is_floating_point():
            raise BadInput(f"the network's parameter '{name}' is of {p.layout} and {p.dtype}: a client shares dense "
                           "tensors of floating-point numbers")  # fmt: skip
    if isinstance(network, torch.jit.ScriptModule):
        raise BadInput("the network is TorchScript, which cannot be differentiated twice for every example at once: "
                       "return the nn.Module that it was made of")  # fmt: skip


def sketch(build: Callable[[], Any], what: str, tensors: Mapping[str, Tensor], where: str, *, whole: bool) -> None:
    """Raise BadInput where a network is too large, or weights are not its own: it is built without any memory, on the
    meta device.

    A constructor that cannot be run there is left to be counted, and compared, when it is run.

    Args:
        what: the network, at the head of a message.
        tensors, where, whole: weights as for `weights.load`; none: there are no others than its own.
    """
    try:
        with counted(what), torch.device("meta"), torch.random.fork_rng(devices=[]):
            made = build()
    except BadInput:
        raise
    except (Exception, SystemExit):  # it computes with its weights; what is wrong with it is told when it is built
        return
    if tensors and isinstance(made, nn.Module) and not any(is_lazy(p) for p in made.parameters()):
        weights.fits(made, tensors, where, whole=whole)


def require_draws(client: Client, batch_size: int, settings: Mapping[str, Any]) -> None:
    """Raise BadInput for an inference that is set to more images at once, or to keep more, than fit into the memory.

    Args:
        settings: of the inference; those that multiply its images are called so in every file: chains × draws, islands
            × particles, starts, samples.
    """

    def number(name: str) -> int:
        value = settings.get(name)
        return value if isinstance(value, int) and value > 0 else 1

    images = max(number("chains") * number("draws"), number("islands") * number("particles"), number("starts"),
                 number("samples"), number("chains") * 16)  # fmt: skip
    needed = 4.0 * 4 * images * batch_size * math.prod(client.input_shape)
    memory.require(needed, f"an inference of {images} images at once", "take fewer chains, draws, particles or starts")


def require_batch(client: Client, batch_size: int) -> None:
    """Raise BadInput for a batch whose update, and its distance to an observation, would not fit into the memory.

    ‖Σ_b δ_b a_bᵀ‖² = Σ_{b,b'} (δ_b·δ_b')(a_b·a_b'):  B² inner products, lazy;  B × D entries, materialised
    """
    pixels, width = math.prod(client.input_shape), 8
    if client.lazy:
        units = sum(shape[0] for shape in client.layers.values() if len(shape))
        needed = width * (3 * batch_size**2 + 4 * batch_size * (pixels + units))
    else:
        mixed = math.prod(client.local.passes(batch_size)) if client.local else 1  # steps, each with its graph
        rows = mixed if client.mixes_batch or client.local else batch_size
        needed = width * (3 * rows * client.update_size + 4 * batch_size * pixels)
    memory.require(needed, f"a batch of {batch_size} examples", "take a smaller batch")
