"""Soteria (Sun et al. 2021): do not share what a fully connected layer's gradient says of its sensitive inputs.

For a linear layer W with input r(x), the *representation*, the gradient ∂ℓ/∂W = δ rᵀ gives r away. Soteria drops the
columns of the F features that are most sensitive, so that r as it is read off the gradient is far from r:

    s_i = | Σ_b ‖∂r_i/∂x_b‖₂ / (r_i(x_b) + 0.1) |,      ∂ℓ/∂W_{·i} ← 0 for the rate · F smallest s_i

which is the paper's ‖r_i (∂r_i/∂x)⁻¹‖₂, largest first, for the norms p = 2 and q = 0. The 0.1, the sum over the batch
and the percentile are those of the authors' code (`GS_attack/reconstruct_image.py`). The bias and all other layers are
shared as they are: which is what `models/soteria.py` reads the image from.

Source: Sun, Li, Wang, Yang, Li and Chen, Soteria: Provable Defense against Privacy Leakage in Federated Learning from
Representation Perspective, CVPR 2021.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pplleak.client import Client
from pplleak.errors import BadInput
from pplleak.federation.defences import Attacks

ATTACKS = Attacks("inverting_gradients", "Sun et al. 2021", "soteria")

OFFSET = 0.1  # of the authors' code: no division by an inactive feature


def share(client: Client, x: Tensor, y: Tensor, *, rate: float = 0.4, layer: str = "") -> Tensor:
    """The client's gradient with the columns of sensitive features at 0, (D,).

    Args:
        rate: the share of the features that are dropped, in [0, 1).
        layer: the linear layer that is defended, as the network names it; empty: the last one.
    """
    return client.update(x, y, client.noise(len(y))).materialise() * sent(client, x, y, rate=rate, layer=layer)


def sent(client: Client, x: Tensor, y: Tensor, *, rate: float = 0.4, layer: str = "") -> Tensor:
    """Which entries are shared at all, (D,) bool; arguments as for `share`."""
    if not 0 <= rate < 1:
        raise BadInput(f"soteria's rate must be at least 0 and below 1 (the share of features dropped), not {rate}")
    name, module = defended(client, layer)
    score = sensitivity(client, module, x)
    kept = score >= torch.quantile(score, rate)
    everything = torch.ones(client.update_size, dtype=torch.bool, device=score.device)
    weight = f"{name}.weight" if name else "weight"
    everything[client.slices[weight]] = kept.expand(module.out_features, -1).flatten()
    return everything


def defended(client: Client, layer: str) -> tuple[str, nn.Linear]:
    """The linear layer of that name, or the last one; raises BadInput where there is none."""
    found = {n: m for n, m in client.network.named_modules() if isinstance(m, nn.Linear)}
    shared = {n: m for n, m in found.items() if (f"{n}.weight" if n else "weight") in client.layers}
    if not shared:
        raise BadInput("soteria defends a fully connected layer, and this network shares none: take another defence")
    if layer and layer not in shared:
        raise BadInput(f"the network shares no fully connected layer '{layer}': it has {', '.join(shared)}")
    name = layer or list(shared)[-1]
    return name, shared[name]


def sensitivity(client: Client, module: nn.Linear, x: Tensor) -> Tensor:
    """s_i of the features r (batch, F) that the layer takes, (F,)."""
    if client.vocabulary is not None:
        raise BadInput("soteria takes slopes in the input, and token ids have none: take another defence")
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with torch.enable_grad():
            x = x.to(client.dtype).detach().requires_grad_()
            client.network(x)
            (r,) = seen
            if r.dim() != 2:
                raise BadInput(f"soteria defends a layer that takes (batch, features), not {tuple(r.shape)}")
            if not r.requires_grad:
                raise BadInput("soteria's layer does not depend on the image: there is nothing to defend")
            eye = torch.eye(r.shape[1], dtype=r.dtype, device=r.device)[:, None].expand(-1, len(r), -1)
            (slopes,) = torch.autograd.grad(r, x, eye, is_grads_batched=True)
    finally:
        handle.remove()
    return (slopes.flatten(2).norm(dim=2) / (r.detach().mT + OFFSET)).sum(1).abs()
