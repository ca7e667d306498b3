"""The recorded log-density against the plain one: the same numbers; and what must not be recorded."""

from __future__ import annotations

import copy
import functools
import warnings

import pytest
import torch
from scenes import from_data
from torch import Tensor, nn

from pplleak import density
from pplleak.client import Client
from pplleak.density import footprint
from pplleak.density.recording import tape
from pplleak.density.recording.tape import Chunked, Plain, Quadratics, Tape
from pplleak.federation.observation import Observation
from pplleak.models import cpl, dlg, optimal
from pplleak.priors._principal import Dense
from pplleak.priors.gaussian import FittedGaussian, fit_gaussian
from pplleak.studies.attack.attack import believe

NETWORKS = {
    "mlp gelu": ("mlp", {"widths": (20,), "activation": "gelu"}),
    "deep softplus": ("mlp", {"widths": (20, 12), "activation": "softplus"}),
    "relu": ("mlp", {"widths": (20,), "activation": "relu"}),
    "linear": ("linear", {}),
    "lenet": ("lenet", {}),
}


def target_of(name: str, *, batch_size: int = 1, labels_shared: bool = True, sigma: float = 0.1) -> Observation:
    network, settings = NETWORKS[name]
    return from_data(network=network, settings=settings, dtype="float64", batch_size=batch_size, sigma=sigma,
                     labels_shared=labels_shared)  # fmt: skip


def built(model, target: Observation) -> density.Density:
    return density.build(believe(model, target), target.client, target)


def plain(d: density.Density) -> Plain:
    return Plain(d)


def assert_same(fast, slow, z: Tensor, tolerance: float = 1e-9) -> None:
    (value, gradient), (value_, gradient_) = fast(z), slow(z)
    torch.testing.assert_close(value, value_, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradient, gradient_, rtol=tolerance, atol=tolerance * float(gradient_.abs().max()))


STATES = [(1, True), (2, True), (1, False)]  # of the batch and of its labels


@pytest.mark.slow
@pytest.mark.parametrize("state", range(len(STATES)), ids=["one", "two", "unknown label"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_tape_replays_the_density(name, state) -> None:
    """Of every network in every state, under two models in turn, so that each pair of the three is met."""
    model = (optimal.model, dlg.model)[(list(NETWORKS).index(name) + state) % 2]
    batch_size, labels_shared = STATES[state]
    d = built(model, target_of(name, batch_size=batch_size, labels_shared=labels_shared))
    recorded = d.recorded(3)
    assert isinstance(recorded, Tape)
    torch.manual_seed(1)
    assert_same(recorded, plain(d), torch.randn(3, d.dim, dtype=torch.float64))


def test_a_model_that_compares_labels_is_recorded() -> None:
    """torch's own one_hot looks at their values, which no recording may."""
    d = built(cpl.model, target_of("linear"))
    recorded = d.recorded(3)
    assert isinstance(recorded, Tape)
    torch.manual_seed(1)
    assert_same(recorded, plain(d), torch.randn(3, d.dim, dtype=torch.float64))


@pytest.mark.usefixtures("quick_priors")
@pytest.mark.parametrize("state", STATES, ids=["one", "two", "unknown label"])
@pytest.mark.parametrize("prior", ["class_gaussian", "class_mixture", "class_vae", "class_flow"])
def test_a_prior_of_each_class_is_recorded(prior: str, state: tuple[int, bool]) -> None:
    """It asks which classes the labels are, which a recording takes for constants."""
    target = target_of("linear", batch_size=state[0], labels_shared=state[1])
    d = built(functools.partial(optimal.model, prior=prior), target)
    recorded = d.recorded(3)
    assert isinstance(recorded, Tape)
    torch.manual_seed(1)
    assert_same(recorded, plain(d), torch.randn(3, d.dim, dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp gelu", "lenet"])
def test_a_tape_of_a_channel_that_weighs_entries(name) -> None:
    network, settings = NETWORKS[name]
    target = from_data(network=network, settings=settings, dtype="float64", channel="masked",
                       channel_settings={"rate": 0.5})  # fmt: skip
    d = built(optimal.model, target)
    recorded = d.recorded(3)
    assert isinstance(recorded, Tape)
    assert_same(recorded, plain(d), torch.randn(3, d.dim, dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp gelu", "lenet"])
def test_a_tape_under_an_affine_map(name) -> None:
    d = built(optimal.model, target_of(name))
    torch.manual_seed(1)
    shift, factor = torch.randn(d.dim, dtype=torch.float64), torch.randn(d.dim, d.dim, dtype=torch.float64) / 8
    w = torch.randn(4, d.dim, dtype=torch.float64)
    fast, slow = d.recorded(4).under(shift, factor), plain(d).under(shift, factor)
    assert_same(fast, slow, w)
    assert_same(fast.under(-shift, factor.mT), slow.under(-shift, factor.mT), w)
    assert_same(fast.under(-shift, None), slow.under(-shift, None), w)
    assert_same(d.recorded(4).under(shift, None), plain(d).under(shift, None), w)
    assert not torch.allclose(fast(w)[0], d.recorded(4)(w)[0])


def test_the_image_is_never_formed() -> None:
    """Only W x, G x and two quadratic forms of z are left of it: prior and ‖x‖²."""
    d = built(optimal.model, target_of("mlp gelu"))
    recorded = d.recorded(3)
    assert isinstance(recorded, Tape)
    assert [like[0].numel() for like in recorded.linear.likes] == [20, 20]
    assert [h.dim() for h in recorded.quadratics.hessians] == [1, 1]  # diagonal: PCA coordinates


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [1e-1, 1e-2, 1e-3, 1e-4])
def test_a_float32_tape_is_no_rougher_than_the_plain_density(ratio, monkeypatch) -> None:
    """Around the posterior at σ/‖g‖ = `ratio`, against the same weights and prior promoted to float64."""
    sigma = ratio * float(target_of("mlp gelu").g.norm())
    target = from_data(network="mlp", settings=NETWORKS["mlp gelu"][1], sigma=sigma)
    assert target.public is not None
    assert target.truth is not None
    model = believe(optimal.model, target)
    narrow = density.build(model, target.client, target)
    network = copy.deepcopy(target.client.network).double().requires_grad_(True)
    client = Client(network, target.client.input_shape, 10)
    observed = Observation(target.g.double(), 1, target.labels)
    fitted = fit_gaussian(target.public, dtype=torch.float32)
    prior = FittedGaussian(fitted.mean.double(), Dense(fitted.factor.double()), fitted.input_shape)
    at = torch.linalg.solve(prior.factor, target.truth.double().flatten() - prior.mean)
    torch.manual_seed(0)
    w = 0.1 * ratio * torch.randn(32, len(at))
    z = at.float() + w
    tape_ = narrow.recorded(32).under(at.float(), None)
    rough = [plain(narrow)(z)[0], tape_(w)[0]]
    monkeypatch.setattr("pplleak.priors.gaussian.fit_gaussian", lambda *args, **kwargs: prior)
    exact = plain(density.build(model, client, observed))
    where = [z.double(), at.float().double() + w.double()]
    # of differences, which are all that a sampler sees: a mode that is rounded shifts all values alike
    error = [float((r - exact(p)[0]).std()) for r, p in zip(rough, where, strict=True)]
    assert 0 < error[1] < 3 * error[0]
    assert error[1] < 1e-2


def test_quadratic_forms() -> None:
    torch.manual_seed(0)
    root = torch.randn(5, 5, dtype=torch.float64)
    hessians = [root @ root.mT, torch.diag(torch.tensor([1.0, 2, 0, 4, 5]).double())]
    slopes, constants = torch.randn(2, 5).double(), torch.tensor([0.7, -2.0]).double()
    likes = [torch.empty(6, 1, dtype=torch.float64, device="meta")] * 2
    forms = Quadratics.of(hessians, slopes, constants, likes, torch.float64)
    assert [h.dim() for h in forms.hessians] == [2, 1]
    z, weights = torch.randn(6, 5, dtype=torch.float64), torch.randn(2, 6, 1, dtype=torch.float64)
    values, bent = forms(z)
    found = forms.pull(list(weights), z, bent)
    for j, h in enumerate(hessians):
        expected = 0.5 * torch.einsum("ni,ij,nj->n", z, h, z) + z @ slopes[j] + constants[j]
        torch.testing.assert_close(values[j], expected[:, None])
    expected = sum(weights[j] * (z @ h + slopes[j]) for j, h in enumerate(hessians))
    torch.testing.assert_close(found, expected)


def branches(z: Tensor) -> Tensor:
    return z.sum(1) if bool(z.sum() > 0) else -z.sum(1)


def noisy(z: Tensor) -> Tensor:
    return (z * torch.rand_like(z)).sum(1)


def stopped(z: Tensor) -> Tensor:  # a gradient that is stopped on purpose must stay stopped
    return (z.detach() * z).sum(1).double()


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (branches, r"cannot be recorded \(RuntimeError: .*value out of a tracing tensor"),
        (noisy, r"cannot be recorded \(ValueError: aten\.rand_like\.default draws random numbers\)"),
        (stopped, "its recording gives other numbers"),
    ],
)
def test_functions_that_cannot_be_replayed_stay_plain_and_say_so_in_one_line(function, why) -> None:
    with pytest.warns(RuntimeWarning, match=f"slower but the same: .*{why}") as told:
        assert isinstance(tape.record(function, torch.ones(3, 4)), Plain)
    assert len(told) == 1 and "\n" not in str(told[0].message)


def test_the_loss_of_speed_is_told_once() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for _ in range(3):
            tape.record(noisy, torch.ones(3, 4))
    assert len(told) == 1


def test_a_function_that_is_recorded_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(tape.record(lambda z: (z * z).sum(1).double(), torch.ones(3, 4)), Tape)


def test_a_mistake_of_ours_is_not_taken_for_a_function_that_cannot_be_recorded(monkeypatch) -> None:
    def mistaken(*_: object) -> None:
        raise KeyError("node")

    monkeypatch.setattr(tape.graphs, "simplify", mistaken)
    with pytest.raises(KeyError, match="node"):
        tape.record(stopped, torch.ones(3, 4))


@pytest.mark.slow
def test_the_check_sees_a_wrong_tape() -> None:
    d = built(optimal.model, target_of("mlp gelu"))
    good = d.recorded(3)
    assert isinstance(good, Tape)
    z = torch.zeros(3, d.dim, dtype=torch.float64)
    assert tape._agree(good, plain(d), z)
    twin = good.under(torch.full((d.dim,), 1e-5, dtype=torch.float64), torch.eye(d.dim, dtype=torch.float64))
    assert not tape._agree(twin, plain(d), z)


def test_chains_that_do_not_fit_are_chunked(monkeypatch) -> None:
    d = built(optimal.model, target_of("mlp gelu"))
    z = torch.randn(12, d.dim, dtype=torch.float64)
    once, each = footprint.by_rows(lambda k: d.value_and_grad(z[:k]))
    monkeypatch.setattr(tape, "_free_bytes", lambda device: 2 * (once + 5 * each))
    chunked = d.recorded(12)
    assert isinstance(chunked, Chunked)
    assert chunked.size == 4  # the largest divisor of 12 that fits where 5 chains do
    assert_same(chunked, plain(d), z)
    shift, factor = torch.ones(d.dim, dtype=torch.float64), 2 * torch.eye(d.dim, dtype=torch.float64)
    assert_same(chunked.under(shift, factor), plain(d).under(shift, factor), z)


def test_a_client_that_materialises_is_recorded_or_left_alone() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.LayerNorm(8), nn.Softplus(), nn.Linear(8, 10))
    client = Client(network.double(), (1, 8, 8), 10)
    target = target_of("mlp gelu")
    with torch.no_grad():
        assert target.truth is not None
        g = client.update(target.truth, torch.tensor([3])).materialise()
    model = functools.partial(optimal.model, sigma=0.1, reference=target.public)
    d = density.build(model, client, Observation(g, 1, torch.tensor([3])))
    assert_same(d.recorded(2), plain(d), torch.randn(2, d.dim, dtype=torch.float64))
