"""What a network's BatchNorm layers remember of its training data, as a Gibbs prior on a batch."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pplleak.errors import BadInput, require_positive

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True, eq=False)
class BatchNormStatistics:
    """p(x) ∝ exp(−weight Σ over layers l of ‖μ_l(x) − μ_BN‖² + ‖σ²_l(x) − σ²_BN‖²)   (after Yin et al. 2020)

    with the mean μ_l(x) and variance σ²_l(x) of each channel at the input of BatchNorm layer l, over the batch's
    examples and positions, and the running statistics μ_BN and σ²_BN that the network shares with its weights. The
    regulariser of the paper (DeepInversion) sums the norms; their squares are smooth where the statistics agree, which
    Hamiltonian samplers need.

    It is known only up to its normaliser: multiply it onto a proper prior, by
    ``pyro.factor("bn", -statistics.energy(x))``.

    network: a copy in eval mode, so that its layers pass on what the running statistics make of the batch. A client in
    train mode has dropped the statistics from its own copy: give the network that it was built from.
    """

    network: nn.Module
    weight: float = 1.0

    def energy(self, x: Tensor) -> Tensor:
        """weight · the sum above, for x (*chains, batch, *input_shape) of 3-dimensional images; (*chains,), float64."""
        lead, batch = x.shape[:-4], x.shape[-4]
        total = torch.zeros(lead.numel() if lead else 1, dtype=torch.float64, device=x.device)

        def look(layer: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
            nonlocal total
            a = inputs[0].unflatten(0, (-1, batch)).movedim(2, -1).flatten(1, -2)  # (chains, positions, channels)
            off = (a.mean(1) - layer.running_mean).square() + (a.var(1, correction=0) - layer.running_var).square()
            total = total + off.double().sum(1)

        handles = [m.register_forward_pre_hook(look) for m in self.network.modules() if _remembers(m)]
        try:
            self.network(x.flatten(0, -4).to(next(self.network.parameters()).dtype))
        finally:
            for handle in handles:
                handle.remove()
        return self.weight * total.reshape(lead)


def _remembers(module: nn.Module) -> bool:
    return isinstance(module, NORMS) and module.running_mean is not None


def batchnorm(network: nn.Module, weight: float = 1.0) -> BatchNormStatistics:
    """The statistics prior of a network; raises BadInput where it has no BatchNorm layer that keeps statistics."""
    require_positive(weight=weight)
    if not any(_remembers(m) for m in network.modules()):
        raise BadInput(
            "the network has no BatchNorm layer with running statistics, so it remembers nothing of its data: take a "
            "model without the BatchNorm prior, or a network that has them"
        )
    return BatchNormStatistics(copy.deepcopy(network).eval().requires_grad_(False), weight)
