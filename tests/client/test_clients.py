"""What `Client` accepts, refuses and finds out about a network; and that it leaves the user's own alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import batch_of, own, tiny
from layers import Net, V, assert_quantities, client_of, head, reference, some_g
from scenes import build_client
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pplleak.client import Client
from pplleak.client.training import LocalTraining
from pplleak.errors import BadInput


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
        Client(make(), V, 3)
    assert "\n" not in str(caught.value)


def test_weights_with_nan_are_refused_by_name() -> None:
    network = head(6)
    with torch.no_grad():
        network[1].bias[0] = torch.nan
    with pytest.raises(BadInput, match=r"1\.bias"):
        Client(network, V, 3)


def test_the_users_network_is_left_as_it_was() -> None:
    network = head(5, nn.Linear(6, 5), nn.ReLU(inplace=True), nn.BatchNorm1d(5).eval())
    before = {n: p.clone() for n, p in network.named_parameters()}
    client = Client(network, V, 3)
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


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("activation", "kinks"), [("relu", ("relu",)), ("gelu", ())])
def test_a_fused_encoder_layer_hides_no_kink(activation: str, kinks: tuple[str, ...], training: bool) -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, activation=activation, batch_first=True)
    assert own(lambda: head(12, layer).train(training), (3, 4)).kinks == kinks


# -- networks that build() stumbles over ---------------------------------------------------------------------------


def test_randomness_is_refused_however_rare_it_is() -> None:
    rare = Net(lambda n, x: F.dropout(n.a(x), 1e-9), a=nn.Linear(6, 3))  # type: ignore[operator]
    with pytest.raises(BadInput, match="random"):
        Client(rare, V, 3)


def test_batch_norm_that_needs_two_examples_is_known_to_mix_its_batch() -> None:
    client = own(lambda: head(5, nn.Linear(6, 5), nn.BatchNorm1d(5)), V)
    assert client.mixes_batch
    x, y = batch_of(client, (2,), 4)
    assert_quantities(client.update(x, y), reference(client, x, y), some_g(client))


def test_a_layer_called_with_a_keyword_is_tapped_as_any_other() -> None:
    client = own(lambda: Net(lambda n, x: n.a(input=x), a=nn.Linear(6, 3)), V)  # type: ignore[operator]
    assert client.lazy
    x, y = batch_of(client, (2,), 4)
    assert_quantities(client.update(x, y), reference(client, x, y), some_g(client))


# -- networks as people have them ----------------------------------------------------------------------------------


class Tanh(torch.autograd.Function):
    """A function of somebody's own, without a rule for vmap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return slopes[0] * (1 - x.tanh() ** 2)


class Once(Tanh):
    """The same, but that its own slope is lost on the second way back."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        return Tanh.backward(ctx, *slopes)


def with_function(function: type[torch.autograd.Function]) -> Net:
    return Net(lambda n, x: n.b(function.apply(n.a(x))), a=nn.Linear(6, 4), b=nn.Linear(4, 3))  # type: ignore[operator]


def test_a_function_that_vmap_has_no_rule_for_is_taken_row_by_row() -> None:
    client = own(lambda: with_function(Tanh), V)
    plain = own(lambda: Net(lambda n, x: n.b(n.a(x).tanh()), a=nn.Linear(6, 4), b=nn.Linear(4, 3)), V)  # type: ignore[operator]
    closed = replace(client, path="loop")
    x, y = batch_of(client, (2,), 3)
    for looped in (client, closed):
        assert_quantities(looped.update(x, y), reference(plain, x, y), some_g(client))
    trained = replace(closed, local=LocalTraining(0.1, 3))
    expected = replace(plain, path="vmap", local=LocalTraining(0.1, 3)).materialised(x, y)
    assert_quantities(trained.update(x, y), expected.examples, some_g(client))


def test_a_function_that_is_differentiable_once_is_refused_not_followed_along_wrong_slopes() -> None:
    with pytest.raises(BadInput, match=r"by autograd, .* by finite differences: does it compute by .detach"):
        Client(with_function(Once), V, 3)


def test_a_scale_that_was_detached_has_no_slope_and_is_refused() -> None:
    for kept, forward in (
        (True, lambda n, x: n.b(n.a(x).tanh() / (1 + x.square().sum(1, keepdim=True)))),
        (False, lambda n, x: n.b(n.a(x).tanh() / (1 + x.square().sum(1, keepdim=True).detach()))),
    ):
        network = Net(forward, a=nn.Linear(6, 4), b=nn.Linear(4, 3))
        if kept:
            Client(network, V, 3)
            continue
        with pytest.raises(BadInput, match=r"by finite differences: does it compute by \.detach"):
            Client(network, V, 3)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("steep", [1e7, 1e11])
def test_a_slope_that_turns_within_a_millionth_is_no_wrong_slope(steep: float, kept: bool) -> None:
    """As that of EfficientNet-B0 with random weights, some of whose units hardly vary: BatchNorm multiplies by 300, and
    in train mode, two images of 32 pixels, the slope turns within 1e-10."""

    def forward(n: Any, x: Tensor) -> Tensor:
        out: Tensor = n.b((steep * n.a(x if kept else x + (x**2).detach())).sin())
        return out

    network = Net(forward, a=nn.Linear(6, 4), b=nn.Linear(4, 3))
    if kept:
        Client(network, V, 3)
        return
    with pytest.raises(BadInput, match="by finite differences"):
        Client(network, V, 3)


def test_hardsigmoid_is_differentiated_twice_through_what_it_is_made_of() -> None:
    client = own(lambda: Net(lambda n, x: n.b(F.hardsigmoid(n.a(x))), a=nn.Linear(6, 4), b=nn.Linear(4, 3)), V)  # type: ignore[operator]
    assert client.lazy and client.kinks
    x, y = batch_of(client, (), 2)
    along, g = torch.randn(x.shape, dtype=x.dtype), some_g(client)

    def square(t: float | Tensor) -> Tensor:
        return client.update(x + t * along, y).sqdist(g)

    t = torch.zeros((), dtype=x.dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(square(t), t)
    assert float(slope) == pytest.approx(float(square(1e-5) - square(-1e-5)) / 2e-5, rel=1e-5)


@pytest.mark.slow
def test_wrapped_networks_are_the_networks_inside() -> None:
    network = head(6)
    for wrapped in (nn.DataParallel(network), torch.compile(network)):
        assert list(Client(wrapped, V, 3).layers) == list(Client(network, V, 3).layers)  # type: ignore[arg-type]


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_activations_are_one_line(reentrant: bool) -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        out: Tensor = n.b(checkpoint(n.a, x, use_reentrant=reentrant))
        return out

    with pytest.raises(BadInput, match="cannot be differentiated twice") as caught:
        Client(Net(forward, a=nn.Sequential(nn.Linear(6, 4), nn.Tanh()), b=nn.Linear(4, 3)), V, 3)
    assert "\n" not in str(caught.value) and "checkpoint" in str(caught.value)


def test_one_example_has_no_batch_statistics_and_is_told_so() -> None:
    client = own(lambda: head(5, nn.Linear(6, 5), nn.BatchNorm1d(5)), V)
    with pytest.raises(BadInput, match="no statistics of one example: give the client's own batch"):
        client.update(*batch_of(client, (), 1))


def test_lazy_layers_take_their_shapes_from_an_image_and_their_weights_from_the_seed(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def net(input_shape, num_classes):\n"
        "    layers = nn.Flatten(), nn.LazyLinear(4), nn.BatchNorm1d(4), nn.LazyLinear(num_classes)\n"
        "    return nn.Sequential(*layers).eval()\n"
    )
    first, again = (build_client(f"{tmp_path / 'net.py'}:net", {}, (1, 2, 2), 3) for _ in range(2))
    assert [tuple(s) for s in first.layers.values()][:2] == [(4, 4), (4,)]
    assert all(torch.equal(p, again.parameters[n]) for n, p in first.parameters.items())
    assert torch.equal(dict(first.network.named_buffers())["2.running_mean"], torch.zeros(4))
