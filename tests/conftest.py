"""What several tests need: tiny clients, observations, and the one check that Monte Carlo estimates have to pass."""

from __future__ import annotations

import contextlib
import copy
import csv
import functools
import gc
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import arviz
import numpy as np
import pyro
import pytest
import torch
from command_line import run
from scenes import build_client
from torch import Tensor, nn

from pplleak.__main__ import GARBAGE
from pplleak.client import Client, seeded
from pplleak.density import step_size
from pplleak.federation.observation import Observation

PAPER = Path(__file__).parents[1] / "benchmarks" / "paper"
SCRIPTS = (
    "attacks",
    "network",
    "noise_defences",
    "page",
    "pictures",
    "pruning",
    "stronger_priors",
    "study",
    "training_time",
)

torch.set_num_threads(1)  # two cores are shared by xdist's workers; and one thread sums in one order


def pytest_collection_finish() -> None:
    """What is there before the first test stays to the end, and is not looked through for garbage again and again; the
    rest as seldom as in a process of our own."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Priors fitted on the fly are kept with the tests, not with the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PPLLEAK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def seeds_without_stacks() -> Iterator[None]:
    """Every seed is noted with its stack for each kind of accelerator that has not been started: under pytest that is
    longer than many a test."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (torch.cuda, torch.xpu, torch.mtia):
            patch.setattr(module, "traceback", SimpleNamespace(format_stack=list))
        yield


def benchmark(name: str) -> ModuleType:
    """The script `benchmarks/NAME.py` as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there for their annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def observation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that `pplleak observe` wrote."""
    path = tmp_path_factory.mktemp("observation") / "o.safetensors"
    assert run(["observe", "--out", str(path)]) == 0
    return path


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Every test starts from the same generator and an empty parameter store, whatever ran before it."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield


@contextlib.contextmanager
def quick_fits() -> Iterator[None]:
    """What is fitted on the fly is fitted in one epoch: for tests that need such a prior, and no good one."""
    from pplleak.priors import _store as store

    real = store.fitter

    def fitter(kind: str) -> Any:
        fit = real(kind)
        return functools.partial(fit, epochs=1) if "epochs" in inspect.signature(fit).parameters else fit

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "fitter", fitter)
        store.trained.cache_clear()
        yield
    store.trained.cache_clear()


@pytest.fixture()
def quick_priors() -> Iterator[None]:
    with quick_fits():
        yield


@pytest.fixture()
def short_trajectories(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hamiltonian trajectories of a few steps, as short in tiny attacks as in real ones: four warm-up draws after five
    steps of a search leave a step size so small that each takes the most there may be."""
    monkeypatch.setattr(step_size, "MAX_STEPS", 4)


def tiny(
    network: str = "mlp", shape: tuple[int, ...] = (1, 2, 2), classes: int = 3, dtype: Any = "float64", **settings: Any
) -> Client:
    """A client small enough that a test takes milliseconds."""
    if network == "mlp":
        settings = {"widths": (4,), **settings}
    return build_client(network, settings, shape, classes, dtype=dtype)


def own(make: Callable[[], nn.Module], shape: tuple[int, ...], classes: int = 3, dtype: Any = torch.float64) -> Client:
    """A client of a hand-made network whose every parameter and statistic is random (no zeros, no ones); a copy, as in
    `build_client`."""
    return copy.deepcopy(_own(make, shape, classes, dtype))


@functools.cache
def _own(make: Callable[[], nn.Module], shape: tuple[int, ...], classes: int, dtype: Any) -> Client:
    network = seeded(make, 0).to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():  # drawn in float64: one network, whatever its precision
            p.copy_(1.4 * torch.rand(p.shape, dtype=torch.float64, generator=generator) - 0.7)
        for name, b in network.named_buffers():
            if "running" in name:
                b.copy_(0.5 + torch.rand(b.shape, dtype=torch.float64, generator=generator))
    return Client(network, shape, classes)


def batch_of(client: Client, lead: tuple[int, ...] = (), size: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random x (*lead, size, *input_shape) in [0, 1] and y (*lead, size)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(*lead, size, *client.input_shape, dtype=torch.float64, generator=generator)
    return x.to(client.dtype), torch.randint(client.num_classes, (*lead, size), generator=generator)


def observe(client: Client, sigma: float, *, size: int = 1, known: bool = True, seed: int = 0) -> Observation:
    """What a client with random data shares through Gaussian noise."""
    x, y = batch_of(client, size=size, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        u = client.update(x, y).materialise()
    noise = torch.randn(u.shape, dtype=torch.float64, generator=generator).to(u)
    return Observation(u + sigma * noise, size, y if known else None)


# -- Monte Carlo ---------------------------------------------------------------------------------------------------

LIMIT = 5.0  # Monte Carlo standard errors
FLOOR = 150  # effective draws: five standard errors are then 0.4 sd, and half a sd cannot pass unseen


def chains_of(draws: Tensor | np.ndarray, chains: int = 4) -> np.ndarray:
    """Independent draws (N, …) as (chain, draw, quantity)."""
    flat = np.asarray(draws, dtype=np.float64).reshape(len(draws), -1)
    return flat[: len(flat) // chains * chains].reshape(chains, -1, flat.shape[1])


def _estimate(values: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and its standard error of each quantity of (chain, draw, quantity); fails below the ESS floor."""
    ess = np.asarray(arviz.ess(values, method="mean"))
    assert np.all(ess >= floor), f"only {ess.min():.0f} effective draws, of the {floor} that the check needs"
    return values.mean((0, 1)), values.std((0, 1)) / np.sqrt(ess)


def misfit(draws: np.ndarray, mean: Any, sd: Any = None, floor: float = FLOOR) -> float:
    """The largest error of the draws' means, and of their mean squares about `mean`, in standard errors."""
    mean = np.asarray(mean, dtype=np.float64).reshape(-1)
    parts = [(draws, mean)]
    if sd is not None:
        parts.append(((draws - mean) ** 2, np.asarray(sd, dtype=np.float64).reshape(-1) ** 2))
    worst = []
    for values, expected in parts:
        found, error = _estimate(values, floor)
        worst.append(float(np.max(np.abs(found - expected) / error)))
    return max(worst)


def wrong_twins(draws: np.ndarray) -> dict[str, np.ndarray]:
    """What a subtly wrong sampler would have drawn instead."""
    centre, sd = draws.mean((0, 1)), draws.std((0, 1))
    return {"half the width": centre + (draws - centre) / 2, "half a sd shifted": draws + sd / 2}


def assert_moments(draws: np.ndarray, mean: Any, sd: Any, floor: float = FLOOR) -> None:
    """Means and sds of (chain, draw, quantity) are the exact ones; the same check rejects the wrong twins."""
    assert misfit(draws, mean, sd, floor) <= LIMIT
    for name, twin in wrong_twins(draws).items():
        assert misfit(twin, mean, sd, floor) > LIMIT, f"the check has no power: it accepts {name}"


def assert_frequencies(labels: np.ndarray, probabilities: Any, floor: float = FLOOR) -> None:
    """Frequencies of (chain, draw) labels are the exact probabilities; those of relabelled draws are not."""
    probabilities = np.asarray(probabilities, dtype=np.float64)
    count = len(probabilities)

    def indicators(drawn: np.ndarray) -> np.ndarray:
        return (drawn[..., None] == np.arange(count)).astype(np.float64)

    assert misfit(indicators(labels), probabilities, floor=floor) <= LIMIT
    assert misfit(indicators((labels + 1) % count), probabilities, floor=floor) > LIMIT


@pytest.fixture(scope="module")
def paper() -> Iterator[Callable[[str], ModuleType]]:
    """A script of benchmarks/paper by name, imported as it is when it runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PAPER))
        yield importlib.import_module
    for name in SCRIPTS:
        sys.modules.pop(name, None)


def rows(path: Path) -> list[dict[str, str]]:
    """A CSV's rows, as they are written."""
    return list(csv.DictReader(path.open(newline="")))
