"""The gradient of a fully connected first layer: Σ_b δ_b [x_b, 1]ᵀ, which holds the images in closed form.

Source: Phong et al. 2017; Balunović et al. 2022, section 5. `inference/quotient.py` reads the images off it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pplleak.client import Client
from pplleak.errors import BadInput


def first_layer(client: Client, g: Tensor) -> Tensor:
    """[∂ℓ/∂W | ∂ℓ/∂b] of the layer that takes the image, (units, pixels + 1), float64.

    Raises:
        BadInput: as `fully_connected`.
    """
    parts = client.split(g)
    weight, bias = fully_connected(client)
    return torch.cat([parts[weight], parts[bias][:, None]], 1).double()


def fully_connected(client: Client) -> tuple[str, str]:
    """The names of W and b of the layer that takes the image.

    Raises:
        BadInput: the first layer is not fully connected, has no bias, or does not take the image as it is; the client
            shares local training.
    """
    if client.local is not None:
        raise BadInput("a quotient is of one gradient, and this client shares local training: take inference map")
    seen: list[tuple[str, nn.Module, Tensor]] = []
    handles = [
        module.register_forward_pre_hook(lambda m, args, name=name: seen.append((name, m, args[0])))
        for name, module in client.network.named_modules()
        if list(module.parameters(recurse=False))
    ]
    try:
        with torch.no_grad():
            x = torch.rand(2, *client.input_shape, generator=torch.Generator().manual_seed(0))
            x = x.to(client.device, client.dtype)
            client.network(x)
    finally:
        for handle in handles:
            handle.remove()
    name, module, taken = seen[0]
    prefix = f"{name}." if name else ""
    weight, bias = f"{prefix}weight", f"{prefix}bias"
    if not isinstance(module, nn.Linear) or not {weight, bias} <= set(client.layers):
        raise BadInput(f"the network's first layer ('{name}', {type(module).__name__}) is not a fully connected one "
                       "whose weight and bias are shared: take inference map or hmc")  # fmt: skip
    if taken.numel() != x.numel() or not torch.equal(taken.flatten(1), x.flatten(1)):
        raise BadInput("the network's first layer does not take the image as it is: take inference map or hmc")
    return weight, bias
