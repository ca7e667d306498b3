"""What an inference found, in flat coordinates, as a `Posterior` of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pplleak.client import Client
from pplleak.density import Density
from pplleak.density.surrogate import Surrogate, log_ratio
from pplleak.federation.observation import Observation
from pplleak.posterior import diagnostics
from pplleak.posterior.diagnostics import Kind
from pplleak.posterior.posterior import Posterior


def collect(
    density: Density,
    z: Tensor,
    *,
    mode: Tensor,
    kind: Kind,
    stats: dict[str, Tensor] | None = None,
    curves: dict[str, Tensor] | None = None,
    log_weights: Tensor | None = None,
    approximation: str = "",
    reasons: Sequence[str] = (),
    attrs: dict[str, Any] | None = None,
    given: dict[str, Tensor] | None = None,
    best_given: dict[str, Tensor] | None = None,
) -> Posterior:
    """What an inference found, in flat coordinates, as a `Posterior` of images.

    Where the client is a surrogate, the result is labelled an approximation, and the log-weights of its draws include
    how far the density of the client itself lies from the surrogate's: k-hat then judges the surrogate, too. Examples
    that nothing tells apart stand in the order nearest to the mode (`diagnostics.relabelled`).

    Args:
        z: (chain, draw, dim). mode: (dim,). The rest as in `Posterior`, as tensors.
        given: the values of the sites in `Density.moved` at every draw, (chain, draw, *event_shape), of an inference
            that moves through them; best_given: at the mode, (1, *event_shape).
    """

    def array(t: Tensor) -> np.ndarray:
        return t.detach().cpu().numpy()

    if isinstance(density.client, Surrogate):
        if kind == "sampler" or log_weights is not None:
            ratio = log_ratio(density, density.client, z.flatten(0, 1))
            log_weights = ratio if log_weights is None else ratio + log_weights
        kind = "approximate sampler" if kind == "sampler" else kind
        approximation = "; ".join(filter(None, (density.client.approximation, approximation)))
    beside = {n: v.flatten(0, 1).split(256) for n, v in (given or {}).items()}
    parts = [
        (density.fixed({n: v[k] for n, v in beside.items()}) if beside else density).images(part)
        for k, part in enumerate(z.flatten(0, 1).split(256))
    ]
    x, y = (array(torch.cat([p[k] for p in parts]).unflatten(0, z.shape[:2])) for k in (0, 1))
    best = array((density.fixed(best_given) if best_given else density).images(mode[None])[0][0])
    if density.exchangeable:
        labels = density.observed.labels
        x, y = diagnostics.relabelled(x, y, best, None if labels is None else array(labels))
    scalars = {s.name: array(s.transform(z[..., s.where])[..., 0]) for s in density.sites if s.shape == ()}
    return Posterior(
        x=x,
        y=y,
        latents=scalars,
        mode=best,
        kind=kind,
        stats={n: array(t) for n, t in (stats or {}).items()},
        curves={n: array(t) for n, t in (curves or {}).items()},
        log_weights=None if log_weights is None else array(log_weights),
        approximation=approximation,
        reasons=tuple(reasons),
        attrs=dict(attrs or {}),
        g=array(density.observed.g),
    )


def in_range(client: Client, x: Tensor) -> Tensor:
    """Images x clamped to [0, 1]; a table's encoded records as they are."""
    return x if client.columns is not None else x.clamp(0, 1)


def read_off(
    client: Client, observed: Observation, x: Tensor, y: Tensor, how: str, reasons: Sequence[str] = ()
) -> Posterior:
    """Images that were read off g in closed form, whatever the model: a posterior of one draw.

    Args:
        x: (batch, pixels), or of the images' own shape; as `in_range` leaves them. y: (batch,).
        how: what is the closed form.
    """
    images = in_range(client, x).to(client.dtype).reshape(-1, *client.input_shape).cpu().numpy()
    return Posterior(
        x=images[None, None],
        y=y.cpu().numpy()[None, None],
        mode=images,
        kind="point",
        reasons=tuple(reasons),
        attrs={"closed_form": how},
        g=observed.g.cpu().numpy(),
    )
