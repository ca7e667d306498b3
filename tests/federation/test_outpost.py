"""Outpost: its noise lies where its equation says, and the zeros and the weights tell how wide it is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import batch_of, tiny
from scenes import from_data, known
from torch import Tensor

from pplleak import density, programs
from pplleak.client import Client
from pplleak.errors import BadInput
from pplleak.federation.defences import outpost
from pplleak.federation.observation import Observation
from pplleak.studies.attack.attack import believe

PHI, PRUNE, NOISE, SIGMA = 0.4, 0.7, 0.8, 0.01


def by_hand(client: Client, u: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which entries are kept, which get noise, and of which width, in numpy, tensor by tensor."""
    parts = {n: p.numpy() for n, p in client.split(u).items()}
    information = {n: (p**2).mean(0) for n, p in parts.items()}
    least = np.percentile(np.concatenate([np.ravel(f) for f in information.values()]), 100 * (1 - PHI))
    kept, noisy, widths = [], [], []
    for name, p in parts.items():
        theta = client.parameters[name].detach().numpy()
        kept.append((np.abs(p) >= np.percentile(np.abs(p), 100 * PRUNE)).ravel())
        noisy.append((np.ones_like(p) * (information[name] >= least)).ravel() > 0)
        widths.append(np.full(p.size, NOISE * min(1.0, theta.var(ddof=1))))
    return np.concatenate(kept), np.concatenate(noisy), np.concatenate(widths)


def test_it_prunes_every_tensor_and_adds_noise_where_the_information_is() -> None:
    client = tiny(shape=(1, 4, 4), widths=(12,))
    x, y = batch_of(client, size=2)
    u = client.update(x, y).materialise()
    kept, noisy, widths = (torch.as_tensor(t) for t in by_hand(client, u))
    assert 0 < noisy.sum() < len(noisy) and 0 < kept.sum() < len(kept) and len(widths.unique()) == 4
    asked = {"phi": PHI, "prune": PRUNE, "noise": NOISE}
    drawn = torch.stack([outpost.share(client, x, y, **asked) for _ in range(500)])
    assert torch.equal(outpost.sent(client, x, y, **asked), kept | noisy)
    assert torch.equal(drawn[:, ~noisy], (u * kept)[~noisy].expand(500, -1))
    standard = ((drawn - u * kept) / widths)[:, noisy]
    n = standard.numel()
    assert abs(float(standard.mean())) < 4 / math.sqrt(n)
    assert float(standard.square().mean()) == pytest.approx(1, abs=4 * math.sqrt(2 / n))
    assert float((standard * 1.1).square().mean()) != pytest.approx(1, abs=4 * math.sqrt(2 / n))


def test_it_perturbs_ever_more_rarely_and_what_is_sent_goes_with_what_is_shared() -> None:
    client = tiny(shape=(1, 4, 4), widths=(12,))
    x, y = batch_of(client)
    u, count = client.update(x, y).materialise(), 0
    for seed in range(400):
        torch.manual_seed(seed)
        torch.rand(seed % 3)  # whatever was drawn before
        g = outpost.share(client, x, y, beta=0.5, iteration=4)
        sent = outpost.sent(client, x, y, beta=0.5, iteration=4)
        assert torch.equal(g, u) == bool(sent.all())
        count += not sent.all()
    assert abs(count / 400 - 1 / 3) < 4 * math.sqrt(2 / 9 / 400) < abs(count / 400 - 1 / 2)
    assert all(outpost.perturbs(0.125, 0) for _ in range(3))


def test_who_knows_reads_the_noise_off_zeros_and_weights() -> None:
    client = tiny(shape=(1, 4, 4), widths=(12,))
    x, y = batch_of(client)
    u = client.update(x, y).materialise()
    kept, noisy, widths = (torch.as_tensor(t) for t in by_hand(client, u))
    g = outpost.share(client, x, y, phi=PHI, prune=PRUNE, noise=NOISE)
    found = outpost.believed(client, g, SIGMA, NOISE, PRUNE)
    assert torch.equal(found[kept & ~noisy], torch.full_like(found[kept & ~noisy], SIGMA))
    assert (found[noisy] >= widths[noisy]).all() and (found[noisy] > SIGMA).all()
    silent = ~kept & ~noisy
    assert (found[silent] >= u[silent].abs() - 4 * widths[silent]).all()
    assert (outpost.believed(client, u, SIGMA, NOISE, PRUNE) == SIGMA).all()  # no zero: it did not perturb
    public = torch.rand(30, *client.input_shape, generator=torch.Generator().manual_seed(3))
    target = known(client, Observation(g, 1, y), public=public, sigma=SIGMA)
    built = density.build(believe(programs.load("models", "outpost"), target, {"prune": PRUNE}), client, target)
    z = built.sample_prior(3)
    each = client.materialised(built.images(z)[0], y.expand(3, -1)).materialise()
    expected = -0.5 * ((g - each) / found).square().sum(-1)
    torch.testing.assert_close(built.terms(z)[1].detach().diff(), expected.diff())
    twin = -0.5 * ((g - each) / SIGMA).square().sum(-1)
    assert not torch.allclose(expected.diff(), twin.diff(), rtol=1e-2)


def test_what_no_client_can_have_is_refused() -> None:
    for settings, said in (({"phi": 0.0}, "phi must be above 0"), ({"prune": 1.0}, "prune must be above 0 and below"),
                           ({"iteration": -1}, "must not be negative")):  # fmt: skip
        with pytest.raises(BadInput, match=said):
            from_data(defence="outpost", defence_settings=settings)
