"""The command line: attack, observe, compare, risk, calibrate, bits, train, defend, prior, ls, cp."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore", category=FutureWarning, module="torch")  # Pyro's own use of torch.jit

from rich.console import Console  # noqa: E402

from pplleak import programs, runs  # noqa: E402
from pplleak.cli import _arguments as arguments  # noqa: E402
from pplleak.cli import _model_table as model_table  # noqa: E402
from pplleak.cli import bits as bits_command  # noqa: E402
from pplleak.cli import calibrate as calibrate  # noqa: E402
from pplleak.cli import compare as compare_command  # noqa: E402
from pplleak.cli import defend as defend_command  # noqa: E402
from pplleak.cli import prior as prior_command  # noqa: E402
from pplleak.cli import risk as risk_command  # noqa: E402
from pplleak.cli import train as train_command  # noqa: E402
from pplleak.cli._options import (  # noqa: E402
    BELIEFS,
    Attack,
    Compare,
    Cp,
    Ls,
    Observe,
    Risk,
    defence_group,
    given,
    options,
    parse,
    settings_of,
    with_defaults,
)
from pplleak.errors import BadInput, unknown  # noqa: E402
from pplleak.federation import observation  # noqa: E402
from pplleak.progress import bar  # noqa: E402
from pplleak.studies.attack import attack as attacks  # noqa: E402
from pplleak.studies.attack import report  # noqa: E402

# -- commands ------------------------------------------------------------------------------------------------------


def attack(argv: Sequence[str]) -> int:
    observed = given(argv, "--observed", "")
    network, defaults = arguments.network_defaults(argv, observed)
    name, target = given(argv, "--inference", attacks.AUTO), None
    groups = {
        "network": settings_of("Network", with_defaults(programs.network(network), defaults, observed)),
        "channel": settings_of("Channel", programs.channel(given(argv, "--channel", "gaussian"))),
        **defence_group(argv),
        "model": settings_of("Model", programs.load("models", given(argv, "--model", "gaussian")), BELIEFS),
    }
    if name == attacks.AUTO and not {"-h", "--help"} & set(argv):  # its settings are known once it is chosen
        args = parse(Attack, "attack", argv, groups, partly=True)
        runs.prepare(args.out)
        target = arguments.attacked(args, network)
        name, why = attacks.choose(target, args.model, options(args, "model"))
        target = replace(target, said={**target.said, "chosen": why})
        if target.client.kinks:
            Console().print(f"inference {name}: {why}", highlight=False, soft_wrap=True)
    shown = "hmc" if name == attacks.AUTO else name
    groups["inference"] = settings_of("Inference", arguments.inference(given(argv, "--model", "gaussian"), shown))
    args = parse(Attack, "attack", argv, groups)
    out = runs.prepare(args.out)
    found = attacks.attack(
        target or arguments.attacked(args, network),
        args.model,
        name,
        beliefs=options(args, "model"),
        settings=options(args, "inference"),
        seed=args.seed,
        progress=bar,
    )
    report.write(found, out, Console())
    return 130 if found.interrupted else 0


def observe(argv: Sequence[str]) -> int:
    groups = {
        "network": settings_of("Network", programs.network(given(argv, "--network", "mlp"))),
        "channel": settings_of("Channel", programs.channel(given(argv, "--channel", "gaussian"))),
        **defence_group(argv),
    }
    args = parse(Observe, "observe", argv, groups)
    if args.labels == "recovered":
        raise BadInput("a client shares its labels or not: --labels known or unknown; recover them in `pplleak attack`")
    if args.gradient is None:
        attacks.write_observation(arguments.private_target(args), args.out)
    else:
        _wrap(args)
    code = f" --network {args.network}" if ":" in args.network else ""  # a file is not let choose code to run
    said = f"written to {args.out}; attack it with: pplleak attack --observed {args.out}{code}"
    Console().print(said, highlight=False, soft_wrap=True)
    return 0


def _wrap(args: Any) -> None:
    """An observation of the user's own gradient, checked against the user's own network."""
    if args.input_shape is None:
        raise BadInput("--gradient needs --input-shape, the shape of one example: --input-shape 1 28 28")
    shared = observation.load(args.gradient)
    client = attacks.build_client(
        args.network, options(args, "network"), args.input_shape, args.num_classes,
        seed=args.seed, dtype=args.dtype, parameters=shared.parameters, where=str(args.gradient),
        checkpoint=args.checkpoint, local=arguments.local(args),
        defence=args.defence, defence_settings=options(args, "defence"),
    )  # fmt: skip
    g = observation.flatten(client, shared.gradient, str(args.gradient))
    labels = None
    if args.shared_labels is not None:
        labels = observation.check_labels(list(args.shared_labels), args.num_classes, args.batch_size)
    said = {"network": args.network, "network_settings": options(args, "network")}
    observed = observation.Observation(g, args.batch_size, labels)
    _, sigma, settings = attacks.resolve_channel(args.channel, args.sigma, options(args, "channel"))
    target = attacks.Target(
        client, observed, None, None, sigma, args.channel, settings, args.defence, options(args, "defence"), said
    )
    attacks.write_observation(target, args.out)


def ls(argv: Sequence[str]) -> int:
    args = parse(Ls, "ls", argv)
    if args.form == "markdown":
        print(model_table.markdown())
        return 0
    console = Console()
    kinds: list[tuple[str, programs.Kind]] = [("models (--model)", "models"), ("inferences (--inference)", "inference")]
    listed = [(title, programs.names(kind)) for title, kind in kinds]
    listed.append(("networks (--network)", programs.network_names()))
    width = max(len(name) for _, names in listed for name in names)
    for title, names in listed:
        console.print(f"[bold]{title}[/]")
        for name, said in names.items():
            console.print(f"  {name:<{width}} {said}", highlight=False, soft_wrap=True)
    return 0


def cp(argv: Sequence[str]) -> int:
    args = parse(Cp, "cp", argv)
    target = programs.copy(args.name, args.destination)
    Console().print(f"copied to {target}", highlight=False)
    return 0


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], type]] = {
    "attack": (attack, Attack),
    "observe": (observe, Observe),
    "compare": (compare_command.run, Compare),
    "risk": (risk_command.run, Risk),
    "calibrate": (calibrate.run, calibrate.Calibrate),
    "bits": (bits_command.run, bits_command.Bits),
    "prior": (prior_command.run, prior_command.Prior),
    "train": (train_command.run, train_command.Train),
    "defend": (defend_command.run, defend_command.Defend),
    "ls": (ls, Ls),
    "cp": (cp, Cp),
}


def usage() -> str:
    lines = ["usage: pplleak COMMAND [OPTIONS]      (pplleak COMMAND --help lists them)", ""]
    return "\n".join(
        lines + [f"  {name:<9} {(kind.__doc__ or '').splitlines()[0]}" for name, (_, kind) in COMMANDS.items()]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The `pplleak` command. Exit codes: 0 done, 2 bad input (one line on stderr), 130 interrupted.

    A KeyboardInterrupt comes out only where nothing could be kept; `pplleak.__main__` says so.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    warnings.showwarning = _note
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


def _note(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """Warnings as the command line shows them: one line, without the code they came from."""
    if issubclass(category, UserWarning):
        print(f"pplleak: note: {' '.join(str(message).split())}", file=sys.stderr)


def script(file: str) -> None:
    """What running an inference file means: `uv run inference/hmc.py --model dlg` is an attack with that file."""
    path = Path(file).resolve()
    inside = path.parent == programs.folder("inference").resolve()
    main(["attack", "--inference", path.stem if inside else str(path), *sys.argv[1:]])
