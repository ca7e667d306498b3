"""Every layer type of the closed form, and the plain autograd that it has to equal: slow, obvious, float64."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from conftest import own
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.models.resnet import BasicBlock

from pplleak.client import Client, networks
from pplleak.client.networks import _activations
from pplleak.client.update import Update

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


def frozen(name: str, then: nn.Module | None = None) -> nn.Module:
    net = head(4, nn.Flatten(), nn.Linear(6, 4), then or nn.Tanh())
    net.get_parameter(name).requires_grad_(False)
    return net


def attention() -> nn.Module:
    """Softmax attention whose fastest kernels have no second derivative."""

    def forward(net: Net, x: Tensor) -> Tensor:
        q, k, v = net.a(x).chunk(3, -1)  # type: ignore[operator]
        return net.b(F.scaled_dot_product_attention(q, k, v).flatten(1))  # type: ignore[operator]

    return Net(forward, a=nn.Linear(4, 12), b=nn.Linear(12, 3))


def encoder(**settings: bool) -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, activation="gelu", batch_first=True, **settings)


def multihead(mask: bool = False, **settings: bool) -> nn.Module:
    """torch's own attention: q, k and v from one packed weight; positions before examples unless batch_first."""

    def forward(net: Net, x: Tensor) -> Tensor:
        first = x if settings.get("batch_first") else x.transpose(0, 1)
        kept = torch.eye(3, dtype=torch.bool) if mask else None
        out = net.a(first, first, first, need_weights=False, attn_mask=kept)[0]  # type: ignore[operator]
        return net.b((out if settings.get("batch_first") else out.transpose(0, 1)).flatten(1))  # type: ignore[operator]

    return Net(forward, a=nn.MultiheadAttention(4, 2, **settings), b=nn.Linear(12, 3))


def cross_attention() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.b(net.a(x, x + 0, x + 1)[0].flatten(1))  # type: ignore[operator]

    return Net(forward, a=nn.MultiheadAttention(4, 2, batch_first=True), b=nn.Linear(12, 3))


def added(shape: tuple[int, ...], use: Callable[[Tensor, Tensor], Tensor], features: int = 12) -> nn.Module:
    """A parameter of no layer that meets the tokens in some way of its own, between two linear layers."""

    def forward(net: Net, x: Tensor) -> Tensor:
        return net.b(torch.tanh(use(net.a(x), net.own)).flatten(1))  # type: ignore[operator, arg-type]

    net = Net(forward, a=nn.Linear(4, 4), b=nn.Linear(features, 3))
    net.own = nn.Parameter(torch.ones(shape))
    return net


def with_class_token(x: Tensor, token: Tensor) -> Tensor:
    return torch.cat([token.expand(len(x), -1, -1), x], 1)


def block() -> nn.Module:
    """A residual block whose shortcut has a convolution and a normalisation of its own."""
    shortcut = nn.Sequential(nn.Conv2d(2, 4, 1, stride=2, bias=False), nn.BatchNorm2d(4))
    return _activations.swap(head(24, BasicBlock(2, 4, 2, shortcut)).eval(), nn.ReLU, "silu")


def pooled_and_normalised() -> nn.Module:
    """Pooling and normalisation in eval mode, each between two layers that have weights."""
    return head(
        6,
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect", groups=2),
        nn.BatchNorm2d(4),
        nn.GELU(),
        nn.AvgPool2d(2, 1),
        nn.Conv2d(4, 6, 3, padding=2, dilation=2, bias=False),
        nn.BatchNorm2d(6),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1),
    ).eval()


def function_in_place() -> nn.Module:
    """Normalised features overwritten by a function, as in GoogLeNet."""

    def forward(net: Net, x: Tensor) -> Tensor:
        return net.c(F.silu(net.b(net.a(x)), inplace=True).flatten(1))  # type: ignore[operator]

    return Net(forward, a=nn.Conv2d(2, 3, 3), b=nn.BatchNorm2d(3, eps=1e-3), c=nn.Linear(18, 3)).eval()


V, T, P = (6,), (3, 4), (2, 5, 4)  # vectors, tokens, pictures
# name -> (network, input_shape, does it keep its closed form?)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], bool]] = {
    "linear": (lambda: head(6), V, True),
    "linear without bias": (lambda: nn.Sequential(nn.Linear(6, 3, bias=False)), V, True),
    "mlp": (lambda: head(5, nn.Linear(6, 7), nn.GELU(), nn.Linear(7, 5, bias=False), nn.SiLU()), V, True),
    "tokens": (lambda: head(15, nn.Linear(4, 5), nn.Tanh()), T, True),
    "tokens without bias": (lambda: head(6, nn.Linear(4, 2, bias=False), nn.Tanh()), T, True),
    "tokens in two dimensions": (lambda: head(20, nn.Linear(4, 2), nn.Tanh()), P, True),
    "wide layer on tokens": (lambda: head(120, nn.Linear(4, 30), nn.Tanh(), nn.Linear(30, 40), nn.Tanh()), T, True),
    "conv": (lambda: conv(18, 2, 3, 3), P, True),
    "conv without bias": (lambda: conv(18, 2, 3, 3, bias=False), P, True),
    "conv 1x1": (lambda: conv(60, 2, 3, 1), P, True),
    "conv as wide as the image": (lambda: conv(30, 2, 30, (5, 4)), P, True),
    "conv as wide as the image, grouped": (lambda: conv(30, 2, 30, (5, 4), groups=2), P, True),
    "conv beyond the image": (lambda: conv(60, 2, 3, (11, 3), padding=(5, 1)), P, True),
    "conv on one pixel, grouped": (
        lambda: head(6, nn.Conv2d(2, 4, (5, 4)), nn.Tanh(), nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.Tanh()),
        P,
        True,
    ),
    "conv that leaves a corner of its kernel out": (
        lambda: head(5, nn.Conv2d(2, 4, (4, 3)), nn.Tanh(), nn.Conv2d(4, 5, 3, stride=2, padding=1, bias=False)),
        P,
        True,
    ),
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
    "batch norm and a function in place": (function_in_place, P, True),
    "dropout in eval mode": (lambda: head(5, nn.Linear(6, 5), nn.Dropout(0.5)).eval(), V, True),
    "residual connection": (residual, V, True),
    "frozen bias": (lambda: frozen("1.bias"), V, True),
    "frozen weight": (lambda: frozen("1.weight"), V, True),
    "layer without effect": (lambda: Net(lambda n, x: n.a(x), a=nn.Linear(6, 3), b=nn.Linear(2, 2)), V, False),  # type: ignore[operator]
    "layer norm": (lambda: head(6, nn.Linear(6, 6), nn.LayerNorm(6)), V, True),
    "layer norm without bias": (lambda: head(12, nn.Linear(4, 4), nn.LayerNorm((3, 4), bias=False)), T, True),
    "rms norm": (lambda: head(12, nn.Linear(4, 4), nn.RMSNorm(4)), T, True),
    "batch norm of vectors in eval mode": (lambda: head(6, nn.Linear(6, 6), nn.BatchNorm1d(6)).eval(), V, True),
    "batch norm in eval mode": (lambda: conv(18, 2, 3, 3, then=nn.BatchNorm2d(3)).eval(), P, True),
    "batch norm without scale": (lambda: conv(18, 2, 3, 3, then=nn.BatchNorm2d(3, affine=False)).eval(), P, True),
    "batch norm in train mode": (lambda: conv(18, 2, 3, 3, then=nn.BatchNorm2d(3)), P, False),
    "group norm": (lambda: conv(18, 2, 3, 3, then=nn.GroupNorm(3, 3)), P, True),
    "instance norm": (lambda: conv(18, 2, 3, 3, then=nn.InstanceNorm2d(3, affine=True)), P, True),
    "frozen normalisation": (lambda: frozen("2.bias", nn.LayerNorm(4)), V, True),
    "pooling and normalisation": (pooled_and_normalised, P, True),
    "residual block": (block, P, True),
    "attention": (attention, T, True),
    "multi-head attention": (multihead, T, True),
    "multi-head attention, examples first": (lambda: multihead(batch_first=True, bias=False), T, True),
    "multi-head attention with a mask": (lambda: multihead(mask=True), T, False),
    "cross attention": (cross_attention, T, False),
    "transformer": (lambda: head(12, encoder()), T, True),
    "transformer in eval mode": (lambda: head(12, encoder(norm_first=True)).eval(), T, True),
    "class token": (lambda: added((1, 1, 4), with_class_token, 16), T, True),
    "position embedding": (lambda: added((1, 3, 4), lambda x, p: x + p), T, True),
    "position embedding, one token fewer": (lambda: added((3, 4), lambda x, p: p + x), T, True),
    "scale of every feature": (lambda: added((4,), lambda x, p: p * x), T, True),
    "one scale for all": (lambda: added((), lambda x, p: x / p), T, True),
    "in place": (lambda: added((1, 3, 4), lambda x, p: x.add_(p)), T, False),
    "parameter as a matrix": (lambda: added((4, 4), lambda x, p: x @ p), T, False),
    "parameter of the probe's own size": (lambda: added((2, 3, 4), lambda x, p: x + p.mean(0)), T, False),
    "vit": (lambda: networks.get("vit")((1, 4, 4), 3, patch=2, width=4, depth=1, heads=2), (1, 4, 4), True),
    "transposed conv": (lambda: head(84, nn.ConvTranspose2d(2, 2, (3, 3)), nn.Tanh()), P, False),
    "conv in one dimension": (lambda: head(6, nn.Conv1d(3, 2, 2), nn.Tanh()), T, False),
    "shared layer": (shared, V, False),
    "tied weights": (tied, V, False),
}


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
