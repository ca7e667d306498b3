"""Billiard HMC: gates are exact in value, walls are met and crossed reversibly, draws are those of the posterior."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from billiards import DIM, NETWORKS, SHAPE, aimed, attack, cheaply, convolutional, each_network, normal, ungated
from torch import Tensor, nn

from pplleak.client import seeded
from pplleak.density import build
from pplleak.density.kinks import billiard as kernel
from pplleak.density.kinks import recordings, walls
from pplleak.density.kinks.gates import gated
from pplleak.density.whitening import Laplace
from pplleak.errors import BadInput
from pplleak.inference import billiard
from pplleak.models import dlg
from pplleak.posterior import convergence


@pytest.mark.slow
@each_network
def test_reversible_and_patterns_agree_with_the_position(network) -> None:  # type: ignore[no-untyped-def]
    field = aimed(network)
    state, p = kernel.place(field, normal(160, DIM, seed=7)), normal(160, DIM, seed=8)

    def travel(start: kernel.State, p: Tensor) -> tuple[kernel.State, Tensor, Tensor, Tensor]:
        w, h, pattern, force = start.w, start.h, start.pattern, start.force
        met, lost = torch.zeros(160, dtype=torch.long), torch.zeros(160, dtype=torch.bool)
        for _ in range(6):
            d = kernel.drift(field, w, p - 0.1 * (force - w), h, pattern, 0.2, 1.0)
            w, h, pattern, force = d.w, d.h, d.pattern, field.soft_energy_and_force(d.w, d.pattern, 1.0)[1]
            p, met, lost = d.p - 0.1 * (force - w), met + d.met, lost | d.lost
        return (
            kernel.State(w, field.energy(w, 1.0), *field.soft_energy_and_force(w, pattern, 1.0), h, pattern),
            p,
            met,
            lost,
        )

    end, q, met, lost = travel(state, p)
    assert int(met.sum()) > 100 and int((end.pattern != state.pattern).sum()) > 20
    kept = ~lost
    assert float(kept.double().mean()) > 0.8
    again = kernel.place(field, end.w)
    assert torch.equal(again.pattern[kept], end.pattern[kept])
    back, r, back_met, back_lost = travel(again, -q)
    assert not bool((back_lost & kept).any())
    torch.testing.assert_close(back.w[kept], state.w[kept], rtol=0, atol=1e-5)
    torch.testing.assert_close(-r[kept], p[kept], rtol=0, atol=1e-5)
    assert torch.equal(back_met[kept], met[kept]) and torch.equal(back.pattern[kept], state.pattern[kept])


def test_a_drift_whose_way_back_is_another_one_is_lost() -> None:
    """Long drifts, in which a wall may be crossed twice between two looks at it."""
    field = aimed(convolutional)
    state, p = kernel.place(field, normal(400, DIM, seed=7)), 2 * normal(400, DIM, seed=8)
    there = kernel.drift(field, state.w, p, state.h, state.pattern, 1.5, 1.0)
    back = kernel.drift(field, there.w, -there.p, there.h, there.pattern, 1.5, 1.0)
    home = ((back.w - state.w).abs().amax(1) < 1e-4) & (back.pattern == state.pattern).all(1)
    assert bool(home[~there.lost].all()) and float(home[there.lost].double().mean()) < 0.2
    assert 5 < int(there.lost.sum()) < 200 and int(there.met[~there.lost].sum()) > 400


@pytest.mark.slow
@ungated
def test_short_steps_conserve_energy_across_walls(network) -> None:  # type: ignore[no-untyped-def]
    field = aimed(network)
    state, start = kernel.place(field, normal(32, DIM, seed=10)), normal(32, DIM, seed=11)

    def error(steps: int, jumps: bool = True) -> float:
        w, h, pattern, force, p = state.w, state.h, state.pattern, state.force, start
        for _ in range(steps):
            d = kernel.drift(field, w, p - 0.5 / steps * (force - w), h, pattern, 1.0 / steps, 1.0, jumps)
            w, h, pattern, force = d.w, d.h, d.pattern, field.soft_energy_and_force(d.w, d.pattern, 1.0)[1]
            p = d.p - 0.5 / steps * (force - w)
        change = field.soft_energy(w, pattern, 1.0) - field.soft_energy(state.w, state.pattern, 1.0)
        return float((change + 0.5 * (p.square() - start.square()).sum(1)).abs().quantile(0.75))

    fine = error(60)
    assert fine < 0.3 * error(6)
    assert error(60, jumps=False) > 5 * fine


@pytest.mark.slow
def test_a_chain_flies_as_it_flies_alone() -> None:
    """Batches are made of whatever most chains wait for: who else is in them changes nothing."""
    field = aimed(NETWORKS["two dense"])
    state, p = kernel.place(field, normal(24, DIM, seed=18)), normal(24, DIM, seed=19)
    together, soft, force = kernel.trajectory(field, state, p, 0.3, 4)
    assert int(together.met.sum()) > 30 and len(together.met.unique()) > 3
    for i in range(0, 24, 4):
        one = kernel.State(*(t[i : i + 1] for t in vars(state).values()))
        alone, soft_alone, force_alone = kernel.trajectory(field, one, p[i : i + 1], 0.3, 4)
        assert int(alone.met) == int(together.met[i]) and bool(alone.lost) == bool(together.lost[i])
        if not bool(alone.lost):
            for a, b in ((alone.w, together.w), (alone.p, together.p), (soft_alone, soft), (force_alone, force)):
                torch.testing.assert_close(a[0], b[i], rtol=0, atol=1e-7)
    other, _, _ = kernel.trajectory(field, state, p, 0.3, 3)  # wrong twin: a drift less
    assert not torch.allclose(other.w, together.w, atol=1e-2)


def moments(z: Tensor) -> Tensor:
    return torch.cat([z, z.square(), z[..., :1] * z[..., 1:]], -1)


@functools.cache
def importance(network: Callable[[], nn.Module], sigma: float) -> tuple[Tensor, Tensor]:
    """Draws from the prior and the logarithms of their weights, which do not depend on how sharp the gates are."""
    exact, z = aimed(network, sigma).exact, normal(60_000, DIM, seed=12)
    with torch.no_grad():
        return z, torch.cat([exact(part) for part in z.split(20_000)]) + 0.5 * z.square().sum(1)


def deviation(field: walls.Field, network, sigma: float = 0.5, chains: int = 500, draws: int = 8) -> float:  # type: ignore[no-untyped-def]
    """Chains that start at the posterior must stay there: the largest change of a moment of z, in standard errors.

    The reference is importance sampling from the prior; chains start at its draws, picked by their weights.
    """
    z, log_weights = importance(network, sigma)
    weights = log_weights.softmax(0)
    assert float(1 / weights.square().sum()) > 500  # else the reference itself is not to be trusted
    expected = (weights[:, None] * moments(z)).sum(0)
    expected_se = (weights.square()[:, None] * (moments(z) - expected).square()).sum(0).sqrt()

    torch.manual_seed(0)
    picks = torch.multinomial(weights, chains, replacement=True)
    w = torch.linalg.solve(field.laplace.factor, (z[picks] - field.laplace.mode).mT).mT
    state, seen = kernel.place(field, w), []
    for _ in range(draws):
        state, _, _ = kernel.step(field, state, 0.45, 2)
        seen.append(moments(field.laplace.decode(state.w)))
    late = torch.stack(seen[draws // 2 :]).mean(0)  # chains are independent, the draws of one are not
    se = (late.var(0) / chains + expected_se.square()).sqrt()
    return float(((late.mean(0) - expected).abs() / se).max())


class Careless(walls.Field):
    """A target that never asks the true client: the gated network, taken at its word."""

    def energy(self, w: Tensor, power: float) -> Tensor:
        return self.soft_energy(w, self.walls(w) > 0, power)


@pytest.mark.slow
@each_network
def test_moments_equal_importance_sampling(network) -> None:  # type: ignore[no-untyped-def]
    field = aimed(network, sigma=0.5, beta=5.0)
    assert deviation(field, network) < 5


@pytest.mark.slow
def test_jumps_that_are_far_off_cost_acceptance_and_change_no_moment() -> None:
    field = cheaply(aimed(convolutional, sigma=0.5, beta=5.0))
    assert field.late is not None
    far = replace(field, late=replace(field.late, rest=field.late.rest + 1.0))
    assert deviation(far, convolutional) < 5
    state = kernel.place(field, normal(500, DIM, seed=7))
    near, off = (float(kernel.step(f, state, 0.45, 2)[1].acceptance.mean()) for f in (field, far))
    assert off < near - 0.02


@pytest.mark.slow
def test_a_sampler_that_never_asks_the_true_client_is_rejected() -> None:
    field = aimed(convolutional, sigma=0.5, beta=1.0)
    assert deviation(Careless(*vars(field).values()), convolutional, chains=1000) > 5


@pytest.mark.slow
def test_run() -> None:
    network = seeded(convolutional, 0).float()
    model, observed, client = attack(lambda: network, sigma=0.5)
    settings = {"seed": 1, "chains": 4, "draws": 4, "warmup": 3, "starts": 2, "steps": 20}
    found = [billiard.run(model, observed, client, **settings) for _ in range(2)]
    assert np.array_equal(found[0].x, found[1].x)
    assert found[0].x.shape == (4, 4, 1, *SHAPE) and found[0].kind == "sampler"
    assert found[0].stats["acceptance_rate"].mean() > 0.3
    assert found[0].stats["kinks"].sum() > 20


def test_chains_that_have_not_found_the_bulk_go_on_from_others() -> None:
    energy = torch.tensor([[90.0, 0.0, 0.0, 50.0, 0.0], *[[0.0, 50.0, 5.0, 55.0, -3.0]] * 7])
    assert billiard.untrapped(energy, 800).tolist() == [0, 0, 2, 2, 4]  # √400 = 20: what was first is not asked
    assert billiard.untrapped(energy, 8000).tolist() == [0, 1, 2, 3, 4]  # wrong twin: within what draws differ by
    assert billiard.untrapped(energy[:, :1], 800).tolist() == [0]


@pytest.mark.slow
def test_superchains_are_copies_of_the_chains_of_warm_up_and_are_judged_together() -> None:
    network = seeded(convolutional, 0).float()
    model, observed, client = attack(lambda: network, sigma=0.5)
    settings = {"seed": 1, "chains": 32, "draws": 5, "warmup": 4, "starts": 2, "steps": 20, "superchains": 4}
    found, still = (billiard.run(model, observed, client, **settings, settle=settle) for settle in (8, 0))
    assert found.x.shape == (32, 5, 1, *SHAPE) and found.attrs["superchains"] == 4
    assert found.rhat_max is not None and still.rhat_max is not None
    assert found.rhat_max < still.rhat_max and still.rhat_max > 1.1  # wrong twin: no draw is thrown away
    assert found.rhat_max < convergence.measure(found.x.reshape(32, 5, -1)).rhat.max()  # five draws alone tell little
    with pytest.raises(BadInput, match="32 chains cannot be cut into 5 superchains"):
        billiard.run(model, observed, client, **{**settings, "superchains": 5})


@pytest.mark.slow
def test_what_few_rows_ask_for_is_replayed_and_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    field = aimed(NETWORKS["conv"])
    for rows in (1, 3):
        w = normal(rows, DIM, seed=30 + rows)
        pattern, unit = field.walls(w) > 0, torch.arange(rows)
        asked = [  # and a wrong twin of each
            *((field._forces, (w, pattern, power), (w, ~pattern, power)) for power in (1.0, 0.37)),
            (field._energies, (w, pattern, 0.37), (w, pattern, 1.0)),
            (field._normals, (w, unit, None), (w, unit + 1, None)),
            (field._walls, (w, None), (w + 1, None)),
        ]
        for record, (*given, power), (*others, another) in asked:
            exponent = [] if power is None else [torch.tensor(power, dtype=torch.float64)]
            expected = record.plain(*given, *exponent)
            for _ in range(recordings.OFTEN):
                found = record(*given, power=power)
            assert rows in record.kept and record.kept[rows] is not record.plain
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
            assert not torch.equal(record(*others, power=another)[0], found[0])  # none of these are its constants

    def looks_at_values(*_: object) -> None:
        raise RuntimeError("it looks at values")

    monkeypatch.setattr(recordings.graphs, "recorded", looks_at_values)
    fresh = replace(field)
    with pytest.warns(RuntimeWarning, match="cannot be recorded.*looks at values") as caught:
        for rows in (1, 2):
            w = normal(rows, DIM, seed=30)
            pattern = field.walls(w) > 0
            for _ in range(recordings.OFTEN + 1):
                fresh.soft_energy_and_force(w, pattern, 1.0)
    assert len(caught) == 1


def test_batches_and_unknown_labels() -> None:
    """Two examples, labels summed out: the walls' pattern is that of every example, repeated for every label."""
    model, observed, client = attack(convolutional)
    density = build(model, client, replace(observed, batch_size=2, labels=None))
    laplace = Laplace(torch.zeros(2 * DIM).double(), torch.eye(2 * DIM).double(), 0.0, 0)
    field = billiard.soften(density, gated(client, 1e5), laplace)
    w = normal(10, 2 * DIM, seed=13)
    h = field.walls(w)
    assert h.shape == (10, 2 * 12)
    torch.testing.assert_close(field.soft_energy(w, h > 0, 1.0), field.energy(w, 1.0))
    assert not torch.allclose(field.soft_energy(w, h < 0, 1.0), field.energy(w, 1.0))
    state, _, walk = kernel.step(field, kernel.place(field, w), 0.2, 3)
    assert int(walk.walls.sum()) > 0 and bool(state.energy.isfinite().all())


def test_images_that_are_not_affine_in_the_latents() -> None:
    _, observed, client = attack(convolutional)
    density = build(partial(dlg.model, sigma=0.3), client, observed)
    laplace = Laplace(torch.zeros(DIM).double(), torch.eye(DIM).double(), 0.0, 0)
    field = billiard.soften(density, gated(client, 20.0), laplace)
    w = normal(10, DIM, seed=14)
    assert field.affine is None
    torch.testing.assert_close(field.images(w), density.images(w)[0])
    affine = aimed(convolutional)
    assert affine.affine is not None
    torch.testing.assert_close(affine.images(w), affine.exact.images(affine.laplace.decode(w))[0])


class Clamped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=0.1)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)), "smooth"),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 5), Clamped(), nn.Linear(5, 3)), "clamp"),
    ],
)
def test_says_where_it_does_not_apply(network: nn.Module, said: str) -> None:
    model, observed, client = attack(lambda: network.double())
    with pytest.raises(BadInput, match=said) as caught:
        billiard.run(model, observed, client, chains=4, draws=2, warmup=2, steps=2)
    assert "\n" not in str(caught.value)
