"""The command line: attack, observe, compare, ls, cp.

Settings of the chosen network, model and inference are read off their signatures, so ``--network``, ``--model`` and
``--inference`` are looked up first, and the parser is built for what they name: ``--model.sigma``,
``--inference.chains``, ``--network.widths``.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

warnings.filterwarnings("ignore", category=FutureWarning, module="torch")  # Pyro's own use of torch.jit

import torch  # noqa: E402
import tyro  # noqa: E402
from rich.console import Console  # noqa: E402

from pplleak import attack as attacks  # noqa: E402
from pplleak import compare as comparing  # noqa: E402
from pplleak import data, observation, programs, report  # noqa: E402
from pplleak.errors import BadInput, unknown  # noqa: E402
from pplleak.progress import bar  # noqa: E402

BELIEFS = {"sigma": "the noise of the target's channel, --sigma", "reference": "the public part of --data"}


@dataclasses.dataclass(frozen=True)
class Victim:
    """What is attacked."""

    data: str = "digits"
    """digits (embedded), mnist, cifar10, or a folder of images."""
    data_root: Path | None = None
    """Folder that holds MNIST/raw or cifar10/ (default: $PPLLEAK_DATA_ROOT, else ./data)."""
    index: int = 0
    """Which private image; a batch takes it and the next ones."""
    batch_size: int = 1
    """Examples behind the gradient."""
    label: int | None = None
    """Label of the image, where the data have none."""
    labels: Literal["known", "unknown"] = "known"
    """Did the client share the labels? Unknown ones are summed out exactly."""
    network: str = "mlp"
    """mlp, linear, lenet, convnet, or FILE.py:FUNCTION; its settings are --network.NAME."""
    sigma: float = 0.1
    """Noise of the channel: standard deviation on each entry of the gradient."""
    seed: int = 0
    """Of the weights, the noise and the inference: one seed, one result."""
    dtype: attacks.Precision = "float32"
    """Precision of the network; distances to the observation are summed in float64 either way."""


@dataclasses.dataclass(frozen=True)
class Attack(Victim):
    """Attack one shared gradient: what does it reveal about the image behind it?"""

    model: str = "gaussian"
    """What the adversary believes: a name (`pplleak ls`) or ./FILE.py; its beliefs are --model.NAME."""
    inference: str = "hmc"
    """How it computes with that: a name (`pplleak ls`) or ./FILE.py; its settings are --inference.NAME."""
    observed: Path | None = None
    """Attack this observation (`pplleak observe`) instead of an image; the data then only serve the prior."""
    out: Path = Path("attack")
    """Folder for posterior.nc, attack.png and summary.json."""


@dataclasses.dataclass(frozen=True)
class Observe(Victim):
    """Write the gradient a client shares as an observation file, for `attack --observed`."""

    gradient: Path | None = None
    """Wrap this safetensors file of named gradients (yours) instead of computing one from the data."""
    input_shape: tuple[int, ...] | None = None
    """With --gradient: the shape of one example, e.g. 1 28 28."""
    num_classes: int = 10
    """With --gradient: the number of the network's logits."""
    shared_labels: tuple[int, ...] | None = None
    """With --gradient: the labels, where the client shared them."""
    out: Path = Path("observation.safetensors")
    """The file to write."""


@dataclasses.dataclass(frozen=True)
class Compare(Victim):
    """Attack the same images with several inferences: MAP against the full posterior."""

    model: str = "gaussian"
    """What the adversary believes: a name or ./FILE.py; its beliefs are --model.NAME."""
    inference: str = "map,laplace,svi,hmc"
    """Names or paths, separated by commas; the settings of each are --NAME.SETTING."""
    count: int = 5
    """Images, from --index on."""
    out: Path = Path("compare")
    """Folder for compare.csv, compare.json and compare.png."""


@dataclasses.dataclass(frozen=True)
class Ls:
    """List the models and inferences with what each one is."""


@dataclasses.dataclass(frozen=True)
class Cp:
    """Copy a model or inference file, to start your own: `pplleak cp dlg mine.py`, then --model ./mine.py."""

    name: tyro.conf.Positional[str]
    """Of a file that `pplleak ls` lists."""
    destination: tyro.conf.Positional[Path]
    """A file ending in .py, or a folder."""


# -- parsing -------------------------------------------------------------------------------------------------------


def _given(argv: Sequence[str], flag: str, default: str) -> str:
    """The value of a flag before the parser exists; the last one wins, as in the parser."""
    value = default
    for k, word in enumerate(argv):
        if word == flag and k + 1 < len(argv):
            value = argv[k + 1]
        elif word.startswith(f"{flag}="):
            value = word.partition("=")[2]
    return value


def _settings(title: str, function: Callable[..., Any], fallback: dict[str, str] | None = None) -> type:
    """A dataclass of a function's settings, for tyro. Those with a `fallback` default to None, which means it."""
    fields = []
    for setting in programs.settings(function):
        kind, default, said = setting.type, setting.default, setting.help
        if fallback and setting.name in fallback:
            kind, default, said = kind | None, None, f"{said} (default: {fallback[setting.name]})"
        fields.append((setting.name, Annotated[kind, tyro.conf.arg(help=said)], dataclasses.field(default=default)))
    return dataclasses.make_dataclass(title, fields, frozen=True)


def _parser(base: type, groups: dict[str, type]) -> type:
    """`base` with a group of settings for each part, under the flag prefix that is the part's name."""
    fields: list[Any] = [
        (f"{n.replace('-', '_')}_settings", Annotated[g, tyro.conf.arg(name=n)], dataclasses.field(default_factory=g))
        for n, g in groups.items()
    ]
    made = dataclasses.make_dataclass(base.__name__, fields, bases=(base,), frozen=True)
    made.__doc__ = base.__doc__
    return made


def _parse(base: type, command: str, argv: Sequence[str], groups: dict[str, type] | None = None) -> Any:
    # Only the fields' docstrings count: tyro would show every field's type as a default help otherwise.
    return tyro.cli(
        _parser(base, groups) if groups else base,
        prog=f"pplleak {command}",
        description=base.__doc__,
        args=list(argv),
        config=(tyro.conf.FlagConversionOff,),
    )


def _options(args: Any, part: str) -> dict[str, Any]:
    """A part's settings, as its function takes them."""
    return dataclasses.asdict(getattr(args, f"{part}_settings"))


# -- commands ------------------------------------------------------------------------------------------------------


def _spare_threads(target: attacks.Target) -> attacks.Target:
    """A small network is faster on one core than split over several, many times so on a busy machine."""
    if target.client.update_size < 50_000:
        torch.set_num_threads(1)
    return target


def _target(args: Any, index: int | None = None) -> attacks.Target:
    return attacks.from_data(
        args.data,
        root=args.data_root,
        index=args.index if index is None else index,
        batch_size=args.batch_size,
        label=args.label,
        labels_shared=args.labels == "known",
        network=args.network,
        settings=_options(args, "network"),
        sigma=args.sigma,
        seed=args.seed,
        dtype=args.dtype,
    )


def _network_defaults(argv: Sequence[str], observed: str) -> tuple[str, dict[str, Any]]:
    """The network to build the parser for: the one that is named, else the observation's."""
    if not observed:
        return _given(argv, "--network", "mlp"), {}
    metadata = observation.load(observed).metadata
    if not metadata:
        return _given(argv, "--network", "mlp"), {}
    named = _given(argv, "--network", "")
    name = named or attacks.network_of(observed, metadata)
    return name, metadata["settings"] if name == metadata["network"] else {}


def _with_defaults(function: Callable[..., Any], defaults: dict[str, Any], where: str) -> Callable[..., Any]:
    """The same settings, with the observation's values as their defaults."""
    import inspect

    signature = inspect.signature(function)
    surplus = set(defaults) - set(signature.parameters)
    if surplus:
        raise BadInput(f"{where}: the network has no setting '{sorted(surplus)[0]}'")
    parameters = [
        p.replace(default=tuple(d) if isinstance(d := defaults[n], list) else d) if n in defaults else p
        for n, p in signature.parameters.items()
    ]

    @functools.wraps(function)
    def changed(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    changed.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return changed


def attack(argv: Sequence[str]) -> int:
    observed = _given(argv, "--observed", "")
    network, defaults = _network_defaults(argv, observed)
    groups = {
        "network": _settings("Network", _with_defaults(programs.network(network), defaults, observed)),
        "model": _settings("Model", programs.load("models", _given(argv, "--model", "gaussian")), BELIEFS),
        "inference": _settings("Inference", programs.load("inference", _given(argv, "--inference", "hmc"))),
    }
    args = _parse(Attack, "attack", argv, groups)
    out = report.prepare(args.out)
    if args.observed:
        target = attacks.from_file(
            args.observed,
            network=network,
            settings=_options(args, "network"),
            seed=args.seed,
            dtype=args.dtype,
            public=data.public(args.data, args.data_root).x,
        )
    else:
        target = _target(args)
    found = attacks.attack(
        _spare_threads(target),
        args.model,
        args.inference,
        beliefs=_options(args, "model"),
        settings=_options(args, "inference"),
        seed=args.seed,
        progress=bar,
    )
    report.write(found, out, Console())
    return 130 if any("interrupted" in doubt for doubt in found.doubts) else 0


def observe(argv: Sequence[str]) -> int:
    network = programs.network(_given(argv, "--network", "mlp"))
    args = _parse(Observe, "observe", argv, {"network": _settings("Network", network)})
    if args.gradient is None:
        attacks.write_observation(_target(args), args.out)
    else:
        _wrap(args)
    Console().print(f"written to {args.out}; attack it with: pplleak attack --observed {args.out}", highlight=False)
    return 0


def _wrap(args: Any) -> None:
    """An observation of the user's own gradient, checked against the user's own network."""
    if args.input_shape is None:
        raise BadInput("--gradient needs --input-shape, the shape of one example: --input-shape 1 28 28")
    shared = observation.load(args.gradient)
    client = attacks.build_client(
        args.network, _options(args, "network"), args.input_shape, args.num_classes,
        seed=args.seed, dtype=args.dtype, parameters=shared.parameters, where=str(args.gradient),
    )  # fmt: skip
    g = observation.flatten(client, shared.gradient, str(args.gradient))
    labels = None
    if args.shared_labels is not None:
        labels = observation.check_labels(list(args.shared_labels), args.num_classes, args.batch_size)
    said = {"network": args.network, "network_settings": _options(args, "network")}
    observed = observation.Observation(g, args.batch_size, labels)
    attacks.write_observation(attacks.Target(client, observed, sigma=args.sigma, said=said), args.out)


def compare(argv: Sequence[str]) -> int:
    names = [n for n in _given(argv, "--inference", "map,laplace,svi,hmc").split(",") if n]
    if not names:
        raise BadInput("--inference needs at least one name: map,hmc for example")
    prefixes = {n: Path(n).stem for n in names}
    groups = {
        "network": _settings("Network", programs.network(_given(argv, "--network", "mlp"))),
        "model": _settings("Model", programs.load("models", _given(argv, "--model", "gaussian")), BELIEFS),
        **{prefixes[n]: _settings(prefixes[n].title(), programs.load("inference", n)) for n in names},
    }
    args = _parse(Compare, "compare", argv, groups)
    if args.count < 1:
        raise BadInput(f"--count must be at least 1, not {args.count}")
    out = report.prepare(args.out)
    indices = range(args.index, args.index + args.count)
    for index in indices:
        data.private(args.data, args.data_root).batch(index, args.batch_size)  # say so before the work, not after
    rows = comparing.compare(
        [(i, functools.cache(lambda i=i: _spare_threads(_target(args, i)))) for i in indices],
        args.model,
        names,
        beliefs=_options(args, "model"),
        settings={n: _options(args, prefixes[n]) for n in names},
        seed=args.seed,
        progress=bar,
        keep=lambda rows: comparing.write(rows, names, out),
    )
    console = Console()
    console.print(comparing.table(rows, names, per_image=True))
    console.print(comparing.table(rows, names))
    said = f"written to {out}/: compare.csv, compare.json, compare.png"
    complete = len(rows) == len(names) * len(indices)
    console.print(said if complete else f"interrupted: {len(rows)} attacks kept; {said}", highlight=False)
    return 0 if complete else 130


def ls(argv: Sequence[str]) -> int:
    _parse(Ls, "ls", argv)
    console = Console()
    kinds: list[tuple[str, programs.Kind]] = [("models (--model)", "models"), ("inferences (--inference)", "inference")]
    for title, kind in kinds:
        console.print(f"[bold]{title}[/]")
        for name, said in programs.names(kind).items():
            console.print(f"  {name:<12} {said}", highlight=False, soft_wrap=True)
    return 0


def cp(argv: Sequence[str]) -> int:
    args = _parse(Cp, "cp", argv)
    target = programs.copy(args.name, args.destination)
    Console().print(f"copied to {target}", highlight=False)
    return 0


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], type]] = {
    "attack": (attack, Attack),
    "observe": (observe, Observe),
    "compare": (compare, Compare),
    "ls": (ls, Ls),
    "cp": (cp, Cp),
}


def usage() -> str:
    lines = ["usage: pplleak COMMAND [OPTIONS]      (pplleak COMMAND --help lists them)", ""]
    return "\n".join(lines + [f"  {name:<8} {(kind.__doc__ or '').splitlines()[0]}" for name, (_, kind) in COMMANDS.items()])


def main(argv: Sequence[str] | None = None) -> None:
    """The `pplleak` command. Exit codes: 0 done, 2 bad input (one line on stderr), 130 interrupted.

    A KeyboardInterrupt comes out only where nothing could be kept; `pplleak.__main__` says so.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if not argv or argv[0] in ("-h", "--help"):
            print(usage())
            raise SystemExit(0 if argv else 2)
        if argv[0] not in COMMANDS:
            raise unknown("command", argv[0], COMMANDS)
        raise SystemExit(COMMANDS[argv[0]][0](argv[1:]))
    except BadInput as error:
        print(f"pplleak: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


def script(file: str) -> None:
    """What running an inference file means: `uv run inference/hmc.py --model dlg` is an attack with that file."""
    path = Path(file).resolve()
    inside = path.parent == programs.folder("inference").resolve()
    main(["attack", "--inference", path.stem if inside else str(path), *sys.argv[1:]])
