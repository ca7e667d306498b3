"""A posterior that `pplleak.density.kinks.perceptron` knows in closed form, read off a model by evaluating it.

Needs x affine in Gaussian latents (the prior `gaussian`), one example, its label and Gaussian noise; `prepare` checks
all of it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pplleak.channels import Gaussian
from pplleak.client import Client
from pplleak.density import Density, Model, build, require_told
from pplleak.density.kinks.perceptron import Perceptron, read
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation


@dataclass(frozen=True, eq=False)
class Affine:
    """x(z) = offset + slope z, (pixels,) and (pixels, dim);  z ~ Normal(centre, precision⁻¹)."""

    offset: Tensor
    slope: Tensor
    centre: Tensor
    precision: Tensor


def check(density: Density, net: Perceptron) -> None:
    """Raises BadInput unless, at random points, x is affine in z, z is Gaussian, and −log p(z | g) is net's energy and
    the prior's."""
    z = torch.randn(8, density.dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = torch.cat([z, z[:4] + z[4:], torch.zeros(1, density.dim)]).to(density.client.device)

    def bent(f: Tensor) -> Tensor:
        return f[:4] + f[4:8] - f[8:12] - f[12]  # zero where f is affine

    with torch.no_grad():
        theirs, x = -density(z), density.images(z)[0].flatten(1).double()
    prior, slope = density.value_and_grad(z, temperature=0.0)
    if not float(bent(x).abs().max()) <= 1e-8 * float(x.abs().max()):
        raise BadInput("inference refractive needs images affine in the model's latents, as with the prior gaussian: "
                       "use hmc on a smooth network, or a Gaussian prior")  # fmt: skip
    falls = bool(((slope[-1] - slope[:-1]) * z[:-1]).sum(1).gt(0).all())
    if not falls or not float(bent(slope).abs().max()) <= 1e-6 * float(slope.abs().max()):
        raise BadInput("inference refractive needs a Gaussian prior on the latents, as the prior gaussian is")
    first = net.layers[0]
    h = x @ first.weight.mT + first.bias
    gap = net.energy(h, first.pull(x), x.square().sum(1), net.pattern(h)) - prior - theirs
    if not float(gap.max() - gap.min()) <= 1e-6 * float(theirs.abs().max()):
        raise BadInput("inference refractive does not know this model's density: it needs z ~ Gaussian, x affine in z "
                       "and g ~ channels.Gaussian(client.update(x, y), sigma), and nothing more")  # fmt: skip


def read_affine(density: Density) -> Affine:
    """x(z) and the prior, read off a model that `check` passed by evaluating it."""
    zero = torch.zeros(1, density.dim, dtype=torch.float64, device=density.client.device)
    points = torch.cat([zero, torch.eye(density.dim).to(zero)])
    x = torch.cat([density.images(part)[0].flatten(1) for part in points.split(256)]).double()
    slope = torch.cat([density.value_and_grad(part, temperature=0.0)[1] for part in points.split(256)])
    precision = slope[0] - slope[1:]
    return Affine(x[0], (x[1:] - x[0]).mT, torch.linalg.solve(precision, slope[0]), (precision + precision.mT) / 2)


def prepare(model: Model, observed: Observation, client: Client) -> tuple[Density, Perceptron]:
    """The posterior in float64 and its network; raises BadInput where the sampler does not apply."""
    if observed.batch_size != 1:
        raise BadInput(f"inference refractive attacks one example, not a batch of {observed.batch_size}: share one")
    if observed.labels is None:
        raise BadInput("inference refractive needs the label: give it")
    read(client, observed.g, 0, 1.0)  # the network first: a model may take long to fit its prior
    client = replace(client, network=copy.deepcopy(client.network).double())
    labels, observed = observed.labels, replace(observed, g=observed.g.double())
    density = build(model, client, observed)
    require_told(density, "refractive")
    with torch.no_grad():
        zero = torch.zeros(1, density.dim, dtype=torch.float64, device=client.device)
        channel = density.trace(density.constrain(zero)[0], 1).nodes["g"]
    if not isinstance(channel["fn"], Gaussian):
        raise BadInput(
            f"inference refractive needs channels.Gaussian, but the model's channel is {type(channel['fn'])}"
        )
    net = read(client, observed.g, int(labels[0]), float(channel["fn"].sigma))
    check(density, net)
    return density, net


def obstacle(model: Model, observed: Observation, client: Client) -> str:
    """Why the closed form does not apply, in one line; "" where it does."""
    try:
        prepare(model, observed, client)
    except BadInput as error:
        return str(error)
    return ""
