"""How far an observation lies from what a channel p(g | u(x)) expects, at images that are given.

    χ² = ‖g − u‖² / σ², overall and by parameter;   c = ⟨g, u⟩ / ‖u‖² ± σ / ‖u‖;   Σ_k ∂ℓ/∂b_k = 0 ± σ √K

behind rounding errors, whose width σ_l of a tensor is known to ν_l degrees of freedom, ‖g_l − u_l‖² / D_lσ_l² ~
F(D_l, ν_l), with c and the sum as uncertain as where errors of all entries go together,

    |c − 1| ≤ ‖g − u‖ / ‖u‖ = σ √D / ‖u‖,        |Σ_k e_k| ≤ √K ‖e‖ = σ_b K

and behind a channel without Gaussian noise −log p(g | u) against that of its own replicates. `pplleak.posterior.fit`
says what is made of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pplleak import channels
from pplleak.channels.gaussian import Gaussian
from pplleak.channels.rounded import Rounded
from pplleak.client.last_layer import last_layer
from pplleak.client.loss import get
from pplleak.client.optimisers import keeps_sums
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation

REPLICATES = 100


@dataclass(frozen=True, eq=False)
class Misfit:
    """The channel p(g | u(x)) at every image that is looked at, each as two equal chains.

    bent: coordinates d that may have bent towards g: χ² is then expected between D − d and D.
    """

    observed: Observation
    laws: list[channels.Channel]
    bent: int

    @property
    def gaussian(self) -> list[Gaussian] | None:
        """The same as Gaussian channels, where the noise is Gaussian and of one width."""
        laws = [getattr(law, "clipped", law) for law in self.laws]
        return laws if all(isinstance(k, Gaussian) for k in laws) else None  # type: ignore[return-value]

    @property
    def rounded(self) -> list[Rounded] | None:
        """The same as channels of rounding errors, where they are."""
        laws = [k for k in self.laws if isinstance(k, Rounded)]
        return laws if len(laws) == len(self.laws) else None

    @property
    def sigma(self) -> float | None:
        """σ where the noise is Gaussian, or of rounding: as it was told, or in the median where it is inferred."""
        laws = self.gaussian or self.rounded
        return None if laws is None else float(torch.stack([sigma_of(k) for k in laws]).median())

    def misfit(self) -> dict[str, Any]:
        laws, g = self.gaussian or self.rounded, self.observed.g
        norm = float(g.double().norm())
        if laws is None or self.sigma is None:
            sigma = self.observed.sigma
            found = {"signal_to_noise": None if not sigma else norm / (sigma * math.sqrt(len(g)))}
            return {**found, **self._replicated()}
        sigma = self.sigma
        square = torch.zeros(len(g), dtype=torch.float64, device=g.device)
        for k in laws:  # one after the other: of a large network each is a hundred megabytes
            width = k.spread(g).expand(2, -1)[0] if isinstance(k, Rounded) else sigma_of(k)
            square += ((g - k.update.materialise()[0]).double() / width).square() / len(laws)
        looks = {n: float(square[where].sum()) for n, where in self.observed.client.slices.items()}
        sizes = {n: where.stop - where.start for n, where in self.observed.client.slices.items()}
        total = float(square.sum())
        made = {"chi2_per_entry": total / len(g), "signal_to_noise": norm / (sigma * math.sqrt(len(g)))}
        if isinstance(laws[0], Rounded):
            dofs = dict(zip(looks, laws[0].dof.tolist(), strict=True))
            p = min(_two_sided_f(looks[n], sizes[n], self.bent, dofs[n]) for n in looks) * len(looks)
            sds = {n: self._log_sds(looks[n], sizes[n], _log_sd(sizes[n], dofs[n])) for n in looks}
            sd = sum(sizes[n] / len(g) * _log_sd(sizes[n], dofs[n]) for n in looks)  # as if all went together
            return {**made, "chi2_sd": self._log_sds(total, len(g), sd), "layers": sds, "p": min(1.0, p)}
        sds = {n: self._sds(chi2, sizes[n]) for n, chi2 in looks.items()}
        worst = min(
            _two_sided(chi2, n, self.bent) for chi2, n in [(total, len(g)), *((looks[k], sizes[k]) for k in looks)]
        )
        return {**made, "chi2_sd": self._sds(total, len(g)), "layers": sds, "p": min(1.0, worst * (1 + len(looks)))}

    def _sds(self, chi2: float, size: int) -> float:
        """Standard deviations that χ² lies beyond its band."""
        expected = min(max(chi2, size - min(self.bent, size)), size)
        return (chi2 - expected) / math.sqrt(2 * size)

    def _log_sds(self, chi2: float, size: int, sd: float) -> float:
        """The same in standard deviations of log χ²."""
        expected = min(max(chi2, size - min(self.bent, size - 1)), size)
        return math.log(max(chi2, 1e-300) / expected) / sd

    def _replicated(self) -> dict[str, Any]:
        """The discrepancy −log p(g | u(x)) against that of replicates."""
        try:
            own = torch.stack([-k.log_prob(self.observed.g).double().flatten()[0] for k in self.laws])
            drawn = torch.stack(
                [-k.log_prob(k.sample()).double()[0] for k in self.laws for _ in range(_each(self.laws))]
            )
        except NotImplementedError:
            return {}
        sd, mean, value = float(drawn.std()), float(drawn.mean()), float(own.mean())
        if not (math.isfinite(sd) and math.isfinite(mean)):
            return {}
        if not math.isfinite(value):
            return {"chi2_sd": math.inf, "p": 0.0}
        away = value - min(max(value, mean - self.bent / 2), mean)  # a mode has up to half a nat a coordinate
        sds = away / max(sd, 1e-3 * max(1.0, abs(mean)) * torch.finfo(torch.float32).eps, 1e-9)
        return {"chi2_sd": sds, "p": math.erfc(abs(sds) / math.sqrt(2))}

    def scale(self) -> dict[str, float]:
        """c and its standard error; only where the channel scales nothing itself."""
        laws = self.gaussian or self.rounded
        if laws is None or self.sigma is None:
            return {}
        g = self.observed.g
        inner = sum(float(k.update.inner(g)[0]) for k in laws) / len(laws)
        square = sum(float(k.update.sqnorm()[0]) for k in laws) / len(laws)
        if not square > 0:
            return {}
        se = self.sigma / math.sqrt(square) * (math.sqrt(len(g)) if self.rounded else 1)
        return {"scale": inner / square, "scale_se": se, "scale_bent": self.bent * se**2}

    def bias(self) -> dict[str, float]:
        """What the last bias's gradient sums to."""
        client, sigma = self.observed.client, self.sigma
        if sigma is None or not get(client.loss).sums_to_zero or client.noise_shape is not None:
            return {}
        if client.local is not None and not keeps_sums(client.local.optimizer):
            return {}
        try:
            layer = last_layer(client)
        except BadInput:
            return {}
        if not layer.bias:
            return {}
        b = client.split(self.observed.g)[layer.bias].double()
        if self.rounded:
            sigma *= float(self.rounded[0].widths[list(client.slices).index(layer.bias)]) * math.sqrt(len(b))
        rounding = 2 * torch.finfo(self.observed.g.dtype).eps * float(b.abs().max())
        return {"bias_sum": float(b.sum()), "bias_sum_se": math.sqrt(len(b)) * math.hypot(sigma, rounding)}


def sigma_of(law: Gaussian | Rounded) -> Tensor:
    return torch.as_tensor(law.sigma, dtype=torch.float64).flatten()[0]


def _each(laws: list[channels.Channel]) -> int:
    return max(1, REPLICATES // len(laws))


def _two_sided(chi2: float, size: int, bent: int) -> float:
    """P-value of χ² of `size` entries, of which up to `bent` may have been fitted."""
    from scipy.special import chdtr, chdtrc  # where it is used: scipy.stats, which has them too, is slow to import

    low = float(chdtr(size - bent, chi2)) if bent < size else 1.0
    return min(1.0, 2 * min(low, float(chdtrc(size, chi2))))


def _two_sided_f(chi2: float, size: int, bent: int, dof: float) -> float:
    """The same of a χ² whose unit is known to `dof` degrees of freedom: χ² / size ~ F(size, dof)."""
    from scipy.special import fdtr, fdtrc

    low = float(fdtr(size - bent, dof, chi2 / (size - bent))) if bent < size else 1.0
    return min(1.0, 2 * min(low, float(fdtrc(size, dof, chi2 / size))))


def _log_sd(size: int, dof: float) -> float:
    """Standard deviation of log F(size, dof)."""
    return float(sum(torch.polygamma(1, torch.tensor(n / 2, dtype=torch.float64)) for n in (size, dof)) ** 0.5)
