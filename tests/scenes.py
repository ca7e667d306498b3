"""Scenarios and observations as the tests write them: in one call, with the channel and the defence said apart."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pplleak.client import Client
from pplleak.federation import scenario
from pplleak.federation.observation import Observation
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import Scenario, observe
from pplleak.settings import Named

Settings = Mapping[str, Any] | None
BUILT: dict[str, Client] = {}
PLAIN = {"dtype", "local", "loss", "seed", "normalise", "mode"}  # what a client is built with besides files and tensors


def protection(
    channel: str = "gaussian",
    channel_settings: Settings = None,
    sigma: float | None = None,
    defence: str = "",
    defence_settings: Settings = None,
) -> Protection:
    """A defence and a channel, whose σ is 0.1 unless it is given."""
    from pplleak import channels

    named = channels.check(Named(channel, channel_settings or {}).with_(sigma=sigma))
    return Protection(Named(defence, defence_settings or {}) if defence else None, named)


def from_data(
    data: str = "digits",
    *,
    root: Path | None = None,
    network: str = "mlp",
    settings: Settings = None,
    labels_shared: bool = True,
    sigma: float | None = None,
    channel: str = "gaussian",
    channel_settings: Settings = None,
    defence: str = "",
    defence_settings: Settings = None,
    **more: Any,
) -> Observation:
    """What a client shares of real images; the rest as in `Scenario`."""
    return observe(
        Scenario(
            data,
            root,
            network=Named(network, settings or {}),
            labels="known" if labels_shared else "unknown",
            protection=protection(channel, channel_settings, sigma, defence, defence_settings),
            **more,
        )
    )


def known(
    client: Client,
    observed: Observation,
    *,
    sigma: float | None = None,
    channel: str = "gaussian",
    channel_settings: Settings = None,
    defence: str = "",
    defence_settings: Settings = None,
    public: Tensor | None = None,
    **more: Any,
) -> Observation:
    """The same observation with what its adversary knows; without a σ, nothing is known of the channel."""
    said = Protection() if sigma is None and channel == "gaussian" and not defence else protection(
        channel, channel_settings, sigma, defence, defence_settings
    )  # fmt: skip
    return replace(observed, client=client, protection=said.filled(), public=public, **more)


def build_client(
    network: str,
    settings: Settings,
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    defence: str = "",
    defence_settings: Settings = None,
    **more: Any,
) -> Client:
    """A client by its network's name and settings, and its defence's: built and checked once, and a copy for every
    caller."""
    named = Named(defence, defence_settings or {}) if defence else None
    said = repr((network, settings, input_shape, num_classes, named, sorted(more.items())))
    if said in BUILT:
        return copy.deepcopy(BUILT[said])
    made = scenario.build_client(Named(network, settings or {}), input_shape, num_classes, defence=named, **more)
    if ".py:" not in network and set(more) <= PLAIN:
        BUILT[said] = copy.deepcopy(made)
    return made


SEPARATING: dict[str, Any] = {"widths": (64,), "activation": "relu"}  # a perceptron whose first layer can be crafted


def crafted_weights(folder: Path) -> Path:
    """A checkpoint of it that a malicious server has crafted."""
    from safetensors.torch import save_file

    from pplleak import data
    from pplleak.studies.crafted import crafted

    path = folder / "weights.safetensors"
    save_file(crafted.imprinted(from_data(settings=SEPARATING).client, data.public("digits").x), path)
    return path


def of_crafted(checkpoint: Path | None, index: int, batch_size: int, **more: Any) -> Observation:
    """What its client shares, all but exactly."""
    return from_data(batch_size=batch_size, settings=SEPARATING, checkpoint=checkpoint, index=index, sigma=1e-9, **more)
