"""The gradient of a fully connected first layer: Σ_b δ_b [x_b, 1]ᵀ, which holds the images in closed form.

Source: Phong et al. 2017; Balunović et al. 2022, section 5. `inference/quotient.py`, `spear.py` and `imprint.py` read
the images off it.
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


def whose(
    client: Client, x: Tensor, deltas: Tensor, bias: str, shared: Tensor | None, size: int
) -> tuple[Tensor, Tensor]:
    """Whose label is whose: the one with which the network's own δ is nearest to the one that was found. An order
    (batch,) of the images, those that were not found last, and the labels (batch,) in it: those that were shared.

    Args:
        x: (found, pixels). deltas: (found, units), δ_b of the mean over the batch. bias: the name of b.
        shared: (batch,), or None. size: of the batch.
    """
    from scipy.optimize import linear_sum_assignment  # where it is used: slow to import

    found, classes = len(x), client.num_classes
    y = torch.arange(classes, device=x.device).expand(found, -1)
    images = x.to(client.dtype).reshape(found, 1, 1, *client.input_shape).expand(-1, classes, -1, *client.input_shape)
    own = client.update(images, y[..., None]).part(client.slices[bias]).double() / size
    away = (own - deltas[:, None]).norm(dim=-1) / deltas.norm(dim=-1, keepdim=True)
    if shared is None:
        labels = torch.cat([away.argmin(1), away.new_zeros(size - found, dtype=torch.long)])
        return torch.arange(size, device=x.device), labels
    places = linear_sum_assignment(away[:, shared].cpu().numpy())[1].tolist()  # of each image among the labels
    places += sorted(set(range(size)) - set(places))
    return torch.tensor(places, device=x.device).argsort(), shared
