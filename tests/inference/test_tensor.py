"""Batches behind a smooth activation are exact, with their labels; what its assumptions do not hold of is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scenes import from_data

from pplleak import programs
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.inference import tensor
from pplleak.posterior import Posterior, metrics
from pplleak.studies.attack import attack

WIDE = {"widths": (1000,), "activation": "gelu"}


def psnr(target: Observation, found: Posterior) -> np.ndarray:
    assert target.truth is not None
    truth = target.truth.numpy()
    return metrics.psnr(found.mode[metrics.match(found.mode, truth)], truth)


@pytest.fixture(scope="module")
def target() -> Observation:
    return from_data(batch_size=8, settings=WIDE, sigma=1e-9, index=3)


@pytest.mark.parametrize("shared", [True, False])
def test_a_batch_is_exact_and_its_labels_are_told(target: Observation, shared: bool) -> None:
    found = attack.attack(target if shared else replace(target, labels=None), "optimal", "tensor")
    assert psnr(target, found).min() > 60 and found.converged
    assert target.truth is not None and target.labels is not None
    order = metrics.match(found.mode, target.truth.numpy())
    assert found.y[0, 0][order].tolist() == target.labels.tolist()


def test_gauss_and_newton_from_anywhere_and_one_order_alone_do_not_get_there(target: Observation) -> None:
    """The twins: without tensors; and an odd activation, which has none of order 2, where there is room for no more."""
    assert psnr(target, tensor.run(None, target, target.client, tries=0)).min() < 60
    odd = from_data(batch_size=8, settings={"widths": (256,), "activation": "tanh"}, sigma=1e-9, index=3)
    assert psnr(odd, tensor.run(None, odd, odd.client)).min() < 60
    wide = from_data(batch_size=8, settings={"widths": (1000,), "activation": "tanh"}, sigma=1e-9, index=3)
    assert psnr(wide, tensor.run(None, wide, wide.client)).min() > 60


def test_slices_are_those_of_the_examples() -> None:
    """Of a layer of very many units the coefficients are Stein's: tanh's third derivative, whole, at each example."""
    torch.manual_seed(0)
    units, r = 60_000, torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    y, seen = torch.tensor([[0.5, 0.1], [-0.2, 0.6]]).double(), torch.randn(units, 2, dtype=torch.float64)
    found = tensor.slices(seen, r @ torch.tanh(y @ seen.mT), 3)[1:]  # slices of order 3, along either axis
    z = y.norm(dim=1)[:, None] * torch.randn(2, 200_000, dtype=torch.float64)
    third = (-2 + 8 * z.tanh().square() - 6 * z.tanh() ** 4).mean(1)

    def cosine(weights: torch.Tensor) -> float:
        expected = torch.einsum("bk,bi,bj->kij", weights, y, y)
        return float((found * expected).sum() / found.norm() / expected.norm())

    assert cosine((r[0] * third)[:, None] * y) > 0.999
    assert abs(cosine((r[0] * third)[:, None] * y.roll(1, 0))) < 0.99 and abs(cosine(r.mT.expand(2, 2))) < 0.99


def test_a_span_from_the_tensors_alone_is_as_good_as_there_are_units() -> None:
    """Wang, Lee and Lei's own case, of which the error falls as 1/√units: from 2,000 to 32,000 by about four."""
    errors = []
    for width in (2_000, 32_000):
        target = from_data(batch_size=2, settings={"widths": (width,)}, sigma=1e-9, index=3)
        found = tensor.run(None, target, target.client, span="moments", steps=0)
        assert target.truth is not None
        truth = target.truth.flatten(1).numpy()
        x = found.mode[metrics.match(found.mode, target.truth.numpy())].reshape(2, -1)
        cosines = (x * truth).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(truth, axis=1)
        errors.append(float(np.mean(1 - cosines)))
    assert errors[1] < errors[0] / 4 and errors[1] < 0.05


def test_decomposed_slices_give_back_their_vectors_and_noise_does_not() -> None:
    torch.manual_seed(0)
    y = torch.nn.functional.normalize(torch.randn(5, 5, dtype=torch.float64), dim=1)
    weights = torch.randn(12, 5, dtype=torch.float64)
    found = tensor.decomposed(torch.einsum("kb,bi,bj->kij", weights, y, y), 8)
    torch.testing.assert_close((found @ y.mT).abs().amax(0), torch.ones(5, dtype=torch.float64))
    noise = tensor.decomposed(torch.randn(12, 5, 5, dtype=torch.float64), 8)
    assert (torch.nn.functional.normalize(noise, dim=1) @ y.mT).abs().amax(0).min() < 0.99


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"settings": {"widths": (256,), "activation": "relu"}}, "has a kink: take inference spear"),
        ({"settings": {"widths": (16,)}}, "take a first layer of 45 units, and this one has 16"),
        ({"network": "convnet", "settings": {"channels": (2, 2), "width": 4, "activation": "gelu"}}, "fully connected"),
        ({"network": "linear"}, "layer behind the first one is not a fully connected one"),
        ({"settings": WIDE, "loss": "mse"}, "the mean cross entropy"),
    ],
    ids=["kink", "narrow", "convolution", "no layer behind", "loss"],
)
def test_what_it_cannot_separate_is_refused(change: dict[str, object], said: str) -> None:
    target = from_data(batch_size=4, sigma=1e-9, **change)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=said):
        tensor.run(None, target, target.client)


def test_weights_that_are_no_draws_of_one_spread_and_biases_that_are_none_are_refused(target: Observation) -> None:
    for change, said in ((lambda p: p["1.weight"][:, :40].mul_(0.1), "no independent draws"),
                         (lambda p: p["1.bias"].zero_(), "biases are next to nothing")):  # fmt: skip
        other = from_data(batch_size=8, settings=WIDE, sigma=1e-9, index=3)
        change(other.client.parameters)
        with pytest.raises(BadInput, match=said):
            tensor.run(None, other, other.client)


def test_noise_that_leaves_the_gradient_unexplained_is_said() -> None:
    noisy = from_data(batch_size=8, settings=WIDE, sigma=0.01, index=3)
    assert "left unexplained" in tensor.run(None, noisy, noisy.client).reasons[0]


@pytest.mark.parametrize("name", ["imprint", "quotient", "rgap", "seer", "spear", "tensor"])
def test_a_gradient_with_a_nan_is_refused_by_all_that_read_off_it(target: Observation, name: str) -> None:
    broken = replace(target, g=target.g.index_fill(0, torch.tensor([5]), torch.nan))
    with pytest.raises(BadInput, match="holds NaN or infinity"):
        programs.load("inference", name)(None, broken, broken.client)


def test_a_gradient_of_nothing_is_refused(target: Observation) -> None:
    nothing = replace(target, g=torch.zeros_like(target.g))
    with pytest.raises(BadInput, match="is 0 throughout"):
        tensor.run(None, nothing, nothing.client)
