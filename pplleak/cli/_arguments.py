"""What the command line said, as what the library takes: clients, targets, inferences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pplleak import data
from pplleak.cli._options import given, options
from pplleak.client.training import LocalTraining
from pplleak.density import label_recovery
from pplleak.errors import BadInput
from pplleak.federation import observation, targets
from pplleak.federation.targets import Target


def spare_threads(target: Target) -> Target:
    """A small network is faster on one core than split over several, many times so on a busy machine."""
    if target.client.update_size < 50_000:
        torch.set_num_threads(1)
    return target


def local(args: Any) -> LocalTraining | None:
    if args.local_lr is not None:
        return LocalTraining(args.local_lr, args.local_steps, args.local_batch_size)
    if args.local_steps != 1 or args.local_batch_size is not None:
        raise BadInput("local training needs a learning rate: add --local-lr 0.1")
    return None


def private_target(args: Any, index: int | None = None, noise_seed: int | None = None) -> Target:
    target = targets.from_data(
        args.data,
        root=args.data_root,
        index=args.index if index is None else index,
        batch_size=args.batch_size,
        label=args.label,
        labels_shared=args.labels != "unknown",
        network=args.network,
        settings=options(args, "network"),
        checkpoint=args.checkpoint,
        local=local(args),
        sigma=args.sigma,
        channel=args.channel,
        channel_settings=options(args, "channel"),
        defence=args.defence,
        defence_settings=options(args, "defence"),
        seed=args.seed,
        noise_seed=noise_seed,
        dtype=args.dtype,
    )
    return label_recovery.recovered(target) if args.labels == "recovered" else target


def network_defaults(argv: Sequence[str], observed: str) -> tuple[str, dict[str, Any]]:
    """The network to build the parser for: the one that is named, else the observation's."""
    if not observed:
        return given(argv, "--network", "mlp"), {}
    metadata = observation.load(observed).metadata
    if not metadata:
        return given(argv, "--network", "mlp"), {}
    named = given(argv, "--network", "")
    name = named or targets.network_of(observed, metadata)
    return name, metadata["settings"] if name == metadata["network"] else {}


def attacked(args: Any, network: str) -> Target:
    """What `attack` is told to attack: an observation or an image, as its adversary sees it."""
    if args.observed:
        if args.defence:
            raise BadInput("an observation says which defence it went through: leave --defence out")
        target = targets.from_file(
            args.observed,
            network=network,
            settings=options(args, "network"),
            checkpoint=args.checkpoint,
            seed=args.seed,
            dtype=args.dtype,
            public=data.public(args.data, args.data_root).x,
        )
        target = label_recovery.recovered(target) if args.labels == "recovered" else target
    else:
        target = private_target(args)
    if args.surrogate is not None:
        target = targets.with_surrogate(target, args.surrogate)
    return spare_threads(target)
