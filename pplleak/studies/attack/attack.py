"""Attack a target with a model and an inference, by name."""

from __future__ import annotations

import functools
import inspect
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from pplleak import programs
from pplleak.errors import BadInput, require_positive
from pplleak.federation.targets import (
    Precision,
    Target,
    build_client,
    from_data,
    from_file,
    network_of,
    resolve_channel,
    with_surrogate,
    write_observation,
)
from pplleak.posterior import Posterior, information
from pplleak.progress import ProgressBar, silent

__all__ = [
    "AUTO", "Precision", "Target", "attack", "believe", "build_client", "choose", "from_data", "from_file",
    "network_of", "resolve_channel", "versions", "with_surrogate", "write_observation",
]  # fmt: skip

AUTO = programs.AUTO


def believe(
    model: Callable[..., Any], target: Target, beliefs: Mapping[str, Any] | None = None
) -> functools.partial[Any]:
    """The model with its beliefs bound.

    What is not set falls to what is known of the target: `sigma` and any other setting of the true channel (`rate`,
    `clip`, …) to the channel's, one of the true defence (`policy`, …) to the defence's, `reference` to public images.
    """
    parameters = inspect.signature(model).parameters
    bound = {n: v for n, v in (beliefs or {}).items() if v is not None}
    unknown = set(bound) - set(parameters)
    if unknown:
        raise BadInput(f"the model has no belief '{sorted(unknown)[0]}'")
    if isinstance(bound.get("sigma"), (int, float)):
        require_positive(sigma=bound["sigma"])
    known = {"sigma": target.sigma, "reference": target.public, **target.defence_settings, **target.channel_settings}
    for name in [n for n, value in known.items() if n in parameters and n not in bound and value is not None]:
        bound[name] = known[name]
    return functools.partial(model, **bound)


def choose(target: Target, model: str = "gaussian", beliefs: Mapping[str, Any] | None = None) -> tuple[str, str]:
    """The inference for a target where none was named, and why.

    hmc, where the network is smooth. Where it has kinks, the first file of inference/ by name that is exact there: one
    with a function `declines(model, observed, client)` that returns "", and not a reason. If there is none, hmc, which
    then warns.
    """
    kinks = target.client.kinks
    if not kinks:
        return "hmc", "the network is smooth"
    said = f"the network has kinks ({', '.join(kinks)})"
    bound = believe(programs.load("models", model), target, beliefs)
    reasons = []
    for name, declines in programs.declining().items():
        with _blaming(programs.locate("models", model)):
            reason = declines(bound, target.observed, target.client)
        if not reason:
            return name, f"{said}, and this sampler crosses them exactly"
        reasons.append(reason)
    return "hmc", f"{said}, and no exact sampler takes them: {'; '.join(reasons)}"


def attack(
    target: Target,
    model: str = "gaussian",
    inference: str = AUTO,
    *,
    beliefs: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: ProgressBar = silent,
) -> Posterior:
    """Attack a target with a model and an inference, each a name or a path.

    Args:
        inference: `auto` leaves it to `choose`.
        beliefs: keyword arguments of the model. settings: keyword arguments of the inference; what is not set
            falls to what the model's file prefers (`programs.preferred`). A model's file may also know how to read
            labels that were not shared off g (`pplleak.density.label_rules`).
        seed: of the inference; one seed, one result.
    """
    said = target.said
    if inference == AUTO:
        inference, why = choose(target, model, beliefs)
        said = {**said, "chosen": why}
    run, program = programs.inference(inference).run, programs.model(model)
    settings = programs.preferred(model, inference) | dict(settings or {})
    if target.observed.labels is None and program.labels is not None:
        labels = program.labels(target.client, target.observed)
        target = replace(target, observed=replace(target.observed, labels=labels))
        said = {**said, "labels": "read off the gradient"}
    bound = believe(program.model, target, beliefs)
    start = time.perf_counter()
    with _blaming(programs.locate("models", model)):
        posterior: Posterior = run(bound, target.observed, target.client, seed=seed, progress=progress, **settings)
    leaked: dict[str, Any] = {}
    if target.truth is not None:
        with suppress(BadInput):  # not every inference knows p(g), nor every model p(g | x)
            gained = information.gain(bound, target.observed, target.client, posterior, target.truth)
            leaked = {"bits": gained.value, "bits_se": gained.se}
    attrs = {
        **leaked,
        "model": model,
        "inference": inference,
        "beliefs": _plain(bound.keywords),
        "settings": _plain(settings),
        "seed": seed,
        "sigma": target.sigma,
        "channel": target.channel,
        "channel_settings": dict(target.channel_settings),
        "defence": target.defence,
        "defence_settings": dict(target.defence_settings),
        "seconds": time.perf_counter() - start,
        "versions": versions(),
        **said,
    }
    truth = None if target.truth is None else target.truth.cpu().numpy()
    return posterior.with_(attrs={**attrs, **posterior.attrs}, truth=truth)


@contextmanager
def _blaming(model: Path) -> Iterator[None]:
    """Errors that a model's file raised, as one line that names the file."""
    try:
        yield
    except Exception as error:
        chain: list[BaseException] = [error]
        while chain[-1].__cause__ is not None:  # Pyro raises errors anew, with its trace's shapes in their text
            chain.append(chain[-1].__cause__)
        said, inner = [e for e in chain if isinstance(e, BadInput)], chain[-1]
        if said:
            raise said[-1] from error
        if isinstance(inner, Exception) and programs.lines_of(inner, model):
            raise BadInput(f"the model {model} failed: {programs.describe(inner, model)}") from error
        raise


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON can hold them; a tensor by its shape."""
    return {n: f"tensor{tuple(v.shape)}" if isinstance(v, Tensor) else v for n, v in values.items()}


def versions() -> dict[str, str]:
    """What a result was made with."""
    packages = ("pplleak", "torch", "pyro-ppl", "arviz", "numpy")
    return {"python": platform.python_version(), **{p: version(p) for p in packages}}
