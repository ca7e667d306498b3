"""Everything that makes an observation, as one value, and the observation that a client makes of real data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from pplleak import blame, channels, data, programs
from pplleak.client import Client, networks, seeded, sharing, sizes, weights
from pplleak.client.loss import DEFAULT, get
from pplleak.client.training import LocalTraining
from pplleak.errors import BadInput, printable, require_seed
from pplleak.federation import defences, half
from pplleak.federation.observation import Observation, check_labels, require_batch_size, with_targets
from pplleak.federation.protection import Protection
from pplleak.settings import Named

Precision = Literal["float32", "float64", "bfloat16", "float16"]


@dataclass(frozen=True)
class Scenario:
    """Data, network, client, protection and seed: what makes an observation.

    data        which images or table (`pplleak.data`): a name, a folder, or FILE.csv; root: the folder that holds named
                data
    index       the first private image; batch_size: how many from there on
    label       instead of the image's own (for a folder without classes)
    labels      known: the client shares them; unknown: it does not
    network     a name with settings, `mlp:widths=(64,)`; or `FILE.py:FUNCTION`
    checkpoint  a safetensors file of weights; None: they are drawn from `seed`
    local       what the client trains before it shares; None: it shares its gradient
    loss        of the client, a name of `pplleak.client.loss` with settings
    normalise   (mean, sd) of the inputs, or those of each channel, means first: the network sees (x − mean) / sd, as
                where a DataLoader's transform normalises; () leaves them as they are
    protection  a defence and a channel, `gaussian:sigma=0.1`
    seed        of the weights and of the noise, each from a generator of its own; noise_seed: another for the noise
    dtype       precision in which the client computes; that of an adversary is float32 where it is half a one
                (`pplleak.federation.half`). device: where it runs, `cpu` or `cuda`
    """

    data: str = "digits"
    root: Path | None = None
    index: int = 0
    batch_size: int = 1
    label: int | None = None
    labels: Literal["known", "unknown"] = "known"
    network: Named = Named("mlp")
    checkpoint: Path | None = None
    local: LocalTraining | None = None
    loss: str = DEFAULT
    normalise: tuple[float, ...] = ()
    protection: Protection = Protection(channel=Named("gaussian"))
    seed: int = 0
    noise_seed: int | None = None
    dtype: Precision = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        object.__setattr__(self, "network", Named.parse(self.network))  # as a user writes them
        object.__setattr__(self, "protection", Protection.parse(self.protection))
        require_batch_size(self.batch_size)
        require_seed(self.seed)
        if self.labels not in ("known", "unknown"):
            raise BadInput(f"labels are known or unknown to the server, not {self.labels!r}")


def build_client(
    network: str | Named,
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    seed: int = 0,
    dtype: Precision = "float32",
    device: str = "cpu",
    parameters: Mapping[str, Tensor] | None = None,
    where: str = "the observation",
    checkpoint: str | Path | None = None,
    local: LocalTraining | None = None,
    loss: str = DEFAULT,
    normalise: tuple[float, ...] = (),
    defence: Named | None = None,
    mode: str = "",
    shared: Mapping[str, Tensor] | None = None,
    columns: data.Columns | None = None,
    vocabulary: data.Vocabulary | None = None,
) -> Client:
    """The client of a network's name with its settings, or of FILE.py:FUNCTION; weights from `seed`, or as given.

    Args:
        parameters: the weights that an observation (`where`) holds. checkpoint: a safetensors file of weights.
        local: what the client trains before it shares; None shares the gradient.
        loss, normalise: as in `Scenario`.
        defence: one of `pplleak.federation.defences`, which may change the network.
        mode: train or eval; "" leaves the network as it is built.
        shared: the tensors that were shared, where parameters that are not among them were not; None: all were.
        columns: of the table whose encoded records the client takes. vocabulary: of the sentences that it takes.
    """
    named = Named.parse(network)
    constructor = networks.load(named.name)
    programs.require_settings(constructor, named.settings, named.name)

    def build() -> Any:
        base = sizes.shaped(constructor(input_shape, num_classes, **named.settings), input_shape)
        return defences.network(base, input_shape, num_classes, defence)

    said = printable(named)
    if parameters and checkpoint:
        raise BadInput(f"{where} holds the client's weights already: leave the checkpoint {checkpoint} out")
    tensors, metadata = weights.read(checkpoint) if checkpoint else (parameters, {})
    own, trained = "" if defence is None else defence.name, printable(metadata.get("defence", ""))
    if "defence" in metadata and trained != own:
        raise BadInput(f"{checkpoint} was trained with the defence {trained or 'none'}, and this client has "
                       f"{own or 'none'}: choose the same defence")  # fmt: skip
    source, whole, images = str(checkpoint or where), checkpoint is not None, f"for images {input_shape}"
    with blame.blamed(f"the network '{said}' cannot be built {images}"):
        sizes.sketch(build, f"the network '{said}' {images}", tensors or {}, source, whole=whole)
        with sizes.counted(f"the network '{said}' {images}"):
            made = seeded(build, seed)
    if not isinstance(made, nn.Module):
        raise BadInput(f"the network '{said}' returned a {type(made).__name__}, not a torch.nn.Module")
    sizes.require_real(made)
    if tensors:
        made = weights.load(made, tensors, source, whole=whole)
    made = made.to(torch_device(device), getattr(torch, dtype))
    made = made.float() if half.is_half(dtype) else made  # as an adversary computes with the weights it was sent
    made = made.train(mode == "train") if mode else made
    withheld = () if shared is None else sharing.withheld(made, sharing.by_owner(made, shared, where))
    made = networks.normalised(made, normalise, input_shape)
    return Client(
        made,
        input_shape,
        num_classes,
        local=local,
        loss=loss,
        withheld=withheld,
        columns=columns,
        vocabulary=vocabulary,
    )


def torch_device(name: str) -> torch.device:
    """A device by name, `cuda:1` for example; auto is the machine's accelerator, where it has one.

    Its tensor cores are told to keep float32 what it is: TF32, which torch allows in convolutions, rounds factors to
    ten bits, an error of 1e-3 in a gradient, as large as the noise of many an observation.

    Raises:
        BadInput: this machine has none such.
    """
    try:
        if name == "auto":
            accelerator = torch.accelerator.current_accelerator(check_available=True)
            name = "cpu" if accelerator is None else str(accelerator)
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BadInput(f"no device '{name}' on this machine ({str(error).splitlines()[0]}): take cpu") from error
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return device


def client_of(scenario: Scenario) -> Client:
    """The client of a scenario, before it sees any image."""
    images = data.private(scenario.data, scenario.root)
    scenario, outputs = told(scenario), _classes(images)
    if get(scenario.loss).of_tokens and images.vocabulary is not None:
        outputs = len(images.vocabulary)
    elif get(scenario.loss).targets == "input":
        outputs = math.prod(images.input_shape)
    return build_client(
        scenario.network, images.input_shape, outputs, seed=scenario.seed, dtype=scenario.dtype,
        device=scenario.device, checkpoint=scenario.checkpoint, local=scenario.local, loss=scenario.loss,
        normalise=scenario.normalise, defence=scenario.protection.filled().defence, columns=images.columns,
        vocabulary=images.vocabulary,
    )  # fmt: skip


def told(scenario: Scenario) -> Scenario:
    """The scenario with what its data know as settings of a network that has such and was given none: the size of a
    text's `vocabulary`, `next_token` where that is the loss, the entries of each of a table's columns as `blocks`.

    Raises:
        BadInput: text, and a built-in network that takes none.
    """
    images, network = data.private(scenario.data, scenario.root), scenario.network
    if images.vocabulary is None and images.columns is None:
        return scenario
    takes = {s.name for s in programs.settings(networks.load(network.name))}
    if images.columns is not None:
        known: dict[str, Any] = {"blocks": tuple(c.width for c in images.columns.varying)}
    elif "vocabulary" not in takes and network.name in networks.names():
        raise BadInput(f"the network {network.name} takes images, and the data are text: take the network bert or gpt2")
    else:
        assert images.vocabulary is not None
        known = {"vocabulary": len(images.vocabulary), "next_token": get(scenario.loss).of_tokens}
    new = {n: v for n, v in known.items() if v and n in takes and not network.settings.get(n)}
    return replace(scenario, network=network.with_(**new)) if new else scenario


def _classes(images: data.Images) -> int:
    """Outputs of the network: those of a table or a text, and at least ten of images."""
    own = images.columns is not None or images.vocabulary is not None
    return len(images.classes) if own else max(10, len(images.classes))


def batch(scenario: Scenario) -> tuple[Tensor, Tensor]:
    """The private examples of a scenario, (batch, *input_shape), and their labels (batch,)."""
    images = data.private(scenario.data, scenario.root)
    x, y = images.batch(scenario.index, scenario.batch_size)
    if scenario.label is not None:
        y = check_labels([scenario.label] * scenario.batch_size, _classes(images), scenario.batch_size)
    return x, y


def observe(scenario: Scenario) -> Observation:
    """What the server sees where a client shares the update of real images, with the truth beside it.

    The client computes on the processor, and what it shared is moved to the scenario's device: a seed's noise is the
    same on all of them.
    """
    device, scenario = torch_device(scenario.device), replace(told(scenario), device="cpu")
    protection = scenario.protection.filled().observable()
    x, y = batch(scenario)
    client = client_of(scenario)
    sizes.require_batch(client, scenario.batch_size)
    x, y = x.to(client.device, client.dtype), y.to(client.device)
    kind = get(client.loss).targets
    if kind != "classes":  # the class as a vector, where the loss compares with one
        vectors = None if kind == "input" else one_hot(y, client.num_classes)
        client, y = with_targets(client, vectors, scenario.batch_size)  # type: ignore[assignment]
    if protection.is_channel("dpsgd"):
        channels.require_examples(client, scenario.batch_size)
    attacked = range(scenario.index, scenario.index + scenario.batch_size)
    known = data.public(scenario.data, scenario.root, without=attacked)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed((scenario.seed if scenario.noise_seed is None else scenario.noise_seed) + 1)
        own = half.computing(client, scenario.dtype) if half.is_half(scenario.dtype) else client
        g = protection.share(own, x, y, known.x).to(client.dtype)
    if not g.isfinite().all():
        raise BadInput("the client's update holds NaN or infinity: its weights or its local steps diverge")
    if own is not client:
        protection = half.noisier(protection, client, g, half.rounding(client, own, known.x, scenario.batch_size))
    provenance = {
        "data": scenario.data, "index": scenario.index,
        **({"dtype": scenario.dtype} if own is not client else {}),
        **of_client(scenario.network, scenario.checkpoint, client, scenario.normalise),
    }  # fmt: skip
    labels = y if scenario.labels == "known" else None
    seen = client if labels is not None or kind == "input" else replace(client, targets=None)
    shared = Observation(
        g, scenario.batch_size, labels, seen, protection, known.x, x, provenance=provenance, public_labels=known.y
    )
    return shared if device.type == "cpu" else shared.to(device)


def of_client(
    network: Named, checkpoint: str | Path | None, client: Client, normalise: tuple[float, ...]
) -> dict[str, Any]:
    """What is written down of a client beside its weights; what is as it is by default is left out."""
    more = {
        "checkpoint": str(checkpoint) if checkpoint else None,
        "local": client.local.to_json() if client.local else None,
        "loss": client.loss if client.loss != DEFAULT else None,
        "normalise": list(normalise) or None,
        "withheld": list(client.withheld) or None,
    }
    made: dict[str, Any] = {"network": network.name, "network_settings": dict(network.settings)}
    return made | {n: v for n, v in more.items() if v is not None}
