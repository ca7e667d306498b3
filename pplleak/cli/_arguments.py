"""A command line as what the library takes: scenarios, observations, beliefs, inferences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch

from pplleak import channels, data
from pplleak.cli._local import UNSAID, Local
from pplleak.cli._options import given, options
from pplleak.client.loss import DEFAULT, built_in_loss
from pplleak.client.sharing import NotShared
from pplleak.client.training import LocalTraining
from pplleak.density import label_recovery, surrogate
from pplleak.errors import BadInput
from pplleak.federation import files
from pplleak.federation.observation import Observation
from pplleak.federation.protection import NONE, Protection
from pplleak.federation.scenario import Scenario, observe
from pplleak.federation.stored import built_in, load
from pplleak.programs import MODEL
from pplleak.settings import Named


def spare_threads(observed: Observation) -> Observation:
    """A small network is faster on one core than split over several, many times so on a busy machine."""
    if observed.client.update_size < 50_000:
        torch.set_num_threads(1)
    return observed


def local(args: Any) -> LocalTraining | None:
    """What a client trains before it shares; None: it shares its gradient."""
    said = {f.name.removeprefix("local_"): getattr(args.local, f.name) for f in fields(Local)}
    if args.local == UNSAID:
        return None
    if args.local.local_lr is None:
        raise BadInput("local training needs a learning rate: add --local-lr 0.1")
    return LocalTraining(**said)


def protection(args: Any) -> Protection:
    """The defence and the channel of a command line, with their settings; a channel that has a sigma gets 0.1 unless
    it is given."""
    defence = None if args.defence in ("", NONE) else Named(args.defence, options(args, "defence"))
    channel = None
    if args.channel != NONE:
        channel = channels.check(Named(args.channel, options(args, "channel")).with_(sigma=args.sigma), "the channel")
    elif args.sigma is not None:
        raise BadInput("--sigma is the noise of a channel: name one, --channel gaussian")
    return Protection(defence, channel)


def data_of(args: Any) -> str:
    """What `pplleak.data` reads: the data that are named, with the settings of a table's file."""
    said = {n: v for n, v in options(args, "data").items() if v}
    return str(Named(args.data, said)) if said else str(args.data)


def scenario(args: Any, index: int | None = None, noise_seed: int | None = None) -> Scenario:
    """What the command line attacks: an image of the data, or another one, with noise of its own."""
    return Scenario(
        data_of(args),
        args.data_root,
        index=args.index if index is None else index,
        batch_size=args.batch_size,
        label=args.label,
        labels="unknown" if args.labels == "unknown" else "known",
        network=Named(args.network, options(args, "network")),
        checkpoint=args.checkpoint,
        local=local(args),
        loss=args.loss,
        normalise=args.normalise,
        protection=protection(args),
        seed=args.seed,
        noise_seed=noise_seed,
        dtype=args.dtype,
        device=args.device,
    )


def observed(args: Any, index: int | None = None, noise_seed: int | None = None) -> Observation:
    """The observation of `scenario`, with its labels recovered where that is asked for."""
    made = observe(scenario(args, index, noise_seed))
    return label_recovery.recovered(made) if args.labels == "recovered" else made


def beliefs(args: Any, several: bool = False) -> dict[str, Any]:
    """Of the model, with the prior and its settings where the model takes one.

    Args:
        several: priors may be named together, and are left out: the caller averages over them.
    """
    chosen = options(args, "model")
    if "prior" in chosen:
        if args.prior and ":" in str(chosen["prior"]):
            raise BadInput("the prior is named twice: by --prior and by --model.prior; leave one out")
        if len(priors(args)) > 1:
            if not several:
                raise BadInput(f"several priors ({args.prior}) are averaged by `pplleak attack` alone so far: name one")
            return {n: v for n, v in chosen.items() if n != "prior"}
        named = Named.parse(args.prior or chosen["prior"])
        chosen["prior"] = Named(named.name, {**options(args, "prior"), **named.settings})
    elif args.prior:
        raise BadInput(f"the model {args.model} has a prior of its own: leave --prior out, or take --model {MODEL}")
    return chosen


def priors(args: Any) -> list[Named]:
    """The priors that --prior names: several are averaged."""
    return Named.several(args.prior) if args.prior else []


@contextmanager
def said_shared() -> Iterator[None]:
    """A file that lacks layers is refused with the flag that says that they were not shared."""
    try:
        yield
    except NotShared as error:
        raise BadInput(f"{error}: --shared-only") from error


def network_defaults(argv: Sequence[str], path: str) -> tuple[str, dict[str, Any]]:
    """The network to build the parser for: the one that is named, else the observation's."""
    if not path:
        return given(argv, "--network", "mlp"), {}
    metadata = files.read(path).metadata
    if not metadata:
        return given(argv, "--network", "mlp"), {}
    name = given(argv, "--network", "") or built_in(path, metadata)
    return name, metadata["settings"] if name == metadata["network"] else {}


def attacked(args: Any, network: str) -> Observation:
    """What `attack` is told to attack: an observation or an image, as its adversary sees it."""
    if args.shared_only and not args.observed:
        raise BadInput("--shared-only is said of a file: add --observed FILE")
    if args.observed:
        if args.defence:
            raise BadInput("an observation says which defence it went through: leave --defence out")
        if (args.loss != DEFAULT and built_in_loss(args.loss)) or args.normalise:
            raise BadInput("an observation says the loss of its client, and what its inputs were normalised by: leave "
                           "--loss and --normalise to `pplleak observe`")  # fmt: skip
        public = data.public(data_of(args), args.data_root)
        with said_shared():
            made = load(
                args.observed,
                network=Named(network, options(args, "network")),
                checkpoint=args.checkpoint,
                seed=args.seed,
                dtype=args.dtype,
                device=args.device,
                public=public,
                shared_only=args.shared_only,
                loss=None if args.loss == DEFAULT else args.loss,
            )
        if args.sigma is not None:
            made = replace(made, protection=made.protection.with_sigma(args.sigma))
        made = label_recovery.recovered(made) if args.labels == "recovered" else made
    else:
        made = observed(args)
    if args.surrogate is not None:
        made = surrogate.believed(made, args.surrogate)
    return spare_threads(made)
