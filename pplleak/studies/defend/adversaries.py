"""Who attacks a defence in `pplleak defend`: its own attack, the classic ones, and the model that knows it."""

from __future__ import annotations

from pplleak import channels
from pplleak.errors import BadInput
from pplleak.federation import defences
from pplleak.federation.defences import Attacks
from pplleak.federation.protection import NONE

CLASSIC = ("dlg", "inverting_gradients")  # they know no defence
OPTIMAL = "optimal"  # knows the data's distribution, and the channel, whichever it is
NOBODY = Attacks("dlg", "none of its own; Deep Leakage from Gradients", OPTIMAL)
CHANNELS = {
    "gaussian": Attacks("dlg", "Zhu et al. 2019, noisy gradients", OPTIMAL),
    "laplace": Attacks("dlg", "Zhu et al. 2019, noisy gradients", OPTIMAL),
    "topk": Attacks("dlg", "Zhu et al. 2019, gradient compression", OPTIMAL),
    "quantised": Attacks("dlg", "Zhu et al. 2019, low precision", OPTIMAL),
}


def adversaries(name: str) -> Attacks:
    """Who attacks a protection, by the name of its defence (what that file's `ATTACKS` says) or its channel; raises
    BadInput where nobody is known to."""
    if name == NONE or name in channels.names():
        return CHANNELS.get(name, NOBODY)
    defence = name.partition("+")[0]  # behind a channel, too: who knows the defence knows the channel
    said: Attacks | None = getattr(defences.load(defence), "ATTACKS", None)
    if said is None:
        raise BadInput(f"no adversary is known to attack the defence '{defence}': its file names none as ATTACKS")
    return said


def models(name: str) -> list[str]:
    """Every model that attacks a defence, each once; the one that knows it comes last."""
    row = adversaries(name)
    return [m for m in dict.fromkeys((row.own, *CLASSIC)) if m != row.knowing] + [row.knowing]
