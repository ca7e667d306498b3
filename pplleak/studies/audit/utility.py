"""What a protection costs: the accuracy of the recorded network after a short federated training behind it.

Every training starts from the weights of the first observation and takes the same steps on the same public images
(`pplleak.federation.rounds`); accuracy is that on the other half of the data. What was recorded is trained as it was
shared: behind DP-SGD where that was its channel, else behind nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pplleak.client.loss import get
from pplleak.data import Images
from pplleak.errors import BadInput
from pplleak.federation import rounds
from pplleak.federation.observation import Observation
from pplleak.federation.protection import NONE, Protection
from pplleak.federation.rounds import Federation
from pplleak.runs import Rows
from pplleak.settings import Named

COLUMNS = {"protection": str, "steps": int, "recorded": bool, "accuracy": float, "epsilon": float | None}
TABLE, FOLDER = "trainings.csv", "training"
Row = dict[str, Any]


def table(out: Path) -> Rows:
    """A row a training that is done."""
    return Rows(out / TABLE, COLUMNS, ("protection", "steps"))


def recorded(observed: Observation) -> str:
    """What a training goes through that shares as an observation was shared."""
    channel = observed.protection.channel
    if channel is None or channel.name != "dpsgd":
        return NONE
    return str(replace(observed.protection, channel=channel.with_(lot=0)))


def missing(out: Path, observed: Observation, defences: Iterable[str], steps: int) -> list[str]:
    """The protections, that of the observation first, behind which no training of so many steps is done."""
    done = {(r["protection"], r["steps"]) for r in table(out).read()}
    return [p for p in dict.fromkeys([recorded(observed), *defences]) if (p, steps) not in done]


def require(observed: Observation, public: Images, data: str, defences: Iterable[str]) -> None:
    """Raise BadInput, before any work, where public data are of another kind than the recorded network takes, or it has
    no classes to be right about, or a protection cannot train it."""
    client = replace(observed.client, local=None)
    if public.x.shape[1:] != client.input_shape or int(public.y.max()) >= client.num_classes:
        raise BadInput(f"a training takes data of one kind, and those of {data} are {tuple(public.x.shape[1:])}, "
                       f"where the recorded network takes {tuple(client.input_shape)}: name others")  # fmt: skip
    if get(client.loss).of_tokens:
        raise BadInput(f"a training here is judged by its accuracy, of classes: the loss {client.loss} has none")
    for protection in (recorded(observed), *defences):
        rounds.require(client, public, Federation(), Protection.parse(protection))


def trainer(
    load: Callable[[], Observation], public: Images, test: Images, data: str, out: Path, steps: int, seed: int
) -> Callable[[str], Row]:
    """What trains behind one protection, or goes on where it was interrupted, and gives its row.

    Args:
        load: reads the first observation anew: a training changes the weights of its network.

    What is given back raises KeyboardInterrupt for Ctrl-C.
    """

    def one(protection: str) -> Row:
        observed, protected = load(), Protection.parse(protection)
        client = replace(observed.client, local=None)
        federation = Federation()
        origin = str(observed.provenance.get("observed", ""))
        settings = rounds.record(data, Named("recorded"), federation, protected, seed=seed, checkpoint=Path(origin))
        rows, whole = rounds.train(client, public, test, federation, protected, _folder(out, protection),
                                   checkpoints=[steps], settings=settings, seed=seed)  # fmt: skip
        if not whole:
            raise KeyboardInterrupt
        last = rows[-1]
        return {"protection": protection, "steps": steps, "recorded": protection == recorded(observed),
                "accuracy": last["accuracy"], "epsilon": last["epsilon"]}  # fmt: skip

    return one


def accuracies(out: Path) -> tuple[dict[str, float], str, int]:
    """The accuracy behind each protection, by name, after the most steps that any was trained; which of them is that of
    what was recorded; the steps."""
    rows = table(out).read()
    steps = max((r["steps"] for r in rows), default=0)
    last = [r for r in rows if r["steps"] == steps]
    plain = next((r["protection"] for r in last if r["recorded"]), "")
    return {r["protection"]: r["accuracy"] for r in last}, plain, steps


def _folder(out: Path, protection: str) -> Path:
    return out / FOLDER / re.sub(r"[^\w.]+", "-", protection)
