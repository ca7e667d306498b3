"""Patches: their energy against loops over tilings, its bound, and what is learnt of images."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from conftest import batch_of, tiny
from torch import Tensor
from torch.distributions import MultivariateNormal

from pplleak import density, priors, programs
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.priors.patches import Patches, fit
from pplleak.priors.uniform import Box
from pplleak.settings import Named
from pplleak.studies.attack.attack import believe


def a_prior(shape: tuple[int, ...] = (2, 5, 7), side: int = 4, stride: int = 2, components: int = 3) -> Patches:
    generator = torch.Generator().manual_seed(2)
    pixels = shape[0] * side**2
    roots = 0.2 * torch.randn(components, pixels, pixels, generator=generator, dtype=torch.float64).tril()
    roots.diagonal(0, 1, 2).abs_().add_(0.2)
    means = torch.rand(components, pixels, generator=generator, dtype=torch.float64)
    weights = torch.rand(components, generator=generator, dtype=torch.float64)
    return Patches(weights / weights.sum(), means, roots, side, stride, shape)


def tilings(prior: Patches, image: Tensor) -> list[float]:
    """log-density of one image under every tiling, tile by tile: of a tile that the border cuts, that of its rest."""
    channels, rows, columns = prior.input_shape
    covariances, side, found = prior.roots @ prior.roots.mT, prior.side, []
    for down, right in itertools.product(range(0, side, prior.stride), repeat=2):
        total = 0.0
        for top, left in itertools.product(range(down - side, rows, side), range(right - side, columns, side)):
            values, cells = [], []
            for c, i, j in itertools.product(range(channels), range(side), range(side)):
                if 0 <= top + i < rows and 0 <= left + j < columns:
                    values.append(image[c, top + i, left + j])
                    cells.append((c * side + i) * side + j)
            if values:
                laws = [MultivariateNormal(m[cells], v[cells][:, cells])
                        for m, v in zip(prior.means, covariances, strict=True)]  # fmt: skip
                each = torch.stack([law.log_prob(torch.stack(values)) for law in laws])
                total += float((each + prior.weights.log()).logsumexp(0))
        found.append(total)
    return found


@pytest.mark.parametrize(
    ("shape", "side", "stride"), [((2, 5, 7), 4, 2), ((1, 4, 4), 3, 1), ((1, 2, 3), 2, 2), ((1, 3, 8), 3, 3)]
)
def test_the_energy_is_the_mean_over_tilings_tile_by_tile(shape: tuple[int, ...], side: int, stride: int) -> None:
    prior = a_prior(shape, side, stride)
    x = torch.rand(2, 3, *shape, dtype=torch.float64)  # two chains of three images
    each = [[tilings(prior, image) for image in chain] for chain in x]
    expected = torch.tensor([[-sum(t) / len(t) for t in chain] for chain in each], dtype=torch.float64).sum(1)
    assert len(each[0][0]) == (side // stride) ** 2
    torch.testing.assert_close(prior.energy(x), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(prior.log_prob(x[0]).sum(), -expected[0])
    whole = replace(prior, stride=side).energy(x)  # the twin: one tiling, which is the mean only where there is one
    assert torch.allclose(whole, expected) == (side == stride)


def test_without_its_normaliser_it_lies_below_the_log_density() -> None:
    """∫ exp(−energy) ≤ 1, on a grid; of whole patches alone, which the border leaves out, it is infinite or larger."""
    generator = torch.Generator().manual_seed(3)
    roots = torch.stack([torch.diag(0.12 + 0.1 * torch.rand(4, generator=generator)) for _ in range(2)]).double()
    roots[0, 1, 0], roots[0, 3, 2], roots[1, 2, 0] = 0.1, -0.1, 0.1
    means = 0.3 + 0.4 * torch.rand(2, 4, generator=generator, dtype=torch.float64)
    prior = Patches(torch.tensor([0.3, 0.7], dtype=torch.float64), means, roots, 2, 1, (1, 2, 2))
    edges = -0.5 + 2 * (torch.arange(31, dtype=torch.float64) + 0.5) / 31
    x = torch.cartesian_prod(*[edges] * 4).reshape(-1, 1, 2, 2)
    mass = float(torch.cat([prior.each(part).exp() for part in x.split(100_000)]).sum()) * (2 / 31) ** 4
    assert 0.05 < mass < 0.99
    assert prior.bound
    one = replace(prior, stride=2)  # a single tiling is normalised
    assert float(torch.cat([one.each(p).exp() for p in x.split(100_000)]).sum()) * (2 / 31) ** 4 == pytest.approx(
        1, abs=0.01
    )
    (whole,) = [law for law in prior._laws if len(law[0].rows) == len(law[0].columns) == 2]
    z = (x.flatten(1) @ whole[1] - whole[2]).unflatten(-1, (2, -1))
    alone = (whole[3] - 0.5 * z.square().sum(-1)).logsumexp(-1) / 4  # a quarter of the whole patch, and no others
    assert float(alone.exp().sum()) * (2 / 31) ** 4 > 1


def streaks(count: int, seed: int) -> Tensor:
    """Images of stripes, upright or level, of any phase: no Gaussian knows that they are the one or the other."""
    generator = torch.Generator().manual_seed(seed)
    phase = 6.28 * torch.rand(count, 1, 1, generator=generator)
    wave = 0.5 + 0.4 * torch.sin(1.5 * torch.arange(9.0) + phase)  # (count, 1, 9)
    upright = torch.rand(count, 1, 1, generator=generator) < 0.5
    image = torch.where(upright, wave.expand(-1, 9, 9), wave.mT.expand(-1, 9, 9))
    return (image + 0.05 * torch.randn(count, 9, 9, generator=generator))[:, None]


@pytest.mark.slow  # a fit
def test_what_is_fitted_knows_the_shapes_of_what_it_was_fitted_to() -> None:
    public, unseen = streaks(300, 0), streaks(60, 9)
    prior = fit(public, components=8, side=4, patches=6000, epochs=25, floor=0.03)
    one = fit(public, components=1, side=4, patches=6000, epochs=1, floor=0.03)  # the twin: one Gaussian of patches
    loss = prior.log_prob(unseen) - one.log_prob(unseen)
    assert float(loss.mean() / loss.std()) * len(loss) ** 0.5 > 5
    shuffled = unseen.flatten(1)[:, torch.randperm(81)].reshape(unseen.shape)
    assert float((prior.log_prob(unseen) - prior.log_prob(shuffled)).min()) > 50


def test_it_counts_with_the_likelihood_and_stands_in_a_model() -> None:
    client = tiny(shape=(1, 4, 4), dtype="float64")
    x, y = batch_of(client)
    public = torch.rand(30, 1, 4, 4, dtype=torch.float64)
    seen = Observation(client.update(x, y).materialise().detach(), 1, y, client, public=public)
    made = fit(public, components=2, side=2, patches=200, epochs=3)
    with pytest.MonkeyPatch.context() as patch:
        from pplleak.priors import patches

        patch.setattr(patches, "trained", lambda *_: made)
        beliefs = {"prior": "patches", "channel": "gaussian", "sigma": 0.3}
        built = density.build(believe(programs.load("models", "optimal"), seen, beliefs), client, seen)
        flat = density.build(believe(programs.load("models", "optimal"), seen, {**beliefs, "prior": "uniform"}),
                             client, seen)  # fmt: skip
        z = built.sample_prior(5)
        images = built.constrain(z)[0]["x"]
        torch.testing.assert_close(built(z), flat(z) - made.energy(images).double(), rtol=1e-6, atol=1e-5)
        torch.testing.assert_close(built(z, temperature=0.0), flat(z, temperature=0.0))
        torch.testing.assert_close(built.recorded(5)(z)[1], built.value_and_grad(z)[1], rtol=1e-5, atol=1e-5)
        of_model = priors.make(Named("patches"), client, public)
    assert isinstance(of_model.base, Box) and not hasattr(of_model, "draw")  # type: ignore[union-attr]


def test_what_cannot_be_fitted_is_one_line_and_small_images_have_small_patches() -> None:
    with pytest.raises(BadInput, match="channels, rows, columns"):
        fit(torch.rand(10, 4))
    with pytest.raises(BadInput, match="side"):
        fit(torch.rand(10, 1, 4, 4), side=0)
    small = fit(torch.rand(10, 1, 3, 5), epochs=1, patches=50, components=2)
    assert (small.side, small.stride) == (3, 1)
    assert torch.isfinite(small.log_prob(torch.rand(2, 1, 3, 5))).all()
