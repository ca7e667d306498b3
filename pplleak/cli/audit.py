"""Attack many recorded updates within a budget of time, and write a report that anyone can read."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from pplleak import runs, signatures, sources
from pplleak.cli import _named as named
from pplleak.cli import _where as where
from pplleak.cli._options import (
    DataName,
    NetworkName,
    Precision,
    PriorName,
    given,
    groups,
    inference_settings,
    network_settings,
    options,
    parse,
    settings_of,
)
from pplleak.errors import BadInput
from pplleak.programs import AUTO, MODEL
from pplleak.progress import bar, terminal
from pplleak.settings import Named, with_defaults

if TYPE_CHECKING:
    from pplleak.federation.observation import Observation
    from pplleak.studies.audit.audit import Answer
    from pplleak.studies.audit.knowledge import Labels
    from pplleak.studies.audit.plan import Job
else:
    Labels = signatures.kind(sources.module("pplleak.studies.audit.knowledge"), "Labels")


ATTACKS = f"quotient,spear,map,{AUTO}"
OF_TEXTS = f"dager,{AUTO}"  # token ids have no slopes


@dataclasses.dataclass(frozen=True)
class Audit(where.Where):
    tables: ClassVar[bool] = True
    texts: ClassVar[bool] = True
    observations: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Observation files (`pl.record`, `pplleak observe`), or folders of them."""
    truth: Path | None = None
    """Folder of the private batches that the auditor kept (`private` beside the observations): scores the attacks."""
    budget: float = 10.0
    """Minutes for all attacks together; each observation is attacked by the first before any is by the second."""
    attacks: str = ""
    """Inferences, the cheap ones first, separated by commas; auto: the posterior's. Settings: --NAME.SETTING. Where
    none is named: quotient,spear,map,auto; of text dager,auto."""
    labels: Labels = "auto"
    """known to the adversary, recovered off the gradient, unknown (summed over); auto: recovered where that is sure,
    else summed over where they are few, else known."""
    network: NetworkName = ""
    """Of all observations, where it is code: FILE.py:FUNCTION, or FILE.py:CLASS without arguments."""
    model: str = MODEL
    """What the adversary believes: a name (`pplleak ls`) or ./FILE.py; its beliefs are --model.NAME."""
    prior: PriorName = ""
    data: DataName = "digits"
    """Public images of the kind of the private ones, for the prior; or the table or the text that the clients train
    on rows of, FILE.csv or FILE.txt, of which the adversary knows the public half."""
    data_root: Path | None = None
    """Folder that holds MNIST/raw or cifar10/ (default: $PPLLEAK_DATA_ROOT, else ./data)."""
    defences: tuple[str, ...] = ()
    """What would protect: share the private batches anew behind each NAME:SETTING=VALUE,…, attack that by all attacks
    but auto (a table or a text by auto, too), and draw what each leaves to see against what it costs. Needs
    --truth."""
    train: int = 0
    """Train the network behind each of --defences, and as it was recorded, for so many steps on the public data: the
    picture then has accuracy as the cost. Its time is beside --budget."""
    dtype: Precision = "float32"
    """Precision in which the adversary computes; float64 reads spans (dager) off gradients that were shared in it."""
    seed: int = 0
    """Of the attacks and the trainings."""
    out: Path = Path("audit-report")
    """Folder for report.html, audit.csv and the posteriors; a run with the same settings goes on there."""


def run(argv: Sequence[str]) -> int:
    from pplleak.federation.protection import Protection

    args, names = _parsed(argv)
    if args.defences and args.truth is None:
        raise BadInput("--defences shares the private batches anew: name their folder, --truth")
    for text in args.defences:
        Protection.parse(text)
    if args.train < 0 or (args.train and not args.defences):
        raise BadInput(
            "--train says the steps of a training behind each of --defences: name those, and a number above 0"
        )
    if not args.budget > 0:
        raise BadInput(f"--budget is a positive number of minutes, not {args.budget}")
    with where.claim(args) as out:
        return work(args, names, argv, out)


def _parsed(argv: Sequence[str]) -> tuple[Any, list[str]]:
    """The command line, and the attacks that it names."""
    of = given(argv, "--data", Audit.data)
    usual = OF_TEXTS if named.is_text(of) else ATTACKS
    names = [n for n in (given(argv, "--attacks", "") or usual).split(",") if n]
    if not names or len({Path(n).stem for n in names}) < len(names):
        raise BadInput(f"--attacks names inferences, each once: {usual} for example")
    network, model = given(argv, "--network", ""), given(argv, "--model", MODEL)
    parts = groups(Audit, argv, "model")
    if network:
        parts["network"] = settings_of("Network", with_defaults(network_settings(argv, network), {}, network))
    parts |= {Path(n).stem: settings_of(Path(n).stem.title(), inference_settings(argv, n, model))
              for n in names if n != AUTO}  # fmt: skip
    return parse(Audit, "audit", argv, parts), names


def work(args: Any, names: Sequence[str], argv: Sequence[str], out: Path) -> int:
    """The attacks that are missing in a folder, and its report; the exit code."""
    from pplleak import data
    from pplleak.cli import _arguments as arguments
    from pplleak.studies.audit import audit, curves, report, utility
    from pplleak.studies.audit import plan as plans

    found = plans.items(args.observations, args.truth)
    said = {**dataclasses.asdict(args), "observations": [str(i.path) for i in found], "attacks": ",".join(names)}
    settled = runs.settings(said, leaving=("out", "budget", "defences", "train", *where.LEAVING))
    runs.settle(out / audit.SETTINGS, settled, "an audit", rows=out / audit.TABLE)
    sampled = named.is_table(args.data) or named.is_text(args.data)
    plan = audit.plan(out, runs.shard(found, args.shard), names, 60 * args.budget, args.defences, sampled)
    if args.truth is not None and not (out / curves.FILE).exists():
        public = data.public(arguments.data_of(args), args.data_root)
        images = public.columns is None and public.vocabulary is None
        if images and any(opener(args)(i.path).client.input_shape == public.x.shape[1:] for i in found[:1]):
            runs.json(out / curves.FILE, dataclasses.asdict(curves.guess(public)))
    if args.train:
        public = data.public(arguments.data_of(args), args.data_root)
        utility.require(opener(args)(found[0].path), public, args.data, args.defences)
    stopped: BaseException | None = None
    try:
        with where.spread(args, argv, maker, plan.take) as results:
            audit.audit(plan, results, out, load=opener(args), labels=args.labels, model=args.model,
                        beliefs=arguments.beliefs(args), progress=bar)  # fmt: skip
        if args.train:
            train(args, argv, out, found[0].path)
    except (KeyboardInterrupt, runs.WorkerLost) as stop:
        stopped = stop
    if stopped and not (out / audit.TABLE).exists():
        raise stopped
    for line in report.write(out):
        terminal().print(line, highlight=False, soft_wrap=True)
    kept = ""
    if stopped:
        why = "interrupted" if isinstance(stopped, KeyboardInterrupt) else str(stopped)
        kept = f"{why}: what was finished is kept, the same command goes on; "
    terminal().print(f"{kept}written to {out}/: report.html, audit.csv", highlight=False, soft_wrap=True)
    return 0 if stopped is None else 130 if isinstance(stopped, KeyboardInterrupt) else 2


def train(args: Any, argv: Sequence[str], out: Path, first: Path) -> None:
    """The trainings that are missing in a folder; a row of each as it ends."""
    from pplleak.studies.audit import utility

    missing = utility.missing(out, opener(args)(first), args.defences, args.train)
    with where.spread(args, argv, trainer, runs.shard(missing, args.shard)) as results:
        for _, row in zip(bar("trainings", len(missing)), results, strict=False):
            utility.table(out).add([row])


def trainer(argv: Sequence[str]) -> Callable[[str], dict[str, Any]]:
    """What makes one training, of the network of the first observation."""
    from pplleak import data
    from pplleak.cli import _arguments as arguments
    from pplleak.studies.audit import plan as plans
    from pplleak.studies.audit import utility

    args, _ = _parsed(argv)
    first, of = plans.items(args.observations, args.truth)[0].path, arguments.data_of(args)
    return utility.trainer(
        lambda: opener(args)(first), data.public(of, args.data_root), data.private(of, args.data_root), args.data,
        args.out, args.train, args.seed,
    )  # fmt: skip


def opener(args: Any) -> Callable[[Path], Observation]:
    """What reads an observation, with the network and the public images of the command line."""
    from pplleak import data
    from pplleak.cli import _arguments as arguments
    from pplleak.federation.stored import load

    public = data.public(arguments.data_of(args), args.data_root)
    network = Named(args.network, options(args, "network")) if args.network else None

    def opened(path: Path) -> Observation:
        return arguments.spare_threads(load(path, network=network, public=public, seed=args.seed, dtype=args.dtype))

    return opened


def maker(argv: Sequence[str]) -> Callable[[Job], Answer]:
    """What makes one attack."""
    from pplleak import data
    from pplleak.cli import _arguments as arguments
    from pplleak.studies.audit import audit

    args, names = _parsed(argv)
    return audit.attacker(
        opener(args), public=data.public(arguments.data_of(args), args.data_root), labels=args.labels, model=args.model,
        beliefs=arguments.beliefs(args), seed=args.seed,
        settings={n: options(args, Path(n).stem) for n in names if n != AUTO},
        command=shlex.join(["pplleak", "audit", *argv]),
    )  # fmt: skip
