"""What billiard moves among: gates are exact in value, walls are found, and jumps are near where they are cheap."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from billiards import DIM, NETWORKS, SHAPE, aimed, attack, cheaply, convolutional, deep, each_network, normal
from torch import Tensor, nn

from pplleak.density.kinks import billiard as kernel
from pplleak.density.kinks import recordings, tuning, walls
from pplleak.density.kinks.gates import SoftMaxPool, gated
from pplleak.density.kinks.head import Head
from pplleak.inference import billiard


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


def on_walls(field: walls.Field, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """w on walls, the pattern before and the unit: the first ones on random arcs."""
    w, p, time = normal(count, DIM, seed=15), normal(count, DIM, seed=16), torch.ones(count).double()
    h, h_end = field.walls(w), field.walls(walls.turned(w, p, time)[0])
    hit = walls.beyond(h_end, h > 0).any(1)
    t, unit, _, failed = walls.next_wall(field, w[hit], p[hit], time[hit], h[hit] > 0, h[hit], h_end[hit])
    return walls.turned(w[hit], p[hit], t)[0][~failed], (h[hit] > 0)[~failed], unit[~failed]


@each_network
def test_a_jump_is_what_the_energy_changes_by_across_the_wall_and_its_normal_the_walls(network) -> None:  # type: ignore[no-untyped-def]
    field = aimed(network, beta=1e6)  # gates so sharp that nothing else changes in a step of 1e-9
    w, pattern, unit = on_walls(field, 200)
    n, jump = field.meet(w, pattern, unit, 0.5)
    assert jump is not None
    ahead, behind = (field.walls(w + s * 1e-6 * n)[torch.arange(len(w)), unit] for s in (1, -1))
    torch.testing.assert_close((ahead - behind) / 2e-6, n.square().sum(1), rtol=1e-3, atol=1e-6)
    side = (1 - 2 * pattern.gather(1, unit[:, None]).double()) * n / n.norm(dim=1, keepdim=True)
    over, back = (field.energy(w + s * 1e-9 * side, 0.5) for s in (1, -1))
    torch.testing.assert_close(jump, over - back, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(jump, -field.jump(w, kernel.flipped(pattern, unit), unit, 0.5))
    other = field.jump(w, pattern, (unit + 1) % pattern.shape[1], 0.5)
    assert not torch.allclose(other, over - back, atol=0.1)  # a wrong twin: of the unit beside it


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
    assert fitted.late is not None and float(fitted.late.rest.abs().max()) > 0
    whole = field.jump(w, pattern, unit, 1.0)
    torch.testing.assert_close(whole, -field.jump(w, kernel.flipped(pattern, unit), unit, 1.0))
    errors = []
    for cheap in (fitted, cheaply(field)):
        found = cheap.jump(w, pattern, unit, 1.0)
        torch.testing.assert_close(found, -cheap.jump(w, kernel.flipped(pattern, unit), unit, 1.0))
        errors.append(float((found - whole).square().mean().sqrt()))
    assert 0 < errors[0] < errors[1]  # another function than ΔV, which a Metropolis test on U makes up for


@pytest.mark.parametrize(
    "network", [convolutional, NETWORKS["leaky conv, max pooling"], deep], ids=["conv", "leaky", "deep"]
)
def test_jumps_in_closed_form_are_those_of_the_late_layers(network, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(tuning, "VAGUE", 100.0)
    field = aimed(network)
    w, pattern, unit = on_walls(field, 200)
    fitted = tuning.calibrated(field, kernel.place(field, normal(64, DIM, seed=17))).late
    assert fitted is not None and isinstance(fitted.late, Head)
    none = torch.zeros_like(fitted.rest)
    slow, fast, other = (
        replace(field, late=walls.LateJumps(late, 1.0, none)).jump(w, pattern, unit, 0.5)
        for late in (cheaply(field).late.late, fitted.late, replace(fitted.late, net=replace(fitted.late.net, label=0)))
    )
    torch.testing.assert_close(fast, slow)
    assert not torch.allclose(other, slow, atol=0.1)  # a wrong twin: of another label
    n, jump = replace(field, late=fitted).meet(w, pattern, unit, 0.5)
    torch.testing.assert_close(jump, replace(field, late=fitted).jump(w, pattern, unit, 0.5))
    again = replace(field, late=fitted)
    for _ in range(recordings.OFTEN + 1):  # the last ones are replayed
        few = again.meet(w[:3], pattern[:3], unit[:3], 0.5)
    torch.testing.assert_close(few, (n[:3], jump[:3]))
    ahead, behind = (field.walls(w + s * 1e-6 * n)[torch.arange(len(w)), unit] for s in (1, -1))
    torch.testing.assert_close((ahead - behind) / 2e-6, n.square().sum(1), rtol=1e-3, atol=1e-6)


def test_no_closed_form_is_taken_for_another_density(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "VAGUE", 100.0)
    field = aimed(convolutional)
    state = kernel.place(field, normal(64, DIM, seed=17))
    smoothed = replace(field.exact.client, loss="cross_entropy:label_smoothing=0.3")
    other = billiard.soften(replace(field.exact, client=smoothed), gated(smoothed, 20.0), field.laplace)
    late = tuning.calibrated(other, state).late
    assert late is not None and not isinstance(late.late, Head)


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
