"""Fit a prior to public images, compare priors, list the fitted ones, show one: `pplleak prior fit|compare|ls|show`."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from pplleak import runs
from pplleak.cli import _named as named
from pplleak.cli._options import DataName, options, parse, settings_of
from pplleak.cli._prior_comparison import compare
from pplleak.cli._prior_picture import picture
from pplleak.errors import BadInput, printable, unknown
from pplleak.progress import bar, terminal

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

KIND = f"{named.listed(named.fitted())}."


@dataclasses.dataclass(frozen=True)
class Fit:
    """Fit a prior to the public half of the data: `pplleak prior fit vae --data mnist`, then --prior vae --prior.file
    vae-mnist. A tenth of the images (at most 1000) is held out to say how well it predicts."""

    kind: Annotated[str, tyro.conf.Positional, tyro.conf.arg(help=KIND)]
    data: DataName = "digits"
    data_root: Path | None = None
    """Folder that holds MNIST/raw or cifar10/ (default: $PPLLEAK_DATA_ROOT, else ./data)."""
    out: Path | None = None
    """The file to write, ending in .safetensors (default: priors/KIND-DATA.safetensors, found as KIND-DATA)."""
    seed: int = 0
    """Of the fit and of the choice of the held-out images."""


@dataclasses.dataclass(frozen=True)
class Show:
    """What a fitted prior is: its kind, images, settings and held-out log-likelihood."""

    name: Annotated[str, tyro.conf.Positional]
    """A name that `pplleak prior ls` lists, or a path ending in .safetensors."""


@dataclasses.dataclass(frozen=True)
class Ls:
    """List the fitted priors in ./priors."""


def run(argv: Sequence[str]) -> int:
    """Dispatch to fit, compare, ls or show."""
    verbs: dict[str, Callable[[Sequence[str]], int]] = {"fit": fit, "compare": compare, "ls": ls, "show": show}
    if not argv or argv[0] in ("-h", "--help"):
        print(
            "usage: pplleak prior fit KIND [OPTIONS] | compare [PRIORS] | ls | show NAME (pplleak prior fit vae --help)"
        )
        return 0 if argv else 2
    if argv[0] not in verbs:
        raise unknown("prior command", argv[0], verbs)
    return verbs[argv[0]](argv[1:])


def fit(argv: Sequence[str]) -> int:
    kind = next((word for word in argv if not word.startswith("-")), next(reversed(named.fitted())))
    settings = settings_of("Prior", named.fit_settings(kind))
    args = parse(Fit, "prior fit", argv, {"prior": settings}, Fit.__doc__)

    from pplleak import data
    from pplleak.priors import _store as store

    label = args.data if args.data in data.names() else Path(args.data).resolve().name
    path = args.out or store.FOLDER / f"{kind}-{label}.safetensors"
    if path.suffix != ".safetensors":
        raise BadInput(f"{path} must end in .safetensors, so that --prior.file knows it for a file")
    public = data.public(args.data, args.data_root)
    images = public.x
    if len(images) < 4:
        raise BadInput(f"a prior needs at least 4 public images, got {len(images)}")

    def kept(folder: Path) -> str:
        goes_on = any(folder.glob(f".{path.stem}.*.fit"))
        return "interrupted: what was fitted is kept, the same command goes on" if goes_on else ""

    with runs.claim(path.parent, path.name, kept=kept):
        return work(args, path, images, public.y)


def work(args: Any, path: Path, images: Tensor, labels: Tensor) -> int:
    """The fit, from where it was left on, with its file and its picture; the exit code."""
    import torch

    from pplleak.priors import _store as store
    from pplleak.priors._fitting import Interrupted, Kept
    from pplleak.priors.gaussian import fit_gaussian

    kind, chosen = args.kind, options(args, "prior")
    train, held_out = store.split(images, args.seed)
    of_train, _ = store.split(labels, args.seed)  # in the same order
    state = Kept(path, store.fingerprint(train, {**chosen, "kind": kind, "seed": args.seed}, of_train))
    start, interrupted = time.perf_counter(), ""
    try:
        fitted = store.fitted(kind, train, of_train, state, **chosen, seed=args.seed, progress=bar)
    except Interrupted as stop:
        fitted, interrupted = stop.fitted, str(stop)
    seconds = time.perf_counter() - start
    torch.manual_seed(args.seed)  # a VAE's score is drawn, too
    about = {
        "data": args.data,
        "images": len(train),
        "settings": {**chosen, "seed": args.seed},
        "held_out": {**_score(fitted.log_prob(held_out)), "bound": getattr(fitted, "bound", False)},
        "gaussian": _score(fit_gaussian(train).log_prob(held_out)),
        "seconds": round(seconds, 1),
        "interrupted": interrupted,
    }
    store.save(path, kind, fitted, about)
    torch.manual_seed(args.seed)
    shown = {"images it has not seen": held_out[:16]}
    if hasattr(fitted, "draw"):  # a prior that is known up to its normaliser has no draws
        shown[f"draws of {path.stem}"] = fitted.draw(16)
    runs.figure(path.with_suffix(".png"), picture(shown), dpi=110)
    if not interrupted:
        state.clear()
    console = terminal()
    _say(console, kind, fitted.input_shape, about)
    label = path.stem if args.out is None else path
    flags = f"--prior {kind} --prior.file {label}"
    written = f"written to {path} and {path.with_suffix('.png').name}; attack with it: {flags}"
    console.print(written, highlight=False, soft_wrap=True)
    return 130 if interrupted else 0


def _score(log_prob: Tensor) -> dict[str, Any]:
    """Mean log-likelihood in nats an image and its standard error, over how many images; none where some have density
    0, of which the mean is −∞, but how many they are."""
    images, impossible = len(log_prob), int((~log_prob.isfinite()).sum())
    if impossible:
        return {"nats": None, "error": None, "images": images, "impossible": impossible}
    error = float(log_prob.std()) / math.sqrt(images) if images > 1 else 0.0
    return {"nats": float(log_prob.mean()), "error": error, "images": images}


def _say(console: Console, kind: str, input_shape: tuple[int, ...], about: dict[str, Any]) -> None:
    lines = [f"{kind} prior for images {tuple(input_shape)}"]
    if "data" in about:
        lines[0] += f", fitted to {about.get('images')} images of {about['data']} in {about.get('seconds')} s"
    for key, label in (("held_out", "held-out log-likelihood"), ("gaussian", "  a Gaussian's, on the same images")):
        score = about.get(key)
        if isinstance(score, dict):
            bound = " at least" if score.get("bound") else ""
            try:
                if score.get("impossible"):
                    lines.append(f"{label}: none, {score['impossible']} of {score['images']} images have density 0")
                    continue
                lines.append(f"{label}:{bound} {score['nats']:.1f} ± {score['error']:.1f} nats an image "
                             f"({score['nats'] / math.prod(input_shape):.3f} a pixel)")  # fmt: skip
            except (KeyError, TypeError, ValueError):
                lines.append(f"{label}: not readable")
    if about.get("interrupted"):
        lines.append(f"{about['interrupted']}: what was fitted until then is kept, the same command goes on")
    for line in lines:
        _line(console, line)


def _line(console: Console, line: str) -> None:
    """What a file says, as a terminal may show it."""
    console.print(printable(line, 2000), highlight=False, soft_wrap=True)


def ls(argv: Sequence[str]) -> int:
    parse(Ls, "prior ls", argv, description=Ls.__doc__)

    from pplleak.priors import _store as store

    paths = sorted(store.FOLDER.glob("*.safetensors"))
    console = terminal()
    if not paths:
        console.print(f"{store.FOLDER}/ holds no fitted prior: pplleak prior fit vae", highlight=False)
    for path in paths:
        try:
            stored = store.load(path)
            summary = f"{stored.kind}, images {stored.input_shape}"
        except BadInput as error:
            summary = str(error)
        _line(console, f"  {path.stem:<20} {summary}")
    return 0


def show(argv: Sequence[str]) -> int:
    args = parse(Show, "prior show", argv, description=Show.__doc__)

    from pplleak.priors import _store as store

    stored = store.load(store.locate(args.name))
    console = terminal()
    _say(console, stored.kind, stored.input_shape, stored.about)
    settings = stored.about.get("settings")
    if isinstance(settings, dict):
        listed = ", ".join(f"{n} {v}" for n, v in settings.items())
        _line(console, f"settings: {listed}")
    return 0
