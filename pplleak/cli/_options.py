"""What the command line can be told, and the parsers for it.

Settings of the chosen network, model and inference are read off their signatures, so ``--network``, ``--model`` and
``--inference`` are looked up first (`given`), as ``--channel`` and ``--defence`` are, and the parser is built for what
they name: ``--model.sigma``, ``--inference.chains``, ``--network.widths``, ``--channel.rate``.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pplleak import programs
from pplleak.federation import defences
from pplleak.studies.attack.attack import AUTO, Precision
from pplleak.studies.risk import risk

BELIEFS = {
    **{s.name: "the true defence's" for d in defences.names() for s in programs.settings(defences.entry(d))},
    **{s.name: "the true channel's" for c in programs.named_channels().values() for s in programs.settings(c)},
    "sigma": "the noise of the target's channel, --sigma",
    "reference": "the public part of --data",
}


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
    labels: Literal["known", "unknown", "recovered"] = "known"
    """Did the client share the labels? Unknown ones are summed out exactly; recovered: read off the last layer's
    gradient first, and then taken as known."""
    network: str = "mlp"
    """A name (`pplleak ls`), or FILE.py:FUNCTION; its settings are --network.NAME."""
    checkpoint: Path | None = None
    """Trained weights: a safetensors file of the network's state_dict (default: weights drawn from --seed)."""
    local_lr: float | None = None
    """Learning rate of local training (FedAvg): the client then shares how its weights moved, not its gradient."""
    local_steps: int = 1
    """With --local-lr: steps of SGD that the client takes."""
    local_batch_size: int | None = None
    """With --local-lr: examples a step (default: all of them)."""
    channel: str = "gaussian"
    """What the gradient goes through before it is shared: gaussian, weighted, laplace, elastic, directional, masked,
    pruned, topk, dpsgd, quantised, sign, aggregated; its settings are --channel.NAME."""
    defence: str = ""
    """What the client does to its gradient, or to its network, before the channel: soteria, ats, precode, dropout,
    mix; its settings are --defence.NAME."""
    sigma: float | None = None
    """Noise of the channel: standard deviation on each entry of the gradient. None means 0.1, if it has noise."""
    seed: int = 0
    """Of the weights, the noise and the inference: one seed, one result."""
    dtype: Precision = "float32"
    """Precision of the network; distances to the observation are summed in float64 either way."""


@dataclasses.dataclass(frozen=True)
class Attack(Victim):
    """Attack one shared gradient: what does it reveal about the image behind it?"""

    model: str = "gaussian"
    """What the adversary believes: a name (`pplleak ls`) or ./FILE.py; its beliefs are --model.NAME."""
    inference: str = AUTO
    """How it computes with that: a name (`pplleak ls`) or ./FILE.py; its settings are --inference.NAME. auto: hmc on a
    smooth network, else an exact sampler that takes the network's kinks."""
    surrogate: float | None = None
    """Sharpness β of a softplus for the network's (leaky) ReLU in the adversary's model: an approximation."""
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
    """Folder for compare.csv, compare.json and compare.png; a run with the same settings goes on there."""


@dataclasses.dataclass(frozen=True)
class Risk(Victim):
    """How often reconstructions come within δ of the private image: claimed by the posterior, and really."""

    model: str = "gaussian"
    """What the adversary believes: a name or ./FILE.py; its beliefs are --model.NAME."""
    inference: str = "map,hmc"
    """Names or paths, separated by commas; the settings of each are --NAME.SETTING."""
    count: int = 20
    """Images, from --index on. The channel's noise is drawn anew for each."""
    draws_from: Literal["data", "model"] = "data"
    """Real images, or images and labels drawn from the model: there, claimed and realised must agree."""
    distance: risk.Name = "rms"
    """rms (of a pixel) or l2 (over all) at most δ, 1 − ssim at most δ, or psnr of at least δ dB."""
    deltas: tuple[float, ...] = ()
    """Thresholds of the curve (default: ten)."""
    bounds: bool = True
    """With --draws-from model: draw what no adversary can do, where a bound is known."""
    out: Path = Path("risk")
    """Folder for risk.png, risk.csv, risk.json and risk_images.csv; a run with the same settings goes on there."""


@dataclasses.dataclass(frozen=True)
class Ls:
    """List the models, inferences and networks with what each one is."""

    form: Literal["list", "markdown"] = "list"
    """markdown: the table of the models, with p(x), p(g | x, y), source and optimiser of each."""


@dataclasses.dataclass(frozen=True)
class Cp:
    """Copy a model or inference file, to start your own: `pplleak cp dlg mine.py`, then --model ./mine.py."""

    name: tyro.conf.Positional[str]
    """Of a file that `pplleak ls` lists."""
    destination: tyro.conf.Positional[Path]
    """A file ending in .py, or a folder."""


def given(argv: Sequence[str], flag: str, default: str) -> str:
    """The value of a flag before the parser exists; the last one wins, as in the parser."""
    value = default
    for k, word in enumerate(argv):
        if word == flag and k + 1 < len(argv):
            value = argv[k + 1]
        elif word.startswith(f"{flag}="):
            value = word.partition("=")[2]
    return value


def settings_of(title: str, function: Callable[..., Any], fallback: dict[str, str] | None = None) -> type:
    """A dataclass of a function's settings, for tyro. Those with a `fallback` default to None, which means it."""
    fields = []
    for setting in programs.settings(function):
        kind, default, said = setting.type, setting.default, setting.help
        if fallback and setting.name in fallback:
            kind, default, said = kind | None, None, f"{said} None means {fallback[setting.name]}, else {default}."
        fields.append((setting.name, Annotated[kind, tyro.conf.arg(help=said)], dataclasses.field(default=default)))
    return dataclasses.make_dataclass(title, fields, frozen=True)


def defence_group(argv: Sequence[str]) -> dict[str, type]:
    """The group of settings of the defence that is named, if one is."""
    name = given(argv, "--defence", "")
    return {"defence": settings_of("Defence", defences.entry(name))} if name else {}


def _with_groups(base: type, groups: dict[str, type]) -> type:
    """`base` with a group of settings for each part, under the flag prefix that is the part's name."""
    fields: list[Any] = [
        (f"{n.replace('-', '_')}_settings", Annotated[g, tyro.conf.arg(name=n)], dataclasses.field(default_factory=g))
        for n, g in groups.items()
    ]
    made = dataclasses.make_dataclass(base.__name__, fields, bases=(base,), frozen=True)
    made.__doc__ = base.__doc__
    return made


def parse(
    base: type, command: str, argv: Sequence[str], groups: dict[str, type] | None = None, *, partly: bool = False
) -> Any:
    """The command line as an instance of `base`, with a field `PART_settings` for each group of settings; `partly`
    passes over the words that it does not know."""
    cli: Any = tyro.cli  # its overloads want a literal `return_unknown_args`
    parsed = cli(
        _with_groups(base, groups) if groups else base,
        prog=f"pplleak {command}",
        description=base.__doc__,
        args=list(argv),
        return_unknown_args=partly,
        config=(tyro.conf.FlagConversionOff,),
    )
    return parsed[0] if partly else parsed


def options(args: Any, part: str) -> dict[str, Any]:
    """A part's settings, as its function takes them; {} for a part that was not chosen."""
    found = getattr(args, f"{part}_settings", None)
    return {} if found is None else dataclasses.asdict(found)


def with_defaults(function: Callable[..., Any], defaults: dict[str, Any], where: str) -> Callable[..., Any]:
    """The same settings, with the observation's values as their defaults."""
    signature = inspect.signature(function)
    programs.require_settings(function, defaults, where)
    parameters = [
        p.replace(default=tuple(d) if isinstance(d := defaults[n], list) else d) if n in defaults else p
        for n, p in signature.parameters.items()
    ]

    @functools.wraps(function)
    def changed(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    changed.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return changed
