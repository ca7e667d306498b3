"""Billiard HMC: gates are exact in value, walls are met and crossed reversibly, draws are those of the posterior."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pplleak.client import Client, networks, seeded
from pplleak.density import build
from pplleak.density.kinks import billiard as kernel
from pplleak.density.kinks import tuning, walls
from pplleak.density.kinks.gates import SoftMaxPool, gated
from pplleak.density.whitening import Laplace
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.inference import billiard
from pplleak.models import dlg, optimal

SHAPE, DIM = (1, 2, 2), 4
IMAGES = torch.rand(50, *SHAPE, generator=torch.Generator().manual_seed(1))  # one tensor: cached by identity


def convolutional(*, activation: str = "relu", pool: str = "avg") -> nn.Module:
    """The paper's CNN in small: convolution, pooling, a dense layer; weights large enough for kinks to matter."""
    act = {"relu": nn.ReLU, "leaky_relu": partial(nn.LeakyReLU, 0.3)}[activation]
    pooling = {"avg": nn.AvgPool2d(2), "max": nn.MaxPool2d(2)}[pool]
    layers = (nn.Conv2d(1, 4, 3, padding=1), act(), pooling, nn.Flatten(), nn.Linear(4, 12), act(), nn.Linear(12, 3))
    network = nn.Sequential(*layers).double()
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(2.5)
    return network


def curved() -> nn.Module:
    """Smooth before the dense layer, whose walls are then smooth and curved, and no gate blurs the energy."""
    network = convolutional()
    network[1] = nn.GELU()
    return network


NETWORKS = {
    "conv": convolutional,
    "leaky conv, max pooling": partial(convolutional, activation="leaky_relu", pool="max"),
    "curved walls": curved,
    "two dense": lambda: networks.get("mlp")(SHAPE, 3, widths=(6, 5), activation="relu").double(),
}
each_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
ungated = pytest.mark.parametrize("network", [NETWORKS["curved walls"], NETWORKS["two dense"]])


def attack(network, sigma=0.3):  # type: ignore[no-untyped-def]
    client = Client(seeded(network, 0), SHAPE, 3)
    generator = torch.Generator().manual_seed(2)
    y = torch.tensor([1])
    u = client.update(IMAGES[:1].to(client.dtype), y).materialise().double()
    g = u + sigma * torch.randn(u.shape, generator=generator, dtype=torch.float64)
    model = partial(optimal.model, sigma=sigma, reference=IMAGES, prior="gaussian:floor=0.4")
    return model, Observation(g.to(client.dtype), 1, y), client


def aimed(network, sigma=0.3, beta=20.0):  # type: ignore[no-untyped-def]
    """The field in some whitened coordinates with a dense factor."""
    model, observed, client = attack(network, sigma)
    generator = torch.Generator().manual_seed(3)
    factor = 0.8 * torch.eye(DIM) + 0.1 * torch.randn(DIM, DIM, generator=generator)
    laplace = Laplace(torch.randn(DIM, generator=generator).double(), factor.double(), 0.0, 0)
    return billiard.soften(build(model, client, observed), gated(client, beta), laplace)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@each_network
def test_gates_keep_the_value_and_tend_to_the_true_update(network) -> None:  # type: ignore[no-untyped-def]
    _, _, client = attack(network)
    x, y = normal(20, 1, *SHAPE, seed=4), torch.tensor([1])
    errors = []
    for beta in (20.0, 200.0, 1e5):
        gates = gated(client, beta)
        h = gates.preactivations(x)
        gates.hold(h > 0)
        torch.testing.assert_close(gates.client.network(x[:, 0]), client.network(x[:, 0]))
        gap = gates.client.update(x, y).materialise() - client.update(x, y).materialise()
        errors.append(float(gap.square().mean().sqrt()))
    assert errors[2] < 1e-6
    if len(gates.taps) < sum(isinstance(m, nn.ReLU | nn.LeakyReLU) for m in client.network):  # some are gates
        assert errors[0] > errors[1] > errors[2]
    gates.hold(~(h > 0))  # wrong twin: the other side of every wall
    assert not torch.allclose(gates.client.update(x, y).materialise(), client.update(x, y).materialise(), atol=0.1)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d((2, 3), (1, 2), (1, 0))])
def test_soft_max_pooling_has_the_pools_value_and_in_the_limit_its_slope(pool: nn.MaxPool2d) -> None:
    x = normal(2, 3, 7, 6, seed=5).requires_grad_()
    v = torch.randn_like(pool(x))
    (expected,) = torch.autograd.grad((pool(x) * v).sum(), x)
    soft = SoftMaxPool(pool, 1e6)
    torch.testing.assert_close(soft(x), pool(x))
    torch.testing.assert_close(torch.autograd.grad((soft(x) * v).sum(), x)[0], expected)
    (soft_slope,) = torch.autograd.grad((SoftMaxPool(pool, 1.0)(x) * v).sum(), x)
    assert not torch.allclose(soft_slope, expected, atol=0.1)


@each_network
def test_the_next_wall_is_the_first_one(network) -> None:  # type: ignore[no-untyped-def]
    field = aimed(network)
    w, p = normal(64, DIM, seed=6), normal(64, DIM, seed=7)
    one = torch.ones(len(w)).double()
    h, h_end = field.walls(w), field.walls(walls.turned(w, p, one)[0])
    hit = walls.beyond(h_end, h > 0).any(1)
    assert int(hit.sum()) > 20
    w, p, h, h_end = w[hit], p[hit], h[hit], h_end[hit]
    t, unit, h_at, failed = walls.next_wall(field, w, p, one[hit], h > 0, h, h_end)
    assert not failed.any()
    at = field.walls(walls.turned(w, p, t)[0])
    torch.testing.assert_close(h_at, at, rtol=0, atol=1e-10)
    assert float(at.gather(1, unit[:, None]).abs().max()) < 1e-10
    before = torch.stack(
        [(field.walls(walls.turned(w, p, f * t)[0]) > 0) == (h > 0) for f in np.linspace(0, 0.999, 200)]
    )
    share = before.all(0).all(1).double().mean()
    assert share > 0.9  # but for a wall that is crossed twice on the way, no unit switches earlier


@each_network
def test_reversible_and_patterns_agree_with_the_position(network) -> None:  # type: ignore[no-untyped-def]
    field = aimed(network)
    state, p = kernel.place(field, normal(256, DIM, seed=7)), normal(256, DIM, seed=8)

    def travel(start: kernel.State, p: Tensor) -> tuple[kernel.State, Tensor, Tensor, Tensor]:
        w, h, pattern, force = start.w, start.h, start.pattern, start.force
        met, lost = torch.zeros(256, dtype=torch.long), torch.zeros(256, dtype=torch.bool)
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


@ungated
def test_short_steps_conserve_energy_across_walls(network) -> None:  # type: ignore[no-untyped-def]
    field = aimed(network)
    state, start = kernel.place(field, normal(64, DIM, seed=10)), normal(64, DIM, seed=11)

    def error(steps: int, jumps: bool = True) -> float:
        w, h, pattern, force, p = state.w, state.h, state.pattern, state.force, start
        for _ in range(steps):
            d = kernel.drift(field, w, p - 0.5 / steps * (force - w), h, pattern, 1.0 / steps, 1.0, jumps)
            w, h, pattern, force = d.w, d.h, d.pattern, field.soft_energy_and_force(d.w, d.pattern, 1.0)[1]
            p = d.p - 0.5 / steps * (force - w)
        change = field.soft_energy(w, pattern, 1.0) - field.soft_energy(state.w, state.pattern, 1.0)
        return float((change + 0.5 * (p.square() - start.square()).sum(1)).abs().quantile(0.75))

    assert error(80) < 0.3 * error(8)
    assert error(80, jumps=False) > 5 * error(80)


def on_walls(field: walls.Field, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """w on walls, the pattern before and the unit: the first ones on random arcs."""
    w, p, time = normal(count, DIM, seed=15), normal(count, DIM, seed=16), torch.ones(count).double()
    h, h_end = field.walls(w), field.walls(walls.turned(w, p, time)[0])
    hit = walls.beyond(h_end, h > 0).any(1)
    t, unit, _, failed = walls.next_wall(field, w[hit], p[hit], time[hit], h[hit] > 0, h[hit], h_end[hit])
    return walls.turned(w[hit], p[hit], t)[0][~failed], (h[hit] > 0)[~failed], unit[~failed]


def cheaply(field: walls.Field) -> walls.Field:
    """The same field with ΔV from the late layers, whatever that leaves out."""
    assert field.gates.late is not None
    density = replace(field.soft, client=field.gates.late)
    units = field.walls(torch.zeros(1, DIM).double()).shape[1]
    return replace(field, late=(density, torch.zeros(units).double()))


def test_a_jump_of_the_late_layers_changes_its_sign_with_the_direction_and_is_near_the_whole_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tuning, "VAGUE", 10.0)
    field = aimed(convolutional)
    names = {"4.weight", "4.bias", "6.weight", "6.bias"}
    assert field.gates.late is not None and set(field.gates.late.late) == names
    assert aimed(NETWORKS["two dense"]).gates.late is None  # no layer is early there
    w, pattern, unit = on_walls(field, 200)
    fitted = tuning.calibrated(field, kernel.place(field, normal(64, DIM, seed=17)))
    assert fitted.late is not None and float(fitted.late[1].abs().max()) > 0
    whole = field.jump(w, pattern, unit, 1.0)
    torch.testing.assert_close(whole, -field.jump(w, kernel.flipped(pattern, unit), unit, 1.0))
    errors = []
    for cheap in (fitted, cheaply(field)):
        found = cheap.jump(w, pattern, unit, 1.0)
        torch.testing.assert_close(found, -cheap.jump(w, kernel.flipped(pattern, unit), unit, 1.0))
        errors.append(float((found - whole).square().mean().sqrt()))
    assert 0 < errors[0] < errors[1]  # another function than ΔV, which a Metropolis test on U makes up for


def test_a_late_update_is_the_whole_one_of_the_late_layers() -> None:
    client = attack(convolutional)[2]
    gates = gated(client, 20.0)
    late = gates.late
    assert late is not None
    x, y = normal(20, 1, *SHAPE, seed=4), torch.tensor([1])
    gates.hold(gates.preactivations(x) > 0)
    found, whole = (c.update(x, y).materialise() for c in (late, gates.client))
    for name, where in client.slices.items():
        expected = whole[:, where] if name in late.late else torch.zeros_like(whole[:, where])
        torch.testing.assert_close(found[:, where], expected)
        assert float(whole[:, where].abs().max()) > 1e-3


def test_cheap_jumps_are_refused_where_the_layers_before_the_walls_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    field = aimed(convolutional)
    state = kernel.place(field, normal(64, DIM, seed=17))
    monkeypatch.setattr(tuning, "VAGUE", 1e-6)
    assert tuning.calibrated(field, state).late is None


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


def test_a_crossing_is_guessed_on_the_parabola_through_three_points() -> None:
    def t(h: Tensor) -> Tensor:  # a parabola t(h) with t(b) = 0, t(a) = 1 and its zero at 0.4
        return 0.4 + 0.7 * h + 0.2 * h.square()

    before, after = ((-0.7 + (0.49 - 0.8 * (0.4 - at)) ** 0.5) / 0.4 for at in (0.0, 1.0))
    ends = [torch.tensor([[end]], dtype=torch.float64) for end in (before, after, 0.3)]
    at = t(ends[2])[:, 0]
    assert float(walls.crossing(*ends, at)) == pytest.approx(0.4, abs=1e-12)
    chord = before / (before - after)
    assert abs(chord - 0.4) > 0.02
    assert float(walls.crossing(*ends, at * float("nan"))) == pytest.approx(chord)
    assert float(walls.crossing(*ends, at + 50)) == pytest.approx(chord)  # a parabola that leaves the bracket


def test_the_best_candidate_wins_by_effective_draws_a_force(monkeypatch: pytest.MonkeyPatch) -> None:
    field = aimed(NETWORKS["two dense"])
    state = kernel.place(field, normal(4, DIM, seed=20))
    seen: list[int] = []

    def trajectory(field, state, size, steps):  # type: ignore[no-untyped-def]
        seen.append(steps)
        acceptance = torch.full((4,), {4: 0.2, 8: 0.8, 16: 0.9}[steps])
        return state, SimpleNamespace(acceptance=acceptance), kernel.Walk(torch.full((4,), 5), acceptance)

    monkeypatch.setattr(tuning, "step", trajectory)
    best, _ = tuning.contest([tuning.Trial(field, n) for n in (16, 4, 8)], state, 7)
    assert seen == [16, 4, 8, 8, 16, 8, 8] and best.steps == 8  # .67 / 13 beats .82 / 21 and .11 / 9
    assert best.worth == pytest.approx(0.8 / 1.2 / 13, rel=1e-5)
    none, _ = tuning.contest([tuning.Trial(field, n) for n in (16, 4)], state, 0)
    assert none.steps == 16


def moments(z: Tensor) -> Tensor:
    return torch.cat([z, z.square(), z[..., :1] * z[..., 1:]], -1)


@functools.cache
def importance(network: Callable[[], nn.Module], sigma: float) -> tuple[Tensor, Tensor]:
    """Draws from the prior and the logarithms of their weights, which do not depend on how sharp the gates are."""
    exact, z = aimed(network, sigma).exact, normal(60_000, DIM, seed=12)
    with torch.no_grad():
        return z, torch.cat([exact(part) for part in z.split(20_000)]) + 0.5 * z.square().sum(1)


def deviation(field: walls.Field, network, sigma: float = 0.5, chains: int = 1000, draws: int = 12) -> float:  # type: ignore[no-untyped-def]
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
    assert deviation(replace(field, late=(field.late[0], field.late[1] + 1.0)), convolutional) < 5


@pytest.mark.slow
def test_a_sampler_that_never_asks_the_true_client_is_rejected() -> None:
    field = aimed(convolutional, sigma=0.5, beta=1.0)
    assert deviation(Careless(*vars(field).values()), convolutional) > 5


@pytest.mark.slow
def test_run() -> None:
    network = seeded(convolutional, 0).float()
    model, observed, client = attack(lambda: network, sigma=0.5)
    settings = {"seed": 1, "chains": 4, "draws": 8, "warmup": 6, "starts": 2, "steps": 20}
    found = [billiard.run(model, observed, client, **settings) for _ in range(2)]
    assert np.array_equal(found[0].x, found[1].x)
    assert found[0].x.shape == (4, 8, 1, *SHAPE) and found[0].kind == "sampler"
    assert found[0].stats["acceptance_rate"].mean() > 0.3
    assert found[0].stats["kinks"].sum() > 20


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
