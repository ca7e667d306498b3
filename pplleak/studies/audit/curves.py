"""How near attacks come to the private examples, how near a guess comes without them, and what no attack can exceed.

    realised(δ) = share of private examples that one attack reconstructs to an RMS error of at most δ a pixel
    κ(δ)        = share of images that the best guess without any update comes as near to (`studies.risk.rero`)
    γ(δ)        = Φ(Φ⁻¹(κ) + 1/z), which no attack on one step of DP-SGD with noise multiplier z exceeds (Hayes et al. 2023)

κ is counted on public images, so that κ and γ are about private images that are drawn as those are. Who knows the label
guesses among the images of that class: κ is then that of the class that is guessed best.
"""  # noqa: E501

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pplleak import reading
from pplleak.data import Images
from pplleak.errors import BadInput, printable
from pplleak.federation.protection import Protection
from pplleak.studies.risk import rero
from pplleak.studies.risk.risk import interval

FILE = "guess.json"
DELTAS = (0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.4)  # RMS error of a pixel, whose range is 1
NEAR = 0.1  # the one that sentences speak of: 20 dB
MOST, FEWEST = 1_500, 20  # public images that κ is counted on, and of a class
DELTA = 1e-5  # of (ε, δ)-differential privacy
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Guess:
    """κ and its upper 95 % limit at `DELTAS`, for who knows no label and for who knows it; of so many public images."""

    images: int
    any: list[tuple[float, float]]
    known: list[tuple[float, float]]

    def at(self, known: bool) -> list[tuple[float, float]]:
        return self.known if known and self.known else self.any


def guess(public: Images) -> Guess:
    """κ of public images: of all of them, and of the class for which it is greatest."""
    x = public.x[:MOST].double().cpu().numpy()
    y = public.y[:MOST].cpu().numpy()
    pixels = math.prod(x.shape[1:])
    groups = [x[y == k] for k in np.unique(y) if (y == k).sum() >= FEWEST]
    masses = [[rero.prior_mass(of, d * math.sqrt(pixels)) for d in DELTAS] for of in [x, *groups]]
    pairs = [[(m.value, m.upper) for m in of] for of in masses]
    known = [(max(p[0] for p in at), max(p[1] for p in at)) for at in zip(*pairs[1:], strict=True)] if groups else []
    return Guess(len(x), pairs[0], known)


def read(folder: Path) -> Guess | None:
    """What `guess` gave for an audit's folder; None where it was not asked for."""
    if not (folder / FILE).is_file():
        return None
    where = printable(folder / FILE)
    found = reading.typed(reading.decoded(reading.contents(folder / FILE), dict[str, Any], where), Guess, where)
    if any(len(v) not in (0, len(DELTAS)) for v in (found.any, found.known)):
        raise BadInput(f"{where} is of another version: remove it, and run the audit's command again")
    return found


@dataclass(frozen=True)
class Group:
    """The private examples behind one protection, and one attack on all of them.

    errors  RMS error of a pixel of every example, inf where the attack had no result
    noise   z of DP-SGD, where one step of that is the protection
    known   whether the adversary had the labels
    """

    name: str
    attack: str
    errors: np.ndarray
    noise: float | None
    known: bool

    def realised(self, delta: float) -> tuple[float, float, float]:
        """The share of examples within δ, and its 95 % Clopper-Pearson interval."""
        hits = int((self.errors <= delta).sum())
        return hits / len(self.errors), *interval(hits, len(self.errors))

    def limit(self, kappa: float) -> float | None:
        """γ for a prior mass κ; None without DP-SGD."""
        return None if self.noise is None else rero.gaussian(kappa, self.noise)


def groups(rows: Sequence[Row]) -> list[Group]:
    """Rows by protection, each with the attack that succeeds most often there.

    Args:
        rows: `name`, `attack`, `protected` (in words), `protection`, `labels`, and `near`, the PSNR of each example, []
            where the attack had no result or there is no truth.
    """
    made = []
    for words in dict.fromkeys(r["protected"] for r in rows):
        mine = [r for r in rows if r["protected"] == words]
        sizes = {r["name"]: max(len(q["near"]) for q in mine if q["name"] == r["name"]) for r in mine}
        found = []
        for attack in dict.fromkeys(r["attack"] for r in mine):
            near = {r["name"]: r["near"] for r in mine if r["attack"] == attack}
            parts = [10 ** (-np.array(near[n]) / 20) if near.get(n) else np.full(k, np.inf) for n, k in sizes.items()]
            errors = np.concatenate(parts)
            found.append((sum(int((errors <= d).sum()) for d in DELTAS), attack, errors))
        if not found or not len(found[0][2]):
            continue
        _, attack, errors = max(found, key=lambda f: f[0])
        how = [str(r["labels"]) for r in mine if r["labels"]]  # of those that were looked at
        known = not how or not all(h.startswith("unknown") for h in how)
        made.append(Group(str(words), attack, errors, noise_of(str(mine[0]["protection"])), known))
    return made


@functools.cache
def noise_of(protection: str) -> float | None:
    """z, where the protection is DP-SGD and nothing else."""
    try:
        parts = Protection.parse(protection)
    except BadInput:
        return None
    if parts.defence is not None or not parts.is_channel("dpsgd") or parts.channel is None:
        return None
    z = parts.filled().channel.settings["noise_multiplier"]  # type: ignore[union-attr]
    return float(z) if isinstance(z, int | float) and z > 0 else None


def epsilon(noise: float, delta: float = DELTA) -> float:
    """The least ε for which one step of noise multiplier z is (ε, δ)-differentially private, an example being there or
    not (Balle & Wang 2018, theorem 8): δ = Φ(1/2z − εz) − e^ε Φ(−1/2z − εz)."""
    from scipy import optimize, stats

    def excess(eps: float) -> float:
        a, b = 1 / (2 * noise) - eps * noise, -1 / (2 * noise) - eps * noise
        return float(stats.norm.cdf(a) - np.exp(eps + stats.norm.logcdf(b))) - delta

    high = 1.0
    while excess(high) > 0:
        high *= 2
    return 0.0 if excess(0.0) <= 0 else float(optimize.brentq(excess, 0.0, high))


def noise(eps: float, delta: float = DELTA) -> float:
    """The inverse of `epsilon`: z for an ε."""
    from scipy import optimize

    def excess(log: float) -> float:
        return epsilon(math.exp(log), delta) - eps

    return math.exp(optimize.brentq(excess, math.log(1e-4), math.log(1e3)))


def sentences(found: Sequence[Group], guessed: Guess | None) -> list[str]:
    """Of every group, in plain words."""
    lines = []
    for group in found:
        share, low, high = group.realised(NEAR)
        of = len(group.errors)
        line = (f"Behind {group.name}: {round(share * of)} of {of} private examples came back within {NEAR:g} of a "
                f"pixel's range (RMS error; 20 dB) by {group.attack}: {share:.0%}, 95 % interval {low:.0%} to "
                f"{high:.0%}.")  # fmt: skip
        if guessed is not None:
            value, upper = guessed.at(group.known)[DELTAS.index(NEAR)]
            line += f" The best guess without the update comes as near to {value:.0%} of such, at most {upper:.0%}."
            limit = group.limit(upper)
            if limit is not None and limit > 0.99:
                line += " The noise is too little to rule out that an attack brings back every one."
            elif limit is not None:
                line += (f" No attack whatever on one such step comes as near to more than {limit:.0%}."
                         if low <= limit else
                         f" That is more than the {limit:.0%} that the noise allows any attack: the noise is not what "
                         "the file says, or the private images are not like the public ones.")  # fmt: skip
            line += beaten(group, guessed)
        lines.append(line)
    return lines


def beaten(group: Group, guessed: Guess) -> str:
    """Where the best guess comes near to more examples than the attack, in plain words; "" where it nowhere does."""
    worse = [d for d, (value, _) in zip(DELTAS, guessed.at(group.known), strict=True) if value > group.realised(d)[0]]
    if not worse:
        return ""
    within = f"{worse[0]:g}" if len(worse) == 1 else f"{worse[0]:g} to {worse[-1]:g}"
    return (f" At errors of {within}, that guess comes near to more examples than {group.attack} does: there the "
            "attack is worse than none, which is no sign of privacy.")  # fmt: skip
