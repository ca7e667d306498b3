"""What is attacked: a client, what it shared, and what its adversary has to go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pplleak import channels, data, programs
from pplleak.client import Client, networks, seeded, weights
from pplleak.client.training import LocalTraining
from pplleak.client.update import DenseUpdate, Update
from pplleak.density.surrogate import smoothed
from pplleak.errors import BadInput
from pplleak.federation import defences, observation
from pplleak.federation.observation import Observation
from pplleak.settings import Named

Precision = Literal["float32", "float64"]


@dataclass(frozen=True, eq=False)
class Target:
    """What is attacked: a client, what it shared, and, where the attacker is also the experimenter, the truth.

    truth      (batch, *input_shape) or None
    public     public images of the same kind, (N, *input_shape), or None: what a prior may be fitted to
    sigma      the channel's noise, where it has one and it is known
    channel    the channel's name and its other settings, where they are known
    defence    the defence's name and all its settings; "" for none
    said       where all this came from, for the record: data, index, network, settings, …
    latents    the values of the model's sites that a truth drawn from it came from; None for data
    """

    client: Client
    observed: Observation
    truth: Tensor | None = None
    public: Tensor | None = None
    sigma: float | None = None
    channel: str = "gaussian"
    channel_settings: dict[str, Any] = field(default_factory=dict)
    defence: str = ""
    defence_settings: dict[str, Any] = field(default_factory=dict)
    said: dict[str, Any] = field(default_factory=dict)
    latents: dict[str, Tensor] | None = None


def build_client(
    network: str,
    settings: Mapping[str, Any],
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    seed: int = 0,
    dtype: Precision = "float32",
    parameters: Mapping[str, Tensor] | None = None,
    where: str = "the observation",
    checkpoint: str | Path | None = None,
    local: LocalTraining | None = None,
    defence: str = "",
    defence_settings: Mapping[str, Any] | None = None,
) -> Client:
    """The client of a network's name or FILE.py:FUNCTION; weights from `seed`, or as given.

    Args:
        parameters: the weights that an observation (`where`) holds. checkpoint: a safetensors file of weights.
        local: what the client trains before it shares; None shares the gradient.
        defence, defence_settings: a name of `pplleak.federation.defences`, whose `network` changes the client's, if
        it has one.
    """
    constructor = networks.load(network)
    change = getattr(defences.load(defence), "network", None) if defence else None

    def build() -> Any:
        base = constructor(input_shape, num_classes, **settings)
        return base if change is None else change(base, input_shape, num_classes, **(defence_settings or {}))

    try:
        made = seeded(build, seed)
    except BadInput:
        raise
    except Exception as error:
        file = network.rpartition(":")[0]
        said = programs.describe(error, Path(file) if file else None)
        raise BadInput(f"the network '{network}' cannot be built for images {input_shape}: {said}") from error
    if not isinstance(made, nn.Module):
        raise BadInput(f"the network '{network}' returned a {type(made).__name__}, not a torch.nn.Module")
    if parameters and checkpoint:
        raise BadInput(f"{where} holds the client's weights already: leave --checkpoint {checkpoint} out")
    if checkpoint:
        tensors, metadata = weights.read(checkpoint)
        trained = metadata.get("defence", defence)
        if trained != defence:
            raise BadInput(f"{checkpoint} was trained with the defence {trained or 'none'}, and this client has "
                           f"{defence or 'none'}: choose it with --defence")  # fmt: skip
        made = weights.load(made, tensors, str(checkpoint))
    if parameters:
        made = weights.load(made, parameters, where, whole=False)
    return Client(made.to(getattr(torch, dtype)), input_shape, num_classes, local)


def from_data(
    spec: str = "digits",
    *,
    root: str | Path | None = None,
    index: int = 0,
    batch_size: int = 1,
    label: int | None = None,
    labels_shared: bool = True,
    network: str = "mlp",
    settings: Mapping[str, Any] | None = None,
    checkpoint: str | Path | None = None,
    local: LocalTraining | None = None,
    sigma: float | None = None,
    channel: str = "gaussian",
    channel_settings: Mapping[str, Any] | None = None,
    defence: str = "",
    defence_settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    noise_seed: int | None = None,
    dtype: Precision = "float32",
) -> Target:
    """A client that shares the gradient of real images, through a channel.

    Args:
        spec, root, index: which images (`pplleak.data`); batch_size: how many from there on.
        label: instead of the image's own (for a folder without classes). labels_shared: False hides the labels.
        network, settings, checkpoint, local: as for `build_client`.
        channel, channel_settings: a name of `pplleak.channels`, and its keyword arguments; sigma: its noise per entry
            (None: 0.1, where the channel has one).
        defence, defence_settings: a name of `pplleak.federation.defences`, and its keyword arguments; it comes before
        the channel.
        seed: of the weights and of the noise, each from a generator of its own. noise_seed: another for the noise.
    """
    kind, sigma, channel_settings = resolve_channel(channel, sigma, channel_settings)
    defence_settings = defences.check(defence, defence_settings or {}) if defence else {}
    if batch_size < 1:
        raise BadInput(f"the batch size must be at least 1, not {batch_size}")
    images = data.private(spec, root)
    x, y = images.batch(index, batch_size)
    classes = max(10, len(images.classes))
    if label is not None:
        y = observation.check_labels([label] * batch_size, classes, batch_size)
    client = build_client(
        network, settings or {}, images.input_shape, classes,
        seed=seed, dtype=dtype, checkpoint=checkpoint, local=local, defence=defence, defence_settings=defence_settings,
    )  # fmt: skip
    x = x.to(client.dtype)
    if kind is channels.DPSGD:
        channels.require_examples(client, batch_size)
    noise = {} if sigma is None else {"sigma": sigma}
    public = data.public(spec, root, without=range(index, index + batch_size)).x
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed((seed if noise_seed is None else noise_seed) + 1)
        if defence:
            update: Update = DenseUpdate(defences.share(client, x, y, defence, defence_settings)[None])
            sent = defences.sent(client, x, y, defence, defence_settings)
        else:
            update, sent = client.update(x, y), None
        g = kind.of(update, client, batch_size, public, **noise, **channel_settings).sample()
        g = g if sent is None else g * sent
    if not g.isfinite().all():
        raise BadInput("the client's update holds NaN or infinity: its weights or its local steps diverge")
    said = {"data": spec, "index": index, **_said_of_client(network, settings or {}, checkpoint, local)}
    observed = Observation(g, batch_size, y if labels_shared else None)
    return Target(client, observed, x, public, sigma, channel, channel_settings, defence, dict(defence_settings), said)


def resolve_channel(
    name: str, sigma: float | None = None, settings: Mapping[str, Any] | None = None, where: str = "--channel"
) -> tuple[type[channels.Channel], float | None, dict[str, Any]]:
    """A channel's class, its sigma (0.1 unless given; None where it has none), and all its other settings.

    Raises:
        BadInput: an unknown name or setting, or a value that the channel refuses; a sigma for a channel without one.
    """
    noise = {} if sigma is None else {"sigma": sigma}
    chosen = dict(channels.check(Named(name, {**(settings or {}), **noise}), where).settings)
    return channels.get(name), chosen.pop("sigma", None), chosen


def from_file(
    path: str | Path,
    *,
    network: str | None = None,
    settings: Mapping[str, Any] | None = None,
    checkpoint: str | Path | None = None,
    public: Tensor | None = None,
    seed: int = 0,
    dtype: Precision = "float32",
) -> Target:
    """What an observation file holds; `network` and `settings` override what it says of its network.

    `checkpoint` gives the weights where the file holds none.
    """
    shared = observation.load(path)
    meta = shared.metadata
    if not meta:
        raise BadInput(f"{path} has no pplleak metadata: wrap it with `pplleak observe --gradient {path} --network … "
                       "--input-shape …`")  # fmt: skip
    name = network or network_of(path, meta)
    settings = meta["settings"] if settings is None else settings
    programs.require_settings(networks.load(name), settings, str(path))
    defence, defence_settings = meta["defence"]["name"], meta["defence"]["settings"]
    if defence:
        defence_settings = defences.check(defence, defence_settings, str(path))
    client = build_client(
        name, settings, tuple(meta["input_shape"]), meta["num_classes"],
        seed=seed, dtype=dtype, parameters=shared.parameters, where=str(path),
        checkpoint=checkpoint, local=meta["local"], defence=defence, defence_settings=defence_settings,
    )  # fmt: skip
    g = observation.flatten(client, shared.gradient, str(path))
    labels = meta["labels"]
    if labels is not None:
        labels = observation.check_labels(labels, client.num_classes, meta["batch_size"])
    channel = meta["channel"]["name"]
    *_, channel_settings = resolve_channel(channel, meta["sigma"], meta["channel"]["settings"], str(path))
    said = {"observed": str(path), **_said_of_client(name, settings, checkpoint, meta["local"])}
    observed = Observation(g, meta["batch_size"], labels)
    return Target(
        client, observed, None, public, meta["sigma"], channel, channel_settings, defence, defence_settings, said
    )


def _said_of_client(
    network: str, settings: Mapping[str, Any], checkpoint: str | Path | None, local: LocalTraining | None
) -> dict[str, Any]:
    said: dict[str, Any] = {"network": network, "network_settings": dict(settings)}
    if checkpoint:
        said["checkpoint"] = str(checkpoint)
    return {**said, "local": asdict(local)} if local else said


def network_of(path: str | Path, metadata: Mapping[str, Any]) -> str:
    """The built-in network that a file names; it is looked up, never parsed.

    Raises:
        BadInput: the file names anything else. A file is never allowed to choose code to run.
    """
    name: str = metadata["network"]
    if name not in networks.names():
        raise BadInput(f"{path} was made with the network {name!r}, which is not a built-in one but code: if you trust "
                       f"it, say --network {name}")  # fmt: skip
    return name


def write_observation(target: Target, path: str | Path) -> None:
    """The observation file of a target: what `attack --observed` reads, and nothing of the truth."""
    client, observed = target.client, target.observed
    observation.save(
        path,
        client.split(observed.g),
        input_shape=client.input_shape,
        num_classes=client.num_classes,
        network=target.said["network"],
        settings=target.said["network_settings"],
        parameters=weights.state(client.network),
        batch_size=observed.batch_size,
        sigma=target.sigma,
        channel=target.channel,
        channel_settings=target.channel_settings,
        defence=target.defence,
        defence_settings=target.defence_settings,
        labels=None if observed.labels is None else observed.labels.tolist(),
        local=client.local,
    )


def with_surrogate(target: Target, beta: float) -> Target:
    """The same observation, to an adversary who believes in a softplus network: see `pplleak.density.surrogate`."""
    return replace(target, client=smoothed(target.client, beta), said={**target.said, "surrogate": beta})
