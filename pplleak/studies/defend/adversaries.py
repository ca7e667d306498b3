"""Who attacks a defence in `pplleak defend`: its own attack, the classic ones, and the model that knows it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pplleak import channels
from pplleak.errors import BadInput
from pplleak.federation.protection import NONE

CLASSIC = ("dlg", "inverting_gradients")  # they know no defence


@dataclass(frozen=True)
class Adversaries:
    """Who attacks a defence: the model of its own paper's attack, where that stands, and the model that knows it."""

    defence: str
    own: str
    source: str
    knowing: str


OPTIMAL = "optimal"  # knows the data's distribution, and the channel, whichever it is
ADVERSARIES = (
    Adversaries("gaussian", "dlg", "Zhu et al. 2019, noisy gradients", OPTIMAL),
    Adversaries("laplace", "dlg", "Zhu et al. 2019, noisy gradients", OPTIMAL),
    Adversaries("topk", "dlg", "Zhu et al. 2019, gradient compression", OPTIMAL),
    Adversaries("quantised", "dlg", "Zhu et al. 2019, low precision", OPTIMAL),
    Adversaries("soteria", "inverting_gradients", "Sun et al. 2021", "soteria"),
    Adversaries("ats", "inverting_gradients", "Gao et al. 2021", "ats"),
    Adversaries("precode", "inverting_gradients", "Scheliga et al. 2022", "precode"),
    Adversaries("dropout", "inverting_gradients", "Scheliga et al. 2023, before they know the mask", "dropout"),
)


def adversaries(name: str) -> Adversaries:
    """The row of a defence; raises BadInput where nobody is known to attack it."""
    known = {a.defence: a for a in ADVERSARIES}
    if name in known:
        return known[name]
    if name == NONE or name in channels.names():
        return Adversaries(name, "dlg", "none of its own; Deep Leakage from Gradients", OPTIMAL)
    defence = name.partition("+")[0]  # behind a channel, too: who knows the defence knows the channel
    if defence in known:
        return replace(known[defence], defence=name)
    raise BadInput(f"no adversary is known to attack the defence '{name}': known are {', '.join(known)}")


def models(name: str) -> list[str]:
    """Every model that attacks a defence, each once; the one that knows it comes last."""
    row = adversaries(name)
    return [m for m in dict.fromkeys((row.own, *CLASSIC)) if m != row.knowing] + [row.knowing]
