"""The file that carries an observation, and reading it runs no code: safetensors.

``gradient.NAME`` holds what was shared for parameter NAME, ``parameter.NAME`` the network's weights at that moment (the
server knows them), and the metadata (JSON strings) say the network, the shapes, the batch size, the local training, the
defence, the channel with its noise and, where they were shared, the labels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pplleak import reading, runs
from pplleak.client import weights
from pplleak.client.loss import DEFAULT
from pplleak.client.sharing import INDICES
from pplleak.client.training import LocalTraining
from pplleak.errors import BadInput, printable
from pplleak.federation.protection import Protection
from pplleak.settings import Named

FORMAT = "pplleak-observation-1"
Value = bool | int | float | str | None | list[Any]  # of a setting, as JSON has it; what is set checks its kind


@dataclass(frozen=True)
class _Part:
    """A channel or a defence: "" where there is none."""

    name: str
    settings: dict[str, Value]


@dataclass(frozen=True)
class _Metadata:
    """The metadata of an observation: what each has to be. Older files know neither channels nor defences."""

    network: str
    settings: dict[str, Value]
    input_shape: list[int]
    num_classes: int
    batch_size: int
    sigma: float | Literal["infer"] | None
    labels: list[int] | None
    channel: _Part = _Part("gaussian", {})
    defence: _Part = _Part("", {})
    local: dict[str, Value | dict[str, Any]] | None = None  # `LocalTraining` checks it
    loss: str = DEFAULT
    normalise: list[float] = field(default_factory=list)
    mode: Literal["", "train", "eval"] = ""
    privacy: dict[str, float] | None = None
    shared_only: bool = False
    targets: list[list[float]] | None = None


@dataclass(frozen=True, eq=False)
class SharedFile:
    """An observation file as read: named tensors and metadata, not yet fitted to a client."""

    gradient: dict[str, Tensor]
    parameters: dict[str, Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)


def write(
    path: str | Path,
    gradient: Mapping[str, Tensor],
    *,
    input_shape: tuple[int, ...],
    num_classes: int,
    network: str | Named,
    parameters: Mapping[str, Tensor] | None = None,
    protection: str | Protection,
    batch_size: int = 1,
    labels: list[int] | None = None,
    local: LocalTraining | None = None,
    loss: str = DEFAULT,
    normalise: Sequence[float] = (),
    mode: str = "",
    privacy: Mapping[str, float] | None = None,
    shared_only: bool = False,
    targets: list[list[float]] | None = None,
) -> None:
    """Write an observation. For a gradient of your own: ``{n: p.grad for n, p in net.named_parameters()}``.

    Args:
        gradient: parameter name -> the shared tensor, of that parameter's shape; sparse as `pplleak.client.sharing`
            has it.
        input_shape: of one example. num_classes: of the network's logits.
        network: what rebuilds it: ``mlp:widths=(64,)``, or ``FILE.py:FUNCTION``.
        parameters: the weights, with the running statistics of normalisations (`state_dict()` has both); a file
            without them needs a checkpoint beside it.
        protection: what the update went through, ``gaussian:sigma=0.1`` for example, or ``none``, where it was shared
            as it is: the server knows the protocol.
        batch_size: examples behind the gradient.
        labels: where the client shared them. local: what it trained, where it shares how its weights moved.
        loss: a name of `pplleak.client.loss` with settings. normalise: mean and sd of what the network sees its inputs
            normalised by (`Scenario`).
        mode: train or eval, in which the client's network was; "" leaves it as it is built.
        privacy: what DP-SGD spent: epsilon, delta, sample_rate.
        targets: instead of labels, where the loss compares with vectors: one for each example.
        shared_only: parameters that `gradient` lacks were not shared; else a reader takes them for an oversight.
    """
    tensors = {f"gradient.{n}": t for n, t in gradient.items()}
    tensors |= {f"parameter.{n}": t for n, t in (parameters or {}).items()}
    network = Named.parse(network)
    parts = Protection.parse(protection).observable().to_json()
    sigma = parts["channel"]["settings"].pop("sigma", None)
    metadata = {
        "format": FORMAT,
        "network": network.name,
        "settings": dict(network.settings),
        "input_shape": list(input_shape),
        "num_classes": num_classes,
        "batch_size": batch_size,
        "sigma": sigma,
        **parts,
        "labels": labels,
        "local": None if local is None else local.to_json(),
        "loss": loss,
        "normalise": list(normalise),
        **({"mode": mode} if mode else {}),
        **({"privacy": dict(privacy)} if privacy else {}),
        "shared_only": shared_only,
        "targets": targets,
    }
    runs.tensors(path, tensors, {k: json.dumps(v) for k, v in metadata.items()})


def read(path: str | Path) -> SharedFile:
    """Read an observation file without running anything in it.

    Raises:
        BadInput: missing, truncated, pickled or otherwise not a safetensors file; NaN; metadata of the wrong kind.
    """
    path = Path(path)
    tensors, raw = weights.read(path)
    for name, t in tensors.items():
        # a network's counters are whole numbers, and so are the places of sparse values
        if not t.is_floating_point() and not name.startswith("parameter.") and not name.endswith(INDICES):
            raise BadInput(f"{path}: '{printable(name)}' holds {t.dtype}, not floating-point numbers")
    gradient = {n.removeprefix("gradient."): t for n, t in tensors.items() if n.startswith("gradient.")}
    parameters = {n.removeprefix("parameter."): t for n, t in tensors.items() if n.startswith("parameter.")}
    if not gradient:
        if not tensors or parameters:
            raise BadInput(f"{path} holds no gradient: its tensors must be named gradient.LAYER")
        gradient = tensors  # a bare file of named gradients, a file of the user's own
    return SharedFile(gradient, parameters, _metadata(path, raw))


def rounding(gradient: Mapping[str, Tensor]) -> float:
    """σ of a gradient that nothing was added to: the rounding of its numbers.

        σ = ε rms(g),   ε = 2⁻²³ (float32), 2⁻¹⁰ (float16), 2⁻⁷ (bfloat16), and no less than float32's

    of the coarsest dtype among them. Rounding to the nearest alone is ε g_i / √12 or less; the sums behind an entry err
    by a few times that. float64 counts as float32, in which the attack's own client computes unless it is told so.
    """
    square = sum(float(t.double().square().sum()) for t in gradient.values())
    entries = sum(t.numel() for t in gradient.values())
    eps = max(max(torch.finfo(t.dtype).eps, torch.finfo(torch.float32).eps) for t in gradient.values())
    return max(eps * math.sqrt(square / entries), 1e-30)


def _metadata(path: Path, raw: dict[str, str]) -> dict[str, Any]:
    if raw.get("format") != json.dumps(FORMAT):
        return {}
    where = f"{printable(path)}: its metadata"
    read = reading.metadata(raw, _Metadata, where)
    positive = [*read.input_shape, read.num_classes, read.batch_size]
    if not read.input_shape or not all(0 < n < 1_000_000 for n in positive):
        raise BadInput(f"{where} holds impossible sizes: {printable(positive)}")
    try:
        local = None if read.local is None else LocalTraining.from_json(read.local)
    except (TypeError, OverflowError, BadInput) as error:
        raise BadInput(f"{where} 'local' cannot be: {error}") from error
    return {f.name: getattr(read, f.name) for f in fields(read)} | {
        "local": local, "channel": asdict(read.channel), "defence": asdict(read.defence)
    }  # fmt: skip


def protection_of(metadata: Mapping[str, Any], where: str) -> Protection:
    """The protection that a file's metadata name, with σ, which stands beside the channel there."""
    channel = metadata["channel"]
    sigma = {} if metadata["sigma"] is None else {"sigma": metadata["sigma"]}
    return Protection.from_json(
        {**metadata, "channel": {**channel, "settings": {**channel["settings"], **sigma}}}, where
    )
