"""Who attacks a defence in `pplleak defend`: its own attack, the classic ones, and the model that knows it."""

from __future__ import annotations

from dataclasses import dataclass

from pplleak.errors import BadInput

CLASSIC = ("dlg", "inverting_gradients")  # they know of no defence


@dataclass(frozen=True)
class Adversaries:
    """Who attacks a defence: the model of its own paper's attack, where that stands, and the model that knows it."""

    defence: str
    own: str
    source: str
    knowing: str


DLG = "none of its own; Deep Leakage from Gradients"
ADVERSARIES = (
    Adversaries("none", "dlg", DLG, "gaussian"),
    Adversaries("gaussian", "dlg", "Zhu et al. 2019, noisy gradients", "gaussian"),
    Adversaries("laplace", "dlg", "Zhu et al. 2019, noisy gradients", "laplace_noise"),
    Adversaries("topk", "dlg", "Zhu et al. 2019, gradient compression", "topk"),
    Adversaries("masked", "dlg", DLG, "masked"),
    Adversaries("pruned", "dlg", DLG, "pruned"),
    Adversaries("quantised", "dlg", "Zhu et al. 2019, low precision", "quantised"),
    Adversaries("sign", "dlg", DLG, "sign"),
    Adversaries("dpsgd", "dlg", DLG, "dpsgd"),
    Adversaries("soteria", "inverting_gradients", "Sun et al. 2021", "soteria"),
    Adversaries("ats", "inverting_gradients", "Gao et al. 2021", "ats"),
    Adversaries("precode", "inverting_gradients", "Scheliga et al. 2022", "precode"),
    Adversaries("dropout", "inverting_gradients", "Scheliga et al. 2023, before they know the mask", "dropout"),
)


def adversaries(name: str) -> Adversaries:
    """The row of a defence; raises BadInput where nobody is known to attack it."""
    found = {a.defence: a for a in ADVERSARIES}
    if name not in found:
        raise BadInput(f"no adversary is known to attack the defence '{name}': known are {', '.join(found)}")
    return found[name]


def models(name: str) -> list[str]:
    """Every model that attacks a defence, each once; the one that knows it comes last."""
    row = adversaries(name)
    return [m for m in dict.fromkeys((row.own, *CLASSIC)) if m != row.knowing] + [row.knowing]
