"""The lazy update is the gradient: against plain `torch.autograd.grad`, one example at a time, in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conftest import batch_of, own, tiny
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pplleak import clients
from pplleak.clients import Client
from pplleak.errors import BadInput
from pplleak.updates import DenseUpdate, LazyUpdate, Update

RELATIVE = 1e-9


class Net(nn.Module):
    """Modules a, b, c … and a forward function written beside them."""

    def __init__(self, forward: Callable[[Net, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.wiring = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.wiring(self, x)


def head(features: int, *before: nn.Module) -> nn.Sequential:
    return nn.Sequential(*before, nn.Flatten(), nn.Linear(features, 3))


def conv(features: int, *args: object, then: nn.Module | None = None, **kwargs: object) -> nn.Sequential:
    """One convolution of a (2, 5, 4) image, then softmax regression on its features."""
    return head(features, nn.Conv2d(*args, **kwargs), then or nn.Tanh())  # type: ignore[arg-type]


def residual() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return net.b(x + torch.tanh(net.a(x)))  # type: ignore[operator]

    return Net(forward, a=nn.Linear(6, 6), b=nn.Linear(6, 3))


def tied() -> nn.Module:
    a, b = nn.Linear(6, 6), nn.Linear(6, 6)
    b.weight = a.weight
    return head(6, nn.Flatten(), a, nn.Tanh(), b, nn.Tanh())


def shared() -> nn.Module:
    a = nn.Linear(6, 6)
    return head(6, nn.Flatten(), a, nn.Tanh(), a, nn.Tanh())


def frozen(name: str) -> nn.Module:
    net = head(4, nn.Flatten(), nn.Linear(6, 4), nn.Tanh())
    net.get_parameter(name).requires_grad_(False)
    return net


def parameter() -> nn.Module:
    """A parameter that belongs to no layer."""
    net = Net(lambda net, x: net.a(x.flatten(1) * net.scale), a=nn.Linear(6, 3))  # type: ignore[operator]
    net.scale = nn.Parameter(torch.ones(6))
    return net


def attention() -> nn.Module:
    """Softmax attention whose fastest kernels have no second derivative."""

    def forward(net: Net, x: Tensor) -> Tensor:
        q, k, v = net.a(x).chunk(3, -1)  # type: ignore[operator]
        return net.b(F.scaled_dot_product_attention(q, k, v).flatten(1))  # type: ignore[operator]

    return Net(forward, a=nn.Linear(4, 12), b=nn.Linear(12, 3))


def transformer() -> nn.Module:
    return head(12, nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, activation="gelu", batch_first=True))


V, T, P = (6,), (3, 4), (2, 5, 4)  # vectors, tokens, pictures
# name -> (network, input_shape, does it keep its closed form?)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], bool]] = {
    "linear": (lambda: head(6), V, True),
    "linear without bias": (lambda: nn.Sequential(nn.Linear(6, 3, bias=False)), V, True),
    "mlp": (lambda: head(5, nn.Linear(6, 7), nn.GELU(), nn.Linear(7, 5, bias=False), nn.SiLU()), V, True),
    "tokens": (lambda: head(15, nn.Linear(4, 5), nn.Tanh()), T, True),
    "tokens without bias": (lambda: head(6, nn.Linear(4, 2, bias=False), nn.Tanh()), T, True),
    "tokens in two dimensions": (lambda: head(20, nn.Linear(4, 2), nn.Tanh()), P, True),
    "wide layer on tokens": (lambda: head(120, nn.Linear(4, 40), nn.Tanh()), T, True),
    "conv": (lambda: conv(18, 2, 3, 3), P, True),
    "conv without bias": (lambda: conv(18, 2, 3, 3, bias=False), P, True),
    "conv 1x1": (lambda: conv(60, 2, 3, 1), P, True),
    "conv as wide as the image": (lambda: conv(30, 2, 30, (5, 4)), P, True),
    "conv padded and strided": (lambda: conv(6, 2, 3, 3, stride=(3, 2), padding=(1, 0)), P, True),
    "conv same": (lambda: conv(60, 2, 3, 3, padding="same"), P, True),
    "conv same, even kernel, dilated": (lambda: conv(60, 2, 3, (2, 3), padding="same", dilation=(2, 1)), P, True),
    "conv valid": (lambda: conv(18, 2, 3, 3, padding="valid"), P, True),
    "conv circular": (lambda: conv(60, 2, 3, 3, padding=1, padding_mode="circular"), P, True),
    "conv reflect": (lambda: conv(60, 2, 3, 3, padding=1, padding_mode="reflect"), P, True),
    "conv replicate, strided": (lambda: conv(18, 2, 3, 3, padding=1, stride=2, padding_mode="replicate"), P, True),
    "conv dilated": (lambda: conv(24, 2, 4, 2, dilation=2), P, True),
    "conv grouped": (lambda: conv(24, 2, 4, 3, groups=2), P, True),
    "conv depthwise, no bias": (lambda: conv(12, 2, 2, 3, groups=2, bias=False), P, True),
    "average pooling": (lambda: conv(12, 2, 3, 3, padding=1, then=nn.AvgPool2d(2)), P, True),
    "max pooling": (lambda: conv(12, 2, 3, 3, padding=1, then=nn.MaxPool2d(2)), P, True),
    "adaptive pooling": (lambda: conv(3, 2, 3, 3, then=nn.AdaptiveAvgPool2d(1)), P, True),
    "two convs": (lambda: head(6, nn.Conv2d(2, 4, 3), nn.GELU(), nn.Conv2d(4, 3, 2), nn.Tanh()), P, True),
    "relu in place": (lambda: head(5, nn.Linear(6, 5), nn.ReLU(inplace=True)), V, True),
    "dropout in eval mode": (lambda: head(5, nn.Linear(6, 5), nn.Dropout(0.5)).eval(), V, True),
    "residual connection": (residual, V, True),
    "frozen bias": (lambda: frozen("1.bias"), V, True),
    "frozen weight": (lambda: frozen("1.weight"), V, True),
    "layer without effect": (lambda: Net(lambda n, x: n.a(x), a=nn.Linear(6, 3), b=nn.Linear(2, 2)), V, False),  # type: ignore[operator]
    "layer norm": (lambda: head(6, nn.Linear(6, 6), nn.LayerNorm(6)), V, False),
    "batch norm in eval mode": (lambda: conv(18, 2, 3, 3, then=nn.BatchNorm2d(3)).eval(), P, False),
    "batch norm in train mode": (lambda: conv(18, 2, 3, 3, then=nn.BatchNorm2d(3)), P, False),
    "group norm": (lambda: conv(18, 2, 3, 3, then=nn.GroupNorm(3, 3)), P, False),
    "transposed conv": (lambda: head(84, nn.ConvTranspose2d(2, 2, (3, 3)), nn.Tanh()), P, False),
    "conv in one dimension": (lambda: head(6, nn.Conv1d(3, 2, 2), nn.Tanh()), T, False),
    "instance norm": (lambda: conv(18, 2, 3, 3, then=nn.InstanceNorm2d(3, affine=True)), P, False),
    "attention": (attention, T, True),
    "transformer": (transformer, T, False),
    "shared layer": (shared, V, False),
    "tied weights": (tied, V, False),
    "parameter of no layer": (parameter, V, False),
}
each_case = pytest.mark.parametrize("case", list(CASES))


@functools.cache
def client_of(case: str, dtype: torch.dtype = torch.float64) -> Client:
    make, shape, _ = CASES[case]
    return own(make, shape, dtype=dtype)


def reference(client: Client, x: Tensor, y: Tensor, *, graph: bool = False) -> Tensor:
    """∇θ of every example's share of the loss by plain autograd, (*lead, examples, size): slow and obvious."""
    lead, batch = y.shape[:-1], y.shape[-1]
    rows = 1 if client.mixes_batch else batch
    xs, ys = x.reshape(-1, batch // rows, *client.input_shape), y.reshape(-1, batch // rows)
    parameters = [p.requires_grad_() for n, p in client.network.named_parameters() if n in client.layers]
    try:
        out = []
        for one, label in zip(xs, ys, strict=True):
            with sdpa_kernel(SDPBackend.MATH):
                loss = F.cross_entropy(client.network(one), label, reduction="sum") / batch
            grads = torch.autograd.grad(loss, parameters, create_graph=graph, allow_unused=True)
            filled = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters, strict=True)]
            out.append(torch.cat([g.flatten() for g in filled]))
    finally:
        for p in parameters:
            p.requires_grad_(False)
    return torch.stack(out).reshape(*lead, rows, -1)


def assert_close(found: Tensor, expected: Tensor, relative: float = RELATIVE) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).norm()) <= relative * float(expected.norm())


def assert_quantities(update: Update, examples: Tensor, g: Tensor) -> None:
    """Everything a channel may ask, against the reference's examples (*lead, batch, size)."""
    u = examples.sum(-2)
    assert update.shape == u.shape[:-1]
    assert update.size == u.shape[-1]
    assert_close(update.materialise(), u)
    assert_close(update.sqdist(g), (g - u).square().sum(-1))
    assert_close(update.inner(g), (g * u).sum(-1))
    assert_close(update.sqnorm(), u.square().sum(-1))
    assert_close(update.per_example_sqnorm(), examples.square().sum(-1))
    precision = 0.1 + g.square()
    assert_close(update.sqdist(g, precision), (precision * (g - u).square()).sum(-1))
    weights = torch.linspace(0.2, 1.4, examples[..., 0].numel(), dtype=examples.dtype).reshape(examples.shape[:-1])
    assert_close(update.scaled(weights).materialise(), (weights[..., None] * examples).sum(-2))


def some_g(client: Client) -> Tensor:
    return torch.randn(client.update_size, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


@each_case
def test_a_network_keeps_its_closed_form_exactly_where_it_has_one(case: str) -> None:
    assert client_of(case).lazy is CASES[case][2]
    kind = LazyUpdate if CASES[case][2] else DenseUpdate
    assert isinstance(client_of(case).update(*batch_of(client_of(case))), kind)


@each_case
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("lead", [(), (1,), (3,), (2, 3)], ids=str)
def test_every_quantity_of_the_update_equals_plain_autograd(case: str, lead: tuple[int, ...], batch: int) -> None:
    client = client_of(case)
    x, y = batch_of(client, lead, batch)
    expected = reference(client, x, y)
    assert_quantities(client.update(x, y), expected, some_g(client))
    assert_close(client.materialised(x, y).examples, expected)


@each_case
@pytest.mark.parametrize(("lead", "batch"), [((), 1), ((3,), 4)], ids=str)
def test_the_gradient_of_sqdist_in_x_equals_plain_autograd(case: str, lead: tuple[int, ...], batch: int) -> None:
    client, g = client_of(case), some_g(client_of(case))
    x, y = batch_of(client, lead, batch)
    gradients = []
    for distance in (
        lambda x: client.update(x, y).sqdist(g),
        lambda x: (g - reference(client, x, y, graph=True).sum(-2)).square().sum(-1),
    ):
        leaf = x.clone().requires_grad_()
        gradients.append(torch.autograd.grad(distance(leaf).sum(), leaf)[0])
    assert_close(*gradients)


@each_case
@pytest.mark.parametrize("lead", [(), (3,)], ids=str)
def test_an_expanded_update_repeats_itself(case: str, lead: tuple[int, ...]) -> None:
    client = client_of(case)
    x, y = batch_of(client, lead, 2)
    examples = reference(client, x, y)
    grown = client.update(x, y).expand(torch.Size((2, *lead)))
    assert_quantities(grown, examples.expand(2, *examples.shape), some_g(client))


@pytest.mark.parametrize("case", ["mlp", "conv", "layer norm"])
def test_leading_dimensions_of_labels_broadcast_against_those_of_images(case: str) -> None:
    client = client_of(case)
    x, y = batch_of(client, (3,), 2)
    labels = torch.stack([y, (y + 1) % 3])[:, :1]  # (2, 1, batch) against chains (3,)
    found = client.update(x, labels)
    expected = torch.stack([reference(client, x, k.expand(3, 2)) for k in labels])
    assert_quantities(found, expected, some_g(client))


def test_the_cases_take_every_form_of_the_closed_form() -> None:
    forms = set()
    for case in ("linear", "mlp", "wide layer on tokens", "conv", "conv as wide as the image"):
        for batch in (1, 4):
            update = client_of(case).update(*batch_of(client_of(case), (), batch))
            assert isinstance(update, LazyUpdate)
            forms |= {(f.dense, f.inputs.shape[-4] * f.inputs.shape[-2] > 1) for f in update.factors}
    assert forms >= {(False, False), (False, True), (True, True)}  # one row, a Gram matrix, ∇W itself


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("case", [c for c in CASES if CASES[c][2]])
def test_distances_of_a_float32_network_are_summed_in_float64(case: str, batch: int) -> None:
    """What is left is the rounding of the float32 forward and backward pass: some ulps of ‖g‖² + ‖u‖²."""
    exact, client = client_of(case), client_of(case, torch.float32)
    x, y = batch_of(client, (3,), batch)
    update = client.update(x, y)
    u = exact.update(x.double(), y).materialise()
    g = u[0] + 1e-3 * u[0].norm() * some_g(exact) / some_g(exact).norm()  # close by: cancellation is at its worst
    g = g.float()
    for found, expected in (
        (update.sqdist(g), (g.double() - u).square().sum(-1)),
        (update.inner(g), (g.double() * u).sum(-1)),
        (update.sqnorm(), u.square().sum(-1)),
    ):
        assert found.dtype == torch.float64
        scale = g.double().square().sum() + u.square().sum(-1)
        assert bool(((found - expected).abs() <= 50 * torch.finfo(torch.float32).eps * scale).all())


def test_dropout_in_train_mode_is_refused() -> None:
    with pytest.raises(BadInput, match="random"):
        clients.build(head(5, nn.Linear(6, 5), nn.Dropout(0.5)), V, 3)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: head(7), "does not take images"),
        (lambda: nn.Sequential(nn.Linear(6, 4)), r"logits \(batch, 3\)"),
        (lambda: nn.Flatten(), "no trainable parameters"),
        (lambda: head(6).requires_grad_(False), "no trainable parameters"),
        (lambda: nn.GRU(6, 3), "logits"),
    ],
    ids=["input shape", "classes", "no parameters", "all frozen", "no tensor"],
)
def test_a_network_that_cannot_be_attacked_is_refused_in_one_line(make: Callable[[], nn.Module], said: str) -> None:
    with pytest.raises(BadInput, match=said) as caught:
        clients.build(make(), V, 3)
    assert "\n" not in str(caught.value)


def test_weights_with_nan_are_refused_by_name() -> None:
    network = head(6)
    with torch.no_grad():
        network[1].bias[0] = torch.nan
    with pytest.raises(BadInput, match=r"1\.bias"):
        clients.build(network, V, 3)


def test_the_users_network_is_left_as_it_was() -> None:
    network = head(5, nn.Linear(6, 5), nn.ReLU(inplace=True), nn.BatchNorm1d(5).eval())
    before = {n: p.clone() for n, p in network.named_parameters()}
    client = clients.build(network, V, 3)
    client.update(*batch_of(client, (2,), 3)).materialise()
    assert all(torch.equal(p, before[n]) and p.requires_grad and p.grad is None for n, p in network.named_parameters())
    assert network[1].inplace
    assert network[2].track_running_stats
    with torch.no_grad():
        network[0].weight.zero_()
    assert not torch.equal(client.network.get_parameter("0.weight"), network[0].weight)


@pytest.mark.parametrize("case", ["mlp", "conv", "layer norm"])
def test_no_hook_and_no_gradient_is_left_behind(case: str) -> None:
    client = client_of(case)
    x, y = batch_of(client, (2,), 2)
    with torch.no_grad():
        assert not client.update(x, y).sqdist(some_g(client)).requires_grad
    assert client.update(x.requires_grad_(), y).sqdist(some_g(client)).requires_grad
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        client.update(x.detach(), y + 99)  # the backward pass never runs
    assert not any(m._forward_hooks for m in client.network.modules())
    assert all(p.grad is None and not p.requires_grad for p in client.network.parameters())


@each_case
def test_split_names_the_tensors_that_autograd_would_share(case: str) -> None:
    client = client_of(case)
    x, y = batch_of(client, (3,), 2)
    u = client.update(x, y).materialise()
    parts = client.split(u)
    assert {n: p.shape[1:] for n, p in parts.items()} == client.layers
    assert torch.equal(torch.cat([p.flatten(1) for p in parts.values()], 1), u)
    assert client.update_size == u.shape[-1]


# -- kinks ---------------------------------------------------------------------------------------------------------

KINKED: dict[str, Callable[[Tensor], Tensor]] = {
    "module": nn.ReLU(),
    "functional": F.relu,
    "method": Tensor.relu,
    "in place": lambda x: F.relu(x, inplace=True),
    "leaky": nn.LeakyReLU(),
    "prelu": lambda x: F.prelu(x, x.new_full((1,), 0.1)),
    "relu6": F.relu6,
    "hardtanh": nn.Hardtanh(),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "softshrink": F.softshrink,
    "abs": torch.abs,
    "clamp": lambda x: x.clamp(min=0),
    "maximum": lambda x: torch.maximum(x, -x),
    "max": lambda x: x - x.max(-1, keepdim=True).values,
    "amax": lambda x: x - x.amax(-1, keepdim=True),
    "max pooling": lambda x: x + F.max_pool1d(x[:, None], 3, 1, 1)[:, 0],
    "max pooling 2d": lambda x: F.max_pool2d(x.reshape(-1, 1, 2, 2), 1).flatten(1),
    "adaptive max pooling": lambda x: F.adaptive_max_pool2d(x.reshape(-1, 1, 2, 2), 2).flatten(1),
    "selu": F.selu,
    "elu with another slope": lambda x: F.elu(x, 2.0),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "mask": lambda x: x * (x > 0),
    "sort": lambda x: x.sort(-1).values,
    "topk": lambda x: x.topk(4, -1).values,
    "fmax": lambda x: torch.fmax(x, 0 * x),
    "round": lambda x: x + x.round(),
}
SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "softplus": nn.Softplus(),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "elu": F.elu,
    "celu": nn.CELU(2.0),
    "mish": F.mish,
    "softmax": nn.Softmax(-1),
    "logsigmoid": F.logsigmoid,
    "layer norm": lambda x: F.layer_norm(x, (4,)),
    "average pooling": lambda x: F.avg_pool1d(x[:, None], 3, 1, 1)[:, 0],
}


def activated(activation: Callable[[Tensor], Tensor]) -> Client:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.b(activation(net.a(x)))  # type: ignore[operator]

    return own(lambda: Net(forward, a=nn.Linear(6, 4), b=nn.Linear(4, 3)), V)


@pytest.mark.parametrize("name", KINKED)
def test_a_kink_is_found_however_it_is_written(name: str) -> None:
    assert activated(KINKED[name]).kinks


@pytest.mark.parametrize("name", SMOOTH)
def test_a_smooth_network_has_no_kinks(name: str) -> None:
    assert activated(SMOOTH[name]).kinks == ()


@pytest.mark.parametrize("activation", ["gelu", "softplus", "sigmoid", "tanh", "silu", "relu", "leaky_relu"])
def test_only_the_rectifiers_among_the_mlps_activations_have_kinks(activation: str) -> None:
    assert tiny(activation=activation).kinks == ((activation,) if "relu" in activation else ())


# -- networks that build() stumbles over ---------------------------------------------------------------------------


def test_dropout_is_refused_however_little_it_drops() -> None:
    with pytest.raises(BadInput, match="random"):
        clients.build(head(5, nn.Linear(6, 5), nn.Dropout(1e-9)), V, 3)


def test_batch_norm_that_needs_two_examples_is_known_to_mix_its_batch() -> None:
    client = own(lambda: head(5, nn.Linear(6, 5), nn.BatchNorm1d(5)), V)
    assert client.mixes_batch
    x, y = batch_of(client, (2,), 4)
    assert_quantities(client.update(x, y), reference(client, x, y), some_g(client))


def test_a_layer_called_with_a_keyword_falls_back() -> None:
    client = own(lambda: Net(lambda n, x: n.a(input=x), a=nn.Linear(6, 3)), V)  # type: ignore[operator]
    x, y = batch_of(client, (2,), 4)
    assert_quantities(client.update(x, y), reference(client, x, y), some_g(client))
