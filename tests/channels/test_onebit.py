"""One bit an entry with error feedback: nothing is lost over the rounds, and the scale tells what signs do not."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import batch_of, tiny

from pplleak import channels
from pplleak.channels import _simulated, onebit
from pplleak.client.update import DenseUpdate
from pplleak.errors import BadInput

ROUNDS, SIZE, SIGMA = 6, 40, 0.3


def first(u: torch.Tensor, sigma: float = SIGMA) -> channels.OneBit:
    nothing = torch.zeros(u.shape[-1], dtype=torch.float64)
    return channels.OneBit(DenseUpdate(u[..., None, :]), sigma, mean=nothing, variance=nothing)


def test_what_was_sent_and_what_is_left_is_all_there_was() -> None:
    """Karimireddy et al. 2019, the telescoping sum behind theorem II; signs without feedback lose the difference."""
    updates = torch.randn(ROUNDS, 3, SIZE, dtype=torch.float64)
    sent, left = torch.zeros(3, SIZE, dtype=torch.float64), torch.zeros(3, SIZE, dtype=torch.float64)
    for k, u in enumerate(updates):
        sent += onebit.compressed(u + left)
        left = onebit.residuals(updates[: k + 1])
    torch.testing.assert_close(sent + left, updates.sum(0))
    without = sum(onebit.compressed(u) for u in updates)
    assert (without + left - updates.sum(0)).abs().max() > 0.1
    with pytest.raises(BadInput, match="at least one round"):
        onebit.residuals([])


def test_densities_of_all_signs_and_scales_sum_to_one() -> None:
    """Five entries, 32 patterns of signs, an integral over the scale: up to the saddle point's error of order 1/D."""
    u, s = torch.tensor([0.4, -0.25, 0.1, 0.5, -0.05], dtype=torch.float64), torch.linspace(1e-3, 3, 400).double()
    patterns = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=5)), dtype=torch.float64)
    g = (s[:, None, None] * patterns).flatten(0, 1)
    total = first(u.expand(len(g), 5)).log_prob(g).exp().sum() * (s[1] - s[0])
    assert float(total) == pytest.approx(1, abs=0.03)
    halved = (first(u.expand(len(g), 5)).log_prob(g) / 2).exp().sum() * (s[1] - s[0])
    assert float(halved) != pytest.approx(1, abs=0.1)


def test_the_scale_tells_how_large_an_update_is_and_signs_do_not() -> None:
    torch.manual_seed(0)
    u = torch.randn(2000, dtype=torch.float64)
    factors = torch.linspace(0.5, 2, 31, dtype=torch.float64)
    g = first(u, 0.01).sample()
    tried = factors[:, None] * u
    told, signs = first(tried, 0.01).log_prob(g), channels.Sign(DenseUpdate(tried[:, None]), 0.01).log_prob(g.sign())
    likely = [factors[v > v.max() - 2] for v in (told, signs)]  # within two nats
    assert float(likely[0].mean()) == pytest.approx(1, abs=0.03) and len(likely[0]) == 1
    assert likely[1].max() - likely[1].min() > 0.7


def test_the_server_believes_in_the_residuals_of_simulated_clients() -> None:
    client = tiny()
    update, public = client.update(*batch_of(client)), torch.rand(20, *client.input_shape)
    made = channels.OneBit.of(update, client, 1, public, 0.1, rounds=4, simulated=50)
    rounds = torch.stack([_simulated.updates(client, public, 1, 50, seed=k) for k in range(4)]).double()
    left = torch.stack([onebit.residuals(rounds[:, n]) for n in range(50)])  # client by client
    torch.testing.assert_close(made.shift, left.mean(0))
    torch.testing.assert_close(made.spread, 0.01 + left.var(0))
    assert not torch.allclose(made.spread, 0.01 + rounds.var(1)[-1])  # the twin: of updates, not of what they leave
    none = channels.OneBit.of(update, client, 1, None, 0.1, rounds=0)
    assert not none.shift.any() and torch.allclose(none.spread, torch.tensor(0.01).double())


def test_far_out_it_is_finite_and_has_slopes() -> None:
    """A search begins where the update is nothing like what was shared, hundreds of standard deviations away."""
    torch.manual_seed(0)
    u = torch.randn(SIZE, dtype=torch.float64)
    g = first(u, 1e-3).sample()
    for far in (-u, 100 * u, -100 * u, 1e-4 * u):
        at = far.clone().requires_grad_()
        value = first(at, 1e-3).log_prob(g)
        (slope,) = torch.autograd.grad(value, at)
        assert value.isfinite() and slope.isfinite().all() and slope.abs().max() > 0
        step = 1e-7 * slope / slope.norm() * at.detach().norm()
        gained = first(at.detach() + step, 1e-3).log_prob(g) - first(at.detach() - step, 1e-3).log_prob(g)
        assert float(gained) == pytest.approx(float(2 * slope @ step), rel=1e-3)


@pytest.mark.parametrize(
    ("g", "said"),
    [(torch.tensor([1.0, -1.0, 0.5]), "signs times one scale"), (torch.zeros(3), "signs times one scale")],
)
def test_what_is_no_sign_times_a_scale_is_refused(g: torch.Tensor, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        first(torch.ones(3, dtype=torch.float64)).log_prob(g)


def test_a_residual_needs_public_images_and_settings_that_are_some() -> None:
    client = tiny()
    update = client.update(*batch_of(client))
    with pytest.raises(BadInput, match="needs public images"):
        channels.OneBit.of(update, client, 1, None)
    for settings, said in (({"rounds": -1}, "rounds must be"), ({"simulated": 1}, "simulated must be")):
        with pytest.raises(BadInput, match=said):
            channels.OneBit.require(**{"sigma": 0.1, "rounds": 1, "simulated": 2, **settings})  # type: ignore
