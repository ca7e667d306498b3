"""R-GAP: images behind invertible activations come out to the last digits; what leaves something open is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import own
from scenes import from_data
from torch import nn

from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.inference import rgap

EXACT = 1e-9  # of a pixel, in float64


def shared(**more: Any) -> Observation:
    """What a client shares all but exactly."""
    return from_data(**{"sigma": 1e-25, "dtype": "float64", **more})


def error(target: Observation) -> float:
    assert target.truth is not None
    found = rgap.run(None, target, target.client)
    return float((torch.as_tensor(found.mode) - target.truth).abs().max())


NETWORKS = [
    ("lenet", {}),
    ("lenet", {"activation": "leaky_relu", "channels": 6}),
    ("mlp", {"widths": (32, 16), "activation": "tanh"}),
]


@pytest.mark.parametrize(("network", "settings"), NETWORKS, ids=["lenet", "leaky lenet", "mlp"])
def test_an_image_is_exact_to_float_precision(network: str, settings: dict[str, Any]) -> None:
    assert error(shared(network=network, settings=settings)) < EXACT


def test_a_recursion_that_forgets_the_slopes_of_the_activations_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    real = rgap._pulled_back
    monkeypatch.setattr(rgap, "_pulled_back", lambda m, x, k: real(m, x, k) if isinstance(m, rgap.AFFINE) else k)
    assert error(shared(network="lenet")) > 1e-3


def test_noise_is_multiplied_by_every_layer() -> None:
    deep, shallow = (shared(settings={"widths": w, "activation": "tanh"}, sigma=1e-7) for w in ((32, 16), (32,)))
    assert 1e-9 < error(shallow) < 1e-3 and error(deep) < 0.1
    with pytest.raises(BadInput, match="there is no way back through it"):  # through a saturated sigmoid
        error(shared(network="lenet", sigma=1e-2))


def test_a_convolution_needs_its_gradient_and_a_wide_stride_leaves_pixels_open() -> None:
    """One channel of a quarter of the pixels: neither set of equations is enough, and both together are not, either."""

    def narrow() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 1, 2, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))

    client = own(narrow, (1, 8, 8))
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        g = client.update(x, torch.tensor([1])).materialise()
    with pytest.raises(BadInput, match=r"leaves 45 of the 64 entries open"):  # 16 outputs, 4 weights, and kᵀWx in both
        rgap.run(None, Observation(g, 1, torch.tensor([1])), client)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"settings": {"activation": "gelu"}}, "the network has a GELU"),
        ({"settings": {"activation": "relu"}}, "the network has a ReLU"),
        ({"network": "convnet", "settings": {"activation": "tanh", "channels": (2, 2), "width": 4}}, "a AvgPool2d"),
        ({"network": "resnet20", "settings": {"width": 2}}, "the network has a"),
        ({"batch_size": 2}, "solves for one example"),
        ({"settings": {"activation": "tanh"}, "normalise": (0.5, 0.2)}, "the network does more"),
    ],
    ids=["gelu", "relu", "pooling", "branches", "batch", "normalised"],
)
def test_what_it_cannot_go_back_through_is_refused(change: dict[str, Any], said: str) -> None:
    target = shared(**change)
    with pytest.raises(BadInput, match=said):
        rgap.run(None, target, target.client)


def test_an_activation_is_inverted_whatever_it_is_called() -> None:
    for module in (nn.Tanh(), nn.Softplus(), nn.LeakyReLU(), nn.ELU(), nn.Dropout().eval()):
        z = torch.linspace(-6, 6, 97, dtype=torch.float64)
        assert rgap.invertible(module) and torch.allclose(rgap.inverse(module, module(z)), z, atol=1e-10)
    assert not any(map(rgap.invertible, (nn.ReLU(), nn.SiLU(), nn.Softmax(dim=-1), nn.AvgPool2d(2), nn.Dropout())))
