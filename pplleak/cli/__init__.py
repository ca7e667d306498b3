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

from pplleak import programs  # noqa: E402
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
    Attack,
    Compare,
    Cp,
    Ls,
    Observe,
    Risk,
    given,
    options,
    parse,
    settings_of,
    with_defaults,
)
from pplleak.client import networks  # noqa: E402
from pplleak.errors import BadInput, unknown  # noqa: E402
from pplleak.federation import files  # noqa: E402
from pplleak.federation.observation import Observation, check_labels, flatten  # noqa: E402
from pplleak.federation.scenario import build_client, save  # noqa: E402
from pplleak.progress import bar  # noqa: E402
from pplleak.settings import Named  # noqa: E402
from pplleak.studies.attack import attack as attacks  # noqa: E402
from pplleak.studies.attack import report  # noqa: E402
from pplleak.studies.attack.attack import AUTO, MODEL, choose  # noqa: E402

# -- commands ------------------------------------------------------------------------------------------------------


def attack(argv: Sequence[str]) -> int:
    path = given(argv, "--observed", "")
    network, defaults = arguments.network_defaults(argv, path)
    model, name, observed = given(argv, "--model", MODEL), given(argv, "--inference", AUTO), None
    groups = {
        **arguments.victim_groups(argv),
        "network": settings_of("Network", with_defaults(networks.load(network), defaults, path)),
        **arguments.model_groups(argv),
    }
    if name == AUTO and not {"-h", "--help"} & set(argv):  # its settings are known once it is chosen
        args = parse(Attack, "attack", argv, groups, partly=True)
        report.prepare(args.out)
        observed = arguments.attacked(args, network)
        name, why = choose(observed, args.model, arguments.beliefs(args))
        observed = replace(observed, provenance={**observed.provenance, "chosen": why})
        if observed.client.kinks:
            Console().print(f"inference {name}: {why}", highlight=False, soft_wrap=True)
    shown = "hmc" if name == AUTO else name
    groups["inference"] = settings_of("Inference", arguments.inference(model, shown))
    args = parse(Attack, "attack", argv, groups)
    out = report.prepare(args.out)
    posterior = attacks.attack(
        observed or arguments.attacked(args, network),
        args.model,
        name,
        beliefs=arguments.beliefs(args),
        settings=options(args, "inference"),
        seed=args.seed,
        progress=bar,
    )
    report.write(posterior, out, Console())
    return 130 if posterior.interrupted else 0


def observe(argv: Sequence[str]) -> int:
    args = parse(Observe, "observe", argv, arguments.victim_groups(argv))
    if args.labels == "recovered":
        raise BadInput("a client shares its labels or not: --labels known or unknown; recover them in `pplleak attack`")
    if args.gradient is None:
        save(arguments.observed(args), args.out)
    else:
        _wrap(args)
    code = f" --network {args.network}" if ":" in args.network else ""  # a file is not let choose code to run
    message = f"written to {args.out}; attack it with: pplleak attack --observed {args.out}{code}"
    Console().print(message, highlight=False, soft_wrap=True)
    return 0


def _wrap(args: Any) -> None:
    """An observation of the user's own gradient, checked against the user's own network."""
    if args.input_shape is None:
        raise BadInput("--gradient needs --input-shape, the shape of one example: --input-shape 1 28 28")
    shared, network, protected = (
        files.read(args.gradient),
        Named(args.network, options(args, "network")),
        arguments.protection(args),
    )
    client = build_client(
        network, args.input_shape, args.num_classes,
        seed=args.seed, dtype=args.dtype, parameters=shared.parameters, where=str(args.gradient),
        checkpoint=args.checkpoint, local=arguments.local(args), defence=protected.defence,
    )  # fmt: skip
    g = flatten(client, shared.gradient, str(args.gradient))
    labels = None
    if args.shared_labels is not None:
        labels = check_labels(list(args.shared_labels), args.num_classes, args.batch_size)
    provenance = {"network": network.name, "network_settings": dict(network.settings)}
    save(Observation(g, args.batch_size, labels, client, protected, provenance=provenance), args.out)


def ls(argv: Sequence[str]) -> int:
    args = parse(Ls, "ls", argv)
    if args.form == "markdown":
        print(model_table.markdown())
        return 0
    console = Console()
    kinds: list[tuple[str, programs.Kind]] = [("models (--model)", "models"), ("inferences (--inference)", "inference")]
    listed = [(title, programs.names(kind)) for title, kind in kinds]
    listed.append(("networks (--network)", networks.names()))
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
