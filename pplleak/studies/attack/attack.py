"""Attack an observation with a model and an inference, by name."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pplleak import blame, channels, density, programs
from pplleak.client import sizes
from pplleak.errors import BadInput, require_positive
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, fit, fit_words, information
from pplleak.programs import AUTO, MODEL
from pplleak.progress import ProgressBar, silent
from pplleak.settings import Named
from pplleak.studies.attack import attributes, averaging, causes

RECORDS, CELLS = "records", "gibbs"  # the prior of a table's records, and the inference that moves through their cells
SENTENCES, TOKENS = "sentences", "isir"  # the same of text
MORE = {"starts": 4, "steps": 2}  # of a search that is made once more, in those of the first


def believe(
    model: Callable[..., Any], observed: Observation, beliefs: Mapping[str, Any] | None = None
) -> functools.partial[Any]:
    """The model with its beliefs bound.

    What is not set falls to what is known of the observation: `channel` to its channel, `sigma` and any other setting
    (`rate`, `clip`, `policy`, …) to that of its channel or defence, `reference` to the public images, and
    `reference_labels` to theirs, `seen` to what was shared, `masks` to whether the network's own dropout is on: who
    holds the network knows; of a defence, only who is told. The prior of records is `records`, that of
    text `sentences`, unless another is named.
    """
    parameters = inspect.signature(model).parameters
    preset = getattr(model, "keywords", {})  # of a name with settings: optimal:channel=laplace
    discrete = RECORDS if observed.client.columns is not None else SENTENCES if observed.client.vocabulary else None
    if discrete is not None and "prior" in parameters and "prior" not in preset:
        beliefs = {"prior": discrete, **{n: v for n, v in (beliefs or {}).items() if v is not None}}
    bound = {n: v for n, v in (beliefs or {}).items() if v is not None}
    unknown = set(bound) - set(parameters)
    if unknown:
        raise BadInput(f"the model has no belief '{sorted(unknown)[0]}'")
    if isinstance(bound.get("sigma"), (int, float)):
        require_positive(sigma=bound["sigma"])
    known = {
        **observed.protection.settings,
        "reference": observed.public,
        "reference_labels": observed.public_labels,
        "seen": observed.g,
    }
    if observed.client.noise_shape is not None and observed.protection.defence is None:
        known["masks"] = True
    if "channel" in parameters:
        bound["channel"] = believed_channel(bound.get("channel") or preset.get("channel"), observed)
        known.pop("sigma", None)  # the channel has it
    for name in [n for n, value in known.items() if n in parameters and n not in bound and value is not None]:
        bound[name] = known[name]
    if bound.get("sigma") == channels.INFER and channels.INFER not in str(parameters["sigma"].annotation):
        raise BadInput("this model needs the noise to be told: give its sigma, or take the model optimal, which can "
                       "infer it")  # fmt: skip
    return functools.partial(model, **bound)


def believed_channel(channel: str | Named | None, observed: Observation) -> Named:
    """The channel that an adversary believes in: the observation's where none is named, and every setting that is
    not given as it is known of the observation."""
    true = observed.protection.channel
    if not channel:
        return true or Named("gaussian")
    named, known = Named.parse(channel), observed.protection.settings
    own = {s for s in channels.check(named).settings if s in known and s not in named.settings}
    return named.with_(**{s: known[s] for s in own})


def choose(observed: Observation, model: str = MODEL, beliefs: Mapping[str, Any] | None = None) -> tuple[str, str]:
    """The inference for an observation where none was named, and why.

    hmc, where the network is smooth. Where it has kinks, the first file of inference/ by name that is exact there: one
    with a function `declines(model, observed, client)` that returns "", and not a reason. If there is none, hmc, which
    then warns.
    """
    kinks, columns = observed.client.kinks, observed.client.columns
    if observed.client.vocabulary is not None:
        return TOKENS, "sentences are discrete, and this sampler moves from token to token"
    if columns is not None and (kinks or columns.finite):
        bound = believe(programs.load("models", model), observed, beliefs)
        declines = programs.inference(CELLS).declines
        if declines is not None and not declines(bound, observed, observed.client):
            return CELLS, "records have cells that are discrete, and this sampler moves from cell to cell"
    if not kinks:
        return "hmc", "the network is smooth"
    has = f"the network has kinks ({', '.join(kinks)})"
    bound = believe(programs.load("models", model), observed, beliefs)
    reasons = []
    for name, refuses in programs.declining().items():
        with _blaming(programs.locate("models", model)):
            reason = refuses(bound, observed, observed.client)
        if not reason:
            return name, f"{has}, and this sampler is exact there"
        reasons.append(reason)
    return "hmc", f"{has}, and no sampler that is exact there takes it: {'; '.join(reasons)}"


def attack(
    observed: Observation,
    model: str = MODEL,
    inference: str = AUTO,
    *,
    prior: str | Named | Sequence[str | Named] | None = None,
    beliefs: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    explain: bool = False,
    progress: ProgressBar = silent,
) -> Posterior:
    """Attack an observation with a model and an inference, each a name or a path.

    Args:
        model: `optimal` is the Bayes-optimal adversary; a name may carry settings, `optimal:prior=vae`.
        inference: `auto` leaves it to `choose`.
        prior: short for the belief `prior`: what the adversary knows of the data, `vae` or `gaussian:floor=0.05`.
            Several are averaged by their evidence (`averaging`), which takes an attack for each.
        beliefs: keyword arguments of the model. settings: keyword arguments of the inference; what is not set
            falls to what the model's file prefers (`programs.preferred`). A model's file may also know how to read
            labels that were not shared off g (`pplleak.density.label_rules`).
        seed: of the inference; one seed, one result.
        explain: where the model does not explain the gradient, try other clients (`causes`): about a dozen short
            searches more; and where it is the search that failed, the inference once more, as far as it can with
            `MORE` starts and steps. What that finds is taken if it fits, and `searches` is 2 in the attributes.
    """
    if prior is not None and not isinstance(prior, str | Named):
        given: dict[str, Any] = {"settings": settings, "seed": seed, "explain": explain, "progress": progress}

        def under(one: Named) -> tuple[Posterior, information.Estimate | None]:
            assumed = {**(beliefs or {}), "prior": one}
            bound = believe(programs.load("models", model), observed, assumed)
            target = density.build(bound, observed.client, observed)
            information.require_normalised(target, f"the weight of {one}")
            found = attack(observed, model, inference, beliefs=assumed, **given)
            return found, information.evidence(found, target)

        return averaging.average(averaging.attacked([Named.parse(p) for p in prior], under), seed)
    provenance = dict(observed.provenance)
    beliefs = {**(beliefs or {}), **({} if prior is None else {"prior": prior})}
    rule = programs.model(model).labels
    if observed.labels is None and rule is not None:
        observed = replace(observed, labels=rule(observed.client, observed))
        provenance |= {"labels": "read off the gradient", "recovered_labels": attributes.read(observed, model)}
    if inference == AUTO:
        inference, provenance["chosen"] = choose(observed, model, beliefs)
    run = programs.load("inference", inference)
    settings = programs.preferred(model, inference) | dict(settings or {})
    bound = believe(programs.load("models", model), observed, beliefs)
    sizes.require_draws(observed.client, observed.batch_size, settings)
    start = time.perf_counter()

    def infer(seed: int, **more: Any) -> Posterior:
        given = {**settings, **more}
        with _blaming(programs.locate("models", model)):
            found: Posterior = run(bound, observed, observed.client, seed=seed, progress=progress, **given)
        if not isinstance(found, Posterior):
            raise BadInput(f"the inference {inference} returned a {type(found).__name__}, not a Posterior: end its run "
                           "with pplleak.posterior.collect")  # fmt: skip
        return found

    posterior = infer(seed)
    looked = _fit(bound, observed, posterior, progress if explain else None)
    if looked is not None and looked.cause == causes.SEARCH:
        with suppress(KeyboardInterrupt):  # what was found stays
            presets = programs.defaults(inference) | settings
            wider = {n: times * presets[n] for n, times in MORE.items() if isinstance(presets.get(n), int)}
            again = infer(seed + 1, **wider)
            second = _fit(bound, observed, again, None)
            if second is not None and second.fits:
                posterior, looked = again, second
                provenance["searches"] = 2
    leaked: dict[str, Any] = {}
    if observed.truth is not None:
        with suppress(BadInput):  # not every inference knows p(g), nor every model p(g | x)
            gained = information.gain(bound, observed, observed.client, posterior, observed.truth)
            leaked = {"bits": gained.value, "bits_se": gained.se}
    attrs = {
        **leaked,
        "fit": looked and looked.plain(),
        "model": model,
        "inference": inference,
        "beliefs": attributes.plain(bound.keywords),
        "settings": attributes.plain(settings),
        "seed": seed,
        "sigma": observed.sigma,
        "path": observed.client.path,
        **attributes.inferred(posterior),
        "protection": str(observed.protection),
        **attributes.table(observed),
        "seconds": time.perf_counter() - start,
        "versions": attributes.versions(),
        **provenance,
    }
    truth = None if observed.truth is None else observed.truth.cpu().numpy()
    return posterior.with_(attrs={**attrs, **posterior.attrs}, truth=truth)


def _fit(
    bound: functools.partial[Any], observed: Observation, posterior: Posterior, explaining: ProgressBar | None
) -> fit.Fit | None:
    """How well the model explains the observation; None where that cannot be computed, which fails no attack.

    explaining: shows the search for a cause where it does not; None looks for none.
    """
    preset = inspect.signature(bound).parameters.get("prior")
    prior = "" if preset is None or preset.default is preset.empty else Named.parse(preset.default).name
    try:
        found = fit.look(bound, observed, posterior, prior)
    except (BadInput, RuntimeError, ValueError):  # a model of the user's own, a channel without replicates
        return None
    if explaining is not None and found.fits is False and not posterior.interrupted:
        with suppress(KeyboardInterrupt):  # what was found stays
            cause = causes.explain(bound, observed, explaining, misfit=found.p is None or found.p < fit_words.P)
            found = found if cause is None else found.explained(cause.name, cause.words, cause.nats)
    return found


@contextmanager
def _blaming(model: Path) -> Iterator[None]:
    """Errors that a model's file raised, as one line that names the file."""
    try:
        yield
    except (Exception, SystemExit) as error:
        chain: list[BaseException] = [error]
        while chain[-1].__cause__ is not None:  # Pyro raises errors anew, with its trace's shapes in their text
            chain.append(chain[-1].__cause__)
        refusals, inner = [e for e in chain if isinstance(e, BadInput)], chain[-1]
        if refusals:
            raise refusals[-1] from error
        place = blame.users(inner)
        if place and place[0] != model.resolve():  # an inference, a network
            raise BadInput(f"the attack failed in your code: {blame.describe(inner)}") from error
        if blame.lines_of(inner, model) or not programs.shipped(model):
            raise BadInput(f"the model {model} failed: {blame.describe(inner, model)}") from error
        raise
