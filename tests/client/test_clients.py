"""What `Client` accepts, refuses and finds out about a network; and that it leaves the user's own alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conftest import batch_of, own, tiny
from layers import Net, V, assert_quantities, client_of, head, reference, some_g
from torch import Tensor, nn

from pplleak.client import Client
from pplleak.errors import BadInput


def test_dropout_in_train_mode_is_refused() -> None:
    with pytest.raises(BadInput, match="random"):
        Client(head(5, nn.Linear(6, 5), nn.Dropout(0.5)), V, 3)


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


def test_dropout_is_refused_however_little_it_drops() -> None:
    with pytest.raises(BadInput, match="random"):
        Client(head(5, nn.Linear(6, 5), nn.Dropout(1e-9)), V, 3)


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
