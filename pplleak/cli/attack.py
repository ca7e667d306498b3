"""Attack one shared gradient: what does it reveal about the image behind it?"""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from pplleak import runs
from pplleak.cli._local import Unknown
from pplleak.cli._options import (
    PriorName,
    Victim,
    given,
    groups,
    helps,
    inference_settings,
    network_settings,
    options,
    parse,
    parse_known,
    settings_of,
)
from pplleak.programs import AUTO, MODEL
from pplleak.progress import bar, terminal
from pplleak.settings import with_defaults

SHOWN = "hmc"  # the settings that a help text shows where the inference is chosen later


@dataclasses.dataclass(frozen=True)
class Attack(Victim):
    tables: ClassVar[bool] = True
    texts: ClassVar[bool] = True
    model: str = MODEL
    """What the adversary believes: a name (`pplleak ls`) or ./FILE.py; its beliefs are --model.NAME."""
    prior: PriorName = ""
    inference: str = AUTO
    """How it computes with that: a name (`pplleak ls`) or ./FILE.py; its settings are --inference.NAME. auto: hmc on a
    smooth network, else an exact sampler that takes the network's kinks."""
    surrogate: float | None = None
    """Sharpness β of a softplus for the network's (leaky) ReLU in the adversary's model: an approximation."""
    observed: Path | None = None
    """Attack this observation (`pplleak observe`) instead of an image; the data then only serve the prior."""
    shared_only: bool = False
    """With --observed: trainable layers that are missing from the file were not shared."""
    local_unknown: tuple[Unknown, ...] = ()
    """What the server does not know of local training (epochs, batch_size, lr, shares): the likeliest is taken, of
    small sets or, of lr, around --local-lr, by evidence."""
    explain: bool = True
    """Where the result does not fit, look for the cause: other clients are tried, and a failed search is made again."""
    strict: bool = False
    """Exit with code 3 where the result is not to be trusted: it does not fit, did not converge, says nothing, or is a
    point without uncertainty."""
    out: Path = Path("attack")
    """Folder for posterior.nc, attack.png, summary.json and report.html; of a table cells.csv, of text tokens.csv
    besides."""


def run(argv: Sequence[str]) -> int:
    observed, model = given(argv, "--observed", ""), given(argv, "--model", Attack.model)
    name, why = given(argv, "--inference", AUTO), ""
    parts = groups(Attack, argv, "channel", "defence", "model")
    if observed:
        from pplleak.cli._arguments import network_defaults

        network, defaults = network_defaults(argv, observed)
    else:
        network, defaults = given(argv, "--network", Attack.network), {}
    known = with_defaults(network_settings(argv, network), defaults, observed)
    parts = {"network": settings_of("Network", known), **parts}
    shown = {"inference": settings_of("Inference", inference_settings(argv, SHOWN if name == AUTO else name, model))}
    if name != AUTO or helps(argv):
        args = parse(Attack, "attack", argv, {**parts, **shown})
    else:  # the settings of the inference are known once it is chosen; any other wrong word is told before the work
        args, words = parse_known(Attack, "attack", argv, parts)
        if any(w.startswith("-") and not w.startswith("--inference.") for w in words):
            args = parse(Attack, "attack", argv, {**parts, **shown})

    from dataclasses import replace

    from pplleak.cli import _arguments as arguments
    from pplleak.density import embedding_rows
    from pplleak.errors import printable
    from pplleak.studies.attack import records, report
    from pplleak.studies.attack.attack import attack, choose
    from pplleak.studies.attack.forecast import forecast
    from pplleak.studies.audit import report as page

    begun = time.time()

    def kept(out: Path) -> str:
        saved = out / "posterior.nc"
        return f"interrupted: {saved} is kept, what was to follow is not" if _newer(saved, begun) else ""

    with runs.claim(args.out, kept=kept) as out:
        shared = arguments.attacked(args, network)
        if shared.client.columns is not None:
            terminal().print(records.kinds(shared.client.columns))
        if shared.client.vocabulary is not None:
            named = embedding_rows.said(embedding_rows.named(shared), shared.client.vocabulary, shared)
            terminal().print(printable(named, 2000), highlight=False, soft_wrap=True)
        if args.local_unknown:
            from pplleak import programs
            from pplleak.studies.attack import training
            from pplleak.studies.attack.attack import believe

            bound = believe(programs.load("models", args.model), shared, arguments.beliefs(args, several=True))
            shared, said = training.told(bound, shared, args.local_unknown, progress=bar)
            terminal().print(said, highlight=False, soft_wrap=True)
        if name == AUTO:
            name, why = choose(shared, args.model, arguments.beliefs(args, several=True))
            shared = replace(shared, provenance={**shared.provenance, "chosen": why})
            if shared.client.kinks:
                terminal().print(f"inference {name}: {why}", highlight=False, soft_wrap=True)
            parts["inference"] = settings_of("Inference", inference_settings(argv, name, model))
            args = parse(Attack, "attack", argv, parts)
        terminal().print(report.signal(shared), highlight=False, soft_wrap=True)
        expected = forecast(shared, args.model, name, arguments.beliefs(args, several=True), options(args, "inference"))
        if expected is not None:
            terminal().print(str(expected), highlight=False, soft_wrap=True)
        result = attack(
            shared,
            args.model,
            name,
            prior=several if len(several := arguments.priors(args)) > 1 else None,
            beliefs=arguments.beliefs(args, several=True),
            settings=options(args, "inference"),
            seed=args.seed,
            explain=args.explain,
            progress=bar,
        )
        result = result.with_(attrs={**result.attrs, "command": shlex.join(["pplleak", "attack", *argv])})
        summary = report.write(result, out, terminal())
        page.write(out, result)  # for people, of what was found
    if result.interrupted:
        return 130
    return 3 if args.strict and not summary["trusted"] else 0


def _newer(path: Path, moment: float) -> bool:
    return path.exists() and path.stat().st_mtime >= moment
