"""ROG: enlarged small images; without the enlargement it is the squared distance that DLG matches."""

from __future__ import annotations

import functools

import torch
from conftest import observe, tiny

from pplleak.density import build
from pplleak.models import dlg, rog


def test_an_enlarged_image_is_smooth_and_without_enlargement_the_model_is_that_of_dlg() -> None:
    client = tiny(shape=(1, 5, 4))
    shared = observe(client, 0.1)
    whole, half, other = (build(functools.partial(m, sigma=0.1, **s), client, shared) for m, s in (
        (rog.model, {"scale": 1}), (rog.model, {"scale": 2}), (dlg.model, {})))  # fmt: skip
    z = torch.randn(6, 20, dtype=torch.float64)
    assert half.dim == 6 and torch.allclose(whole(z), other(z), rtol=1e-9)
    x, _ = half.images(z[:, :6])
    assert x.shape == (6, 1, 1, 5, 4)
    small = torch.sigmoid(z[:, :6]).reshape(6, 1, 3, 2)
    assert torch.allclose(x[:, 0], torch.nn.functional.interpolate(small, (5, 4), mode="bicubic"))
    assert not torch.allclose(half(z[:, :6]), other(z))
