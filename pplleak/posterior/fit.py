"""Does the model explain the observation at all? Asked of the images that were found, by the channel's own law.

An attack on a client that is another one than its adversary believes (another loss, other weights, inputs normalised
outside the network) ends in a sharp and wrong image. What shows it is the misfit, not the convergence. For Gaussian
noise, with residual r = g − u(x) of D entries,

    χ² = ‖r‖² / σ²,   overall and for every parameter,   two-sided                 (Gelman et al. 1996)
    c = ⟨g, u⟩ / ‖u‖²  ±  σ / ‖u‖:   1 where the client's loss is scaled as the adversary's is
    Σ_k ∂ℓ/∂b_k = 0  ±  σ √K:   of the last layer's bias, for every cross entropy with K classes

and for any other channel T = −log p(g | u(x)) against T of replicates g' ~ p(g | u(x)).

(x, g) with x a draw from p(x | g) has the law of (truth, g). So χ² of a draw is χ²(D), exactly, under the model, and
the mean over a few draws is no wider. A mode has bent towards g, in at most as many directions as it has coordinates d:
its χ² is expected between D − d and D, and what counts is the distance from that band.

Real images are no draws from the prior. How far one stretches it is judged by what held-out public images do.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pplleak import channels
from pplleak.channels.gaussian import Gaussian
from pplleak.client.last_layer import last_layer
from pplleak.density import Density, build
from pplleak.density.decrement import polish
from pplleak.density.room import ROOM
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.posterior import fit_words, tokens
from pplleak.posterior.diagnostics import CHAINS
from pplleak.posterior.misfit import Misfit
from pplleak.posterior.posterior import Posterior
from pplleak.priors.gaussian import fit_gaussian

DRAWS = 8  # posterior draws that are looked at
STEPS = 3  # of Newton's method, from a point in closed form
PRIOR_DRAWS = 64  # from which the prior's sd is taken: each pixel's to 9 %, their mean far better


@dataclass(frozen=True)
class Fit:
    """How well the model explains g; None where something is not defined for this model or channel.

    fits             no doubt is left; None: it could not be looked at
    chi2_per_entry   χ² / D, of a channel with Gaussian noise
    chi2_sd          standard deviations of χ² (of another channel: of −log p(g | u)) from what the model expects
    p                p-value of the worst look, overall or one parameter, times the number of looks
    layers           parameter -> standard deviations of its χ² from what is expected
    scale, scale_se  c = ⟨g, u⟩ / ‖u‖² and its standard error
    scale_bent       how far from 1 the prior may have pulled c at a mode: (c − 1) ‖u‖² / σ² is the slope of the prior
                     along the direction in which u grows, and up to ‖z‖², which is about d
    last_scale, last_scale_se   the same of the last bias's gradient alone, against draws from the prior: at the image
                     that was found, x has bent to take up much of a wrong scale
    bias_sum, bias_sum_se   Σ_k of the last bias's gradient, and its standard error
    outside          the farthest that a pixel lies outside [0, 1], in standard deviations of the prior
    prior_stretch    squared Mahalanobis distance to the public images, in that of the farthest held-out one of them
    signal_to_noise  ‖g‖ / (σ √D): 1 where there is nothing but noise
    prior_sd         standard deviation of a pixel under the prior, mean over pixels
    sd_ratio         posterior sd over prior sd, each averaged over pixels (constant pixels would drown their ratio)
    cause            in one word, what else explains the gradient, where that was looked for; "" where nothing does
    cause_nats       by which its evidence is above the model's
    doubts           what speaks against the model, in plain words; the likeliest cause first
    """

    fits: bool | None = None
    chi2_per_entry: float | None = None
    chi2_sd: float | None = None
    p: float | None = None
    layers: Mapping[str, float] = field(default_factory=dict)
    scale: float | None = None
    scale_se: float | None = None
    scale_bent: float = 0.0
    last_scale: float | None = None
    last_scale_se: float | None = None
    bias_sum: float | None = None
    bias_sum_se: float | None = None
    outside: float | None = None
    prior_stretch: float | None = None
    signal_to_noise: float | None = None
    prior_sd: float | None = None
    sd_ratio: float | None = None
    cause: str | None = None
    cause_nats: float | None = None
    doubts: tuple[str, ...] = ()

    def explained(self, name: str, words: str, nats: float) -> Fit:
        """The same with its cause, which comes first among the doubts; last where none was looked for: no name and no
        nats."""
        lead = f"explained {nats:.0f} nats better by {words}" if nats > 0 and name else words
        kept = fit_words.beside(self) if name else list(self.doubts)
        doubts = (lead, *kept) if name or nats else (*kept, lead)
        return dataclasses.replace(self, cause=name, cause_nats=nats, doubts=doubts)

    def plain(self) -> dict[str, Any]:
        """As JSON holds it: no infinity and no NaN."""

        def number(v: Any) -> Any:
            return None if isinstance(v, float) and not math.isfinite(v) else v

        kept = {n: number(v) for n, v in dataclasses.asdict(self).items()}
        return {**kept, "layers": {n: number(v) for n, v in self.layers.items()}, "doubts": list(self.doubts)}


def look(model: Callable[..., Any], observed: Observation, posterior: Posterior, prior: str = "") -> Fit:
    """How well a model, with its beliefs bound, explains an observation at what an inference found.

    Args:
        prior: the name of the model's prior, where it has one: how far `gaussian` and `ppca` are stretched is known.

    Raises:
        BadInput: p(g | x) cannot be had at an image alone: the model has latents beside x that g depends on.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        density = build(model, observed.client, observed, moves=True)
        if posterior.attrs.get("order") is not None:  # where it was moved through
            density = density.fixed({"order": torch.tensor(posterior.attrs["order"])[None]})
        point = posterior.kind not in CHAINS  # draws of a fitted family are none from p(x | g)
        if posterior.attrs.get("closed_form"):
            posterior = _nearest(posterior, observed)
        found = [_channel(density, *seen) for seen in _looked_at(posterior, observed, point)]
        made = Misfit(observed, found, density.dim if point else 0)
        numbers: dict[str, Any] = {**made.misfit(), **made.scale(), **made.bias()}
        numbers |= _spread(density, observed, posterior, made.sigma)
        if prior in ("gaussian", "ppca"):
            numbers |= _stretch(observed, posterior)
    fit = Fit(**numbers)
    doubts = tuple(fit_words.doubts(fit, observed.batch_size))
    return dataclasses.replace(fit, doubts=doubts, fits=None if fit.chi2_sd is None and not doubts else not doubts)


def _nearest(posterior: Posterior, observed: Observation) -> Posterior:
    """A point that was read off some of g's entries, moved to where all of them have it: by a few truncated Newton
    steps on ‖g − u(x)‖² / 2σ². Its own errors are no misfit of the model's."""
    sigma, client = observed.sigma, observed.client
    if not sigma or client.vocabulary is not None:  # token ids have no neighbourhood
        return posterior
    x = torch.as_tensor(posterior.mode).to(client.device, client.dtype)
    y = torch.as_tensor(posterior.y).reshape(-1, len(x))[0] if observed.labels is None else observed.labels

    def log_density(z: Tensor) -> Tensor:
        u = client.update(z.reshape(-1, *x.shape), y.to(client.device).expand(len(z), -1))
        return -0.5 * u.sqdist(observed.g) / sigma**2

    with torch.enable_grad():
        z, _ = polish(log_density, x.flatten(), STEPS)
    return posterior.with_(mode=z.reshape(x.shape).cpu().numpy())


_Seen = tuple[Tensor, Tensor | None, dict[str, Tensor]]


def _looked_at(posterior: Posterior, observed: Observation, point: bool) -> list[_Seen]:
    """The images x (batch, *input_shape) at which the fit is asked for, each with its labels where they are known, and
    with the scalar latents of the model."""
    scalars = {n: torch.as_tensor(v).flatten() for n, v in posterior.latents.items()}
    if point:  # of a fitted family the mode alone is looked at, with what its draws say of the rest
        labels = torch.as_tensor(posterior.y[0, 0]) if posterior.attrs.get("moved") else observed.labels
        return [(torch.as_tensor(posterior.mode), labels, {n: v.median() for n, v in scalars.items()})]
    y = posterior.y.reshape(len(posterior.draws), -1)
    picks = torch.linspace(0, len(posterior.draws) - 1, min(DRAWS, len(posterior.draws))).long().tolist()
    return [
        (torch.as_tensor(posterior.draws[k]), torch.as_tensor(y[k]), {n: v[k] for n, v in scalars.items()})
        for k in picks
    ]


def _channel(density: Density, x: Tensor, y: Tensor | None, scalars: dict[str, Tensor]) -> channels.Channel:
    """p(g | u(x, y)) at one batch; labels that are not given are the most probable ones there."""
    chains, client = 2, density.client
    latents, _ = density.constrain(density.sample_prior(chains))
    x = x.to(client.device, client.dtype)
    values = {**latents, "x": x.expand(chains, *x.shape), **{n: v.expand(chains) for n, v in scalars.items()}}
    if y is None:
        prior = density.trace(values, chains).nodes["y"]["fn"]
        support = prior.enumerate_support(expand=False).reshape(-1, 1, density.observed.batch_size)
        node = density.trace({**values, "y": support}, chains).nodes["g"]
        joint = node["fn"].log_prob(node["value"]).double() + prior.log_prob(support).double()
        y = support[int(joint[:, 0].argmax()), 0]
    y = y.to(client.device)
    if "order" in density.discrete or "order" in density.moved:  # the likeliest, as of labels
        values["order"] = _likeliest_order(density, {**values, "y": y.expand(chains, -1)}, chains)
    given = {**values, "y": y.expand(chains, -1)} if density.observed.labels is None else values
    law = density.trace(given, chains).nodes["g"]["fn"]
    a, b = law.log_prob(density.observed.g).double().expand(chains)
    if not torch.allclose(a, b, rtol=10 * torch.finfo(client.dtype).eps, atol=1e-6, equal_nan=True):
        raise BadInput("the gradient depends on latents beside the images: how well they fit is not known from images")
    if not isinstance(law, channels.Channel):
        raise BadInput("the model's gradient comes from no channel of pplleak")
    return law


def _likeliest_order(density: Density, values: dict[str, Tensor], chains: int) -> Tensor:
    """The order of a client that shuffles under which g is most probable, of those that the density knows."""
    if "order" in density.given:
        return density.given["order"]
    if "order" not in density.discrete:
        raise BadInput("the order of the client's examples is not known")
    support = density.discrete["order"][:, None]
    node = density.trace({**values, "order": support}, chains).nodes["g"]
    return support[int(node["fn"].log_prob(node["value"])[:, 0].argmax())]


def _spread(density: Density, observed: Observation, posterior: Posterior, sigma: float | None) -> dict[str, float]:
    """The prior's sd, the posterior's in it, and how far pixels lie outside of [0, 1]."""
    count = max(8, min(PRIOR_DRAWS, ROOM // density.client.update_size))  # fewer of a large network
    nodes = density.trace({}, count).nodes
    x = nodes["x"]["value"].double().cpu()
    if len(x) != count or not x.isfinite().all():
        return {}
    if density.client.vocabulary is not None:  # ids are no numbers: what differs between two draws
        mean = tokens.spread(x.numpy())
        ratio = {} if posterior.kind == "point" or not mean else {"sd_ratio": tokens.spread(posterior.draws) / mean}
        return {"prior_sd": mean, **_last_scale(nodes["g"]["fn"], observed, sigma), **ratio}
    prior = x.flatten(0, 1).std(0)  # of a pixel; examples are alike before anything is seen
    mean = float(prior.mean())
    centre = torch.as_tensor(posterior.mode if posterior.kind == "point" else posterior.mean).double()
    beyond = (centre - centre.clamp(0, 1)).abs() / prior.clamp(min=1e-3)
    outside = {} if density.client.columns is not None else {"outside": float(beyond.max())}  # records have no box
    found = {"prior_sd": mean, **outside, **_last_scale(nodes["g"]["fn"], observed, sigma)}
    return (
        found if posterior.kind == "point" or not mean > 0 else {**found, "sd_ratio": float(posterior.sd.mean()) / mean}
    )


def _last_scale(law: Any, observed: Observation, sigma: float | None) -> dict[str, float]:
    """c of the last bias alone, averaged over draws from the prior, and its standard error (they differ, and noise)."""
    law, client = getattr(law, "clipped", law), observed.client
    if observed.labels is None or sigma is None or not isinstance(law, Gaussian):
        return {}
    try:
        where = client.slices[last_layer(client).bias]
    except (BadInput, KeyError):
        return {}
    u, b = law.update.part(where).double(), observed.g[where].double()
    square = u.square().sum(1)
    c = (u @ b) / square
    return {
        "last_scale": float(c.mean()),
        "last_scale_se": math.hypot(float(c.std()), sigma / float(square.mean()) ** 0.5),
    }


def _stretch(observed: Observation, posterior: Posterior) -> dict[str, float]:
    """Mahalanobis distance² from half of the public images, in that of the farthest image of the other half."""
    public = observed.public
    if public is None or len(public) < 20:
        return {}
    flat = public[torch.linspace(0, len(public) - 1, min(len(public), 4000)).long()].double().cpu()
    fitted, held = fit_gaussian(flat[::2]), flat[1::2]

    def distance(images: Tensor) -> Tensor:
        return fitted.encode(images).square().sum(1)

    own = distance(torch.as_tensor(posterior.mode).double())
    return {"prior_stretch": float(own.max() / distance(held).max())}
