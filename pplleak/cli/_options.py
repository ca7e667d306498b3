"""What the command line can be told, and the parsers for it.

Settings of the chosen network, channel, defence, model and inference are read off their files, so ``--network``,
``--model`` and ``--inference`` are looked up first (`given`), as ``--channel`` and ``--defence`` are, and the parser is
built for what they name: ``--model.sigma``, ``--inference.chains``, ``--network.widths``, ``--channel.rate``.

Nothing here imports torch, nor runs a user's file to print a help text.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from pplleak import programs, signatures, sources
from pplleak.cli import _mistakes
from pplleak.cli import _named as named
from pplleak.cli._local import UNSAID, LocalFlags
from pplleak.errors import BadInput
from pplleak.settings import Named, Setting, with_defaults
from pplleak.signatures import UNREAD

if TYPE_CHECKING:
    from pplleak.federation.scenario import Precision
else:
    Precision = signatures.kind(sources.module("pplleak.federation.scenario"), "Precision")

FLAGS = (  # said without a value
    "--strict", "--clean", "--shared-only", "--local-drop-last", "--local-shuffle", "--by-layer",
)  # fmt: skip
RECORDS, SENTENCES = "records", "sentences"  # the priors of a table and of a text, unless another is named
NONE = "none"  # neither a channel nor a defence
BELIEFS = {
    **{s.name: "the true defence's" for d in named.defences() for s in named.defence_settings(d)},
    **{s.name: "the true channel's" for c in named.channels() for s in named.channel_settings(c)},
    "sigma": "the noise of the observation's channel, --sigma",
    "channel": "the observation's, --channel",
    "reference": "the public part of --data",
}

# -- what commands share -------------------------------------------------------------------------------------------

DataName = Annotated[str, tyro.conf.arg(help=f"{named.data()}.")]
TrainingData = Annotated[str, tyro.conf.arg(help=f"{named.data()}; networks are trained on the public half.")]
NetworkName = Annotated[
    str,
    tyro.conf.arg(help=f"{named.listed(named.networks())}, or FILE.py:FUNCTION; its settings are --network.NAME."),
]
ChannelName = Annotated[
    str,
    tyro.conf.arg(
        help="What the gradient goes through before it is shared: "
        f"{named.listed(named.channels())}; its settings are --channel.NAME."
    ),
]
DefenceName = Annotated[
    str,
    tyro.conf.arg(
        help="What the client does to its gradient, or to its network, before the channel: "
        f"{named.listed(named.defences())}; its settings are --defence.NAME."
    ),
]
LossName = Annotated[
    str,
    tyro.conf.arg(
        help=f"Of the client: {named.listed(named.losses())}, or FILE.py:FUNCTION of your own; with settings as in "
        "mse:reduction=sum; cross_entropy:label_smoothing=0.1; mse:targets=real (or binary, probabilities, input)."
    ),
]
PriorName = Annotated[
    str,
    tyro.conf.arg(
        help="What the adversary knows of the data before, for a model that takes a prior (gaussian by default): "
        f"{named.listed(named.priors())}; its settings are --prior.NAME. Several (gaussian,vae) are averaged by their "
        "evidence, where a single attack is made."
    ),
]


@dataclasses.dataclass(frozen=True)
class Victim:
    """What is attacked."""

    data: DataName = "digits"
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
    network: NetworkName = "mlp"
    checkpoint: Path | None = None
    """Trained weights: a safetensors file of the network's state_dict (default: weights drawn from --seed)."""
    local: LocalFlags = UNSAID
    loss: LossName = "cross_entropy"
    normalise: tuple[float, ...] = ()
    """Mean and sd that a transform outside the network normalises its inputs by: 0.5 0.5, or those of each channel,
    means first."""
    channel: ChannelName = "gaussian"
    defence: DefenceName = ""
    sigma: float | Literal["infer"] | None = None
    """Noise of the channel: standard deviation on each entry of the gradient. None means 0.1, if it has noise; infer:
    of a gradient of your own, nobody knows it, and it is inferred with the image."""
    seed: int = 0
    """Of the weights, the noise and the inference: one seed, one result."""
    dtype: Precision = "float32"
    """Precision in which the client computes. Behind bfloat16 and float16 the attack computes in float32, and takes
    what they round off for noise. Distances to the observation are summed in float64 in any case."""
    device: str = "cpu"
    """Where the network runs: cpu, cuda, …"""


# -- settings of what is named -------------------------------------------------------------------------------------


def given(argv: Sequence[str], flag: str, default: str) -> str:
    """The value of a flag before the parser exists; the last one wins, as in the parser."""
    value = default
    for k, word in enumerate(argv):
        if word == flag and k + 1 < len(argv):
            value = argv[k + 1]
        elif word.startswith(f"{flag}="):
            value = word.partition("=")[2]
    return value


def said(argv: Sequence[str], flag: str) -> bool:
    """Whether the command line gives a flag a value of its own."""
    return any(word == flag or word.startswith(f"{flag}=") for word in argv)


def helps(argv: Sequence[str]) -> bool:
    """Whether the command line asks for help."""
    return bool({"-h", "--help"} & set(argv))


def groups(base: type, argv: Sequence[str], *parts: str) -> dict[str, type]:
    """A group of settings for each part (network, channel, defence, model, inference) that `argv` or the default of
    `base` names, and with a model that takes one for its prior: part -> dataclass."""
    defaults = {f.name: f.default for f in dataclasses.fields(base)}
    chosen = {part: given(argv, f"--{part}", str(defaults[part])) for part in parts}
    made = {}
    data = given(argv, "--data", str(defaults.get("data", "")))
    if named.is_table(data) and not getattr(base, "tables", False):
        raise BadInput(f"{data} is a table, and this command takes images so far: attack a table by `pplleak attack`")
    if named.is_text(data) and not getattr(base, "texts", False):
        raise BadInput(f"{data} is text, and this command takes none so far: attack text by `pplleak attack`")
    if named.is_text(data):
        made["data"] = settings_of("Data", named.text_settings())
    if named.is_table_file(data):
        made["data"] = settings_of("Data", named.table_settings())
    for part, name in chosen.items():
        if part == "network":
            made[part] = settings_of("Network", network_settings(argv, name))
        elif part == "channel" and name != NONE:
            made[part] = settings_of("Channel", named.channel_settings(name))
        elif part == "defence" and name not in ("", NONE):
            made[part] = settings_of("Defence", named.defence_settings(name))
        elif part == "model":
            known = program_settings(argv, "models", name)
            made[part] = settings_of("Model", known, BELIEFS)
            preset = next((str(s.default) for s in known if s.name == "prior"), "")
            if preset and (named.is_table(data) or named.is_text(data)):
                preset = SENTENCES if named.is_text(data) else RECORDS
                known = with_defaults(known, {"prior": preset}, name)
                made[part] = settings_of("Model", known, BELIEFS)
            if preset:
                prior = given(argv, "--prior", "") or given(argv, "--model.prior", preset)
                if len(several := Named.several(prior)) < 2:
                    made["prior"] = settings_of("Prior", named.prior_settings(several[0].name))
        elif part == "inference":
            model = given(argv, "--model", str(defaults.get("model", "")))
            made[part] = settings_of("Inference", inference_settings(argv, name, model))
    return made


def network_settings(argv: Sequence[str], name: str) -> list[Setting]:
    """What a network can be set to. A user's file runs only where reading does not tell, and never for help."""
    known = named.network_settings(name)
    if known is None and not helps(argv):
        from pplleak.client import networks

        known = programs.settings(networks.load(name))
    return known or []


def program_settings(argv: Sequence[str], kind: programs.Kind, name: str) -> list[Setting]:
    """What a model or an inference can be set to; a user's file as for `network_settings`."""
    known = programs.described(kind, name)
    if known is None and not helps(argv):
        known = programs.settings(programs.load(kind, name))
    return with_defaults(known or [], Named.parse(name).settings, name)


def inference_settings(argv: Sequence[str], name: str, model: str) -> list[Setting]:
    """What an inference can be set to, with the settings that the model's file prefers as defaults."""
    known = program_settings(argv, "inference", name)
    return with_defaults(known, programs.preferred(model, name) if model else {}, model)


def settings_of(title: str, known: Sequence[Setting], fallback: Mapping[str, str] | None = None) -> type:
    """A dataclass of settings, for tyro. Those with a `fallback` default to None, which means it."""
    fields: list[Any] = []
    for setting in known:
        kind, default, text, metadata = setting.type, setting.default, setting.help, {}
        if fallback and setting.name in fallback:
            kind, text = kind | None, f"{text} None means {fallback[setting.name]}, else {default}."
            default = None
        elif default is UNREAD:
            kind, default, text = kind | None, None, f"{text} (default: what the file computes)"
            metadata = {"left out": None}
        field = dataclasses.field(default=default, metadata=metadata)
        fields.append((setting.name, Annotated[kind, tyro.conf.arg(help=text)], field))
    return dataclasses.make_dataclass(title, fields, frozen=True)


# -- parsing -------------------------------------------------------------------------------------------------------


def parse(
    base: type, command: str, argv: Sequence[str], groups: dict[str, type] | None = None, description: str | None = None
) -> Any:
    """The command line as an instance of `base`, with a field `PART_settings` for each group of settings.

    Args:
        description: what the help says first; None takes the docstring of the command's file.
    """
    return _cli(base, command, argv, groups or {}, description, partly=False)


def parse_known(base: type, command: str, argv: Sequence[str], groups: dict[str, type]) -> tuple[Any, list[str]]:
    """As `parse`, and the words that it does not know."""
    return _cli(base, command, argv, groups, None, partly=True)


def _cli(
    base: type, command: str, argv: Sequence[str], groups: dict[str, type], description: str | None, partly: bool
) -> Any:
    for flag in [f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(base) if "Path" in str(f.type)]:
        if given(argv, flag, ".") == "":  # which Path would read as this folder
            raise BadInput(f"{flag} has an empty name: give another, or . for this folder")
    cli: Any = tyro.cli  # its overloads want a literal `return_unknown_args`
    with _mistakes.told(command):
        parsed = cli(
            _with_groups(base, groups) if groups else base,
            prog=f"pplleak {command}",
            description=description or sys.modules[base.__module__].__doc__,
            args=_spelled(argv),
            return_unknown_args=partly,
            config=(tyro.conf.FlagConversionOff,),
        )
    _mistakes.require_numbers(parsed[0] if partly else parsed)
    return parsed


def _spelled(argv: Sequence[str]) -> list[str]:
    """The words with `True` behind each of `FLAGS` that stands alone."""
    words = list(argv)
    for k in reversed([k for k, word in enumerate(words) if word in FLAGS]):
        if words[k + 1 : k + 2] not in (["True"], ["False"]):
            words.insert(k + 1, "True")
    return words


def _with_groups(base: type, groups: dict[str, type]) -> type:
    """`base` with a group of settings for each part, under the flag prefix that is the part's name."""
    fields: list[Any] = [
        (f"{n.replace('-', '_')}_settings", Annotated[g, tyro.conf.arg(name=n)], dataclasses.field(default_factory=g))
        for n, g in groups.items()
    ]
    made = dataclasses.make_dataclass(base.__name__, fields, bases=(base,), frozen=True)
    made.__module__ = base.__module__
    return made


def several(base: type, command: str, argv: Sequence[str]) -> tuple[Any, list[str], dict[str, Any]]:
    """A command line that names several inferences: parsed, their names, and the settings of each."""
    defaults = {f.name: f.default for f in dataclasses.fields(base)}
    names = [n for n in given(argv, "--inference", str(defaults["inference"])).split(",") if n]
    if not names:
        raise BadInput("--inference needs at least one name: map,hmc for example")
    prefixes, model = {n: Path(n).stem for n in names}, given(argv, "--model", str(defaults["model"]))
    if len(set(prefixes.values())) < len(names):
        raise BadInput(f"--inference names one twice, and both would take the same settings: {','.join(names)}")
    parts = {
        **groups(base, argv, "network", "channel", "defence", "model"),
        **{prefixes[n]: settings_of(prefixes[n].title(), inference_settings(argv, n, model)) for n in names},
    }
    args = parse(base, command, argv, parts)
    if args.count < 1:
        raise BadInput(f"--count must be at least 1, not {args.count}")
    return args, names, {n: options(args, prefixes[n]) for n in names}


def options(args: Any, part: str) -> dict[str, Any]:
    """A part's settings, as its function takes them; {} for a part that was not chosen."""
    group = getattr(args, f"{part}_settings", None)
    if group is None:
        return {}
    values = {f.name: getattr(group, f.name) for f in dataclasses.fields(group)}
    own = {f.name for f in dataclasses.fields(group) if "left out" in f.metadata and values[f.name] is None}
    return {n: v for n, v in values.items() if n not in own}
