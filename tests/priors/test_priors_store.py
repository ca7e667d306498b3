"""Fitted priors as files: written, found again by name, and refused where they are not what was asked for."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from command_line import command as run
from conftest import tiny
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pplleak import data, programs
from pplleak.cli import prior as prior_command
from pplleak.errors import BadInput
from pplleak.priors import _store as store
from pplleak.priors._fitting import Interrupted, one_cycle
from pplleak.priors._store import trained

SHAPE = (1, 2, 2)
LABELS = torch.arange(40) % 3
QUICK: dict[str, dict[str, Any]] = {
    "class_flow": {"rank": 2, "hidden": 8, "epochs": 2},
    "class_mixture": {"rank": 2, "components": 3, "each": 4},
    "class_vae": {"latents": 2, "hidden": 8, "epochs": 2},
    "diffusion": {"levels": 3, "hidden": 4, "epochs": 2},
    "flow": {"rank": 2, "hidden": 8, "epochs": 2},
    "mixture": {"rank": 2, "components": 3},
    "patches": {"components": 2, "patches": 50, "epochs": 2},
    "vae": {"latents": 2, "hidden": 8, "epochs": 2},
}
MAP = ["--inference", "map", "--inference.starts", "2", "--inference.steps", "5"]


def images(count: int = 40) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture()
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    store.trained.cache_clear()
    return tmp_path


def saved(kind: str, name: str = "mine") -> tuple[Any, Path]:
    fitted = store.fitted(kind, images(), LABELS, **QUICK[kind])
    path = store.FOLDER / f"{name}.safetensors"
    store.save(path, kind, fitted, {"data": "random"})
    return fitted, path


@pytest.mark.parametrize("kind", store.kinds())
def test_a_prior_comes_back_from_its_file_by_name_and_by_path(workshop: Path, kind: str) -> None:
    fitted, path = saved(kind)
    for name in ("mine", str(path)):
        found = trained(kind, name, "digits", SHAPE, torch.float32)
        torch.manual_seed(0)
        before = fitted.log_prob(images(5))
        torch.manual_seed(0)
        torch.testing.assert_close(found.log_prob(images(5)), before, rtol=1e-4, atol=1e-3)
    exact = trained(kind, "mine", "digits", SHAPE, torch.float64)
    if kind == "patches":  # known up to its normaliser
        assert exact.roots.dtype == torch.float64
        return
    assert exact.draw(2).dtype == torch.float64
    assert exact.draw(2).shape == (2, *SHAPE)


@pytest.mark.slow
def test_a_flow_on_a_vae_comes_back_from_its_file_and_is_attacked_with(workshop: Path) -> None:
    def tensors() -> dict[str, Tensor]:
        return dict(store.load(path).tensors)

    fitted = store.fitter("flow")(images(), on="vae", **QUICK["flow"])
    path = store.FOLDER / "mine.safetensors"
    store.save(path, "flow", fitted, {"data": "random"})
    found = trained("flow", "mine", "digits", SHAPE, torch.float32)
    torch.manual_seed(0)
    before = fitted.log_prob(images(5))
    torch.manual_seed(0)
    torch.testing.assert_close(found.log_prob(images(5)), before, rtol=1e-4, atol=1e-3)
    client = tiny()
    assert programs.load("models", "optimal")(client, prior="flow:file=mine").shape == (client.update_size,)
    other = store.fitter("vae")(images(), latents=3, hidden=8, epochs=2)
    mixed = {**tensors(), **{f"vae.{n}": t for n, t in other.tensors().items()}}
    with pytest.raises(BadInput, match="describes 2 latents, its VAE has 3"):
        store.Stored("flow", SHAPE, mixed).prior()


@pytest.mark.parametrize("steps", [1, 9, 10, 30])
def test_a_fit_of_few_steps_has_a_rate_at_each_of_them(steps: int) -> None:
    adam = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    schedule, rates = one_cycle(adam, 0.1, steps), []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        adam.step()
        schedule.step()
    assert all(0 < r <= 0.1 for r in rates) and (steps < 9 or max(rates) > 0.09)


@pytest.mark.slow
@pytest.mark.parametrize("kind", store.kinds())
def test_a_model_without_a_name_fits_once_and_keeps_it(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    monkeypatch.setenv("PPLLEAK_CACHE", str(workshop / "cache"))
    real = store.fitter
    monkeypatch.setattr(store, "fitter", lambda kind: functools.partial(real(kind), **QUICK[kind]))
    state = torch.get_rng_state()
    pyro.param("bystander", torch.zeros(1))
    first = trained(kind, "", images(20), SHAPE, labels=LABELS[:20])
    assert torch.equal(torch.get_rng_state(), state)
    assert list(pyro.get_param_store().keys()) == ["bystander"]
    assert "once: kept as" in capsys.readouterr().err
    store.trained.cache_clear()
    monkeypatch.setattr(store, "fitter", _refuse(store.fitter))
    torch.manual_seed(0)
    again = trained(kind, "", images(20), SHAPE, labels=LABELS[:20])
    torch.manual_seed(0)
    before = first.log_prob(images(3))
    torch.manual_seed(0)
    torch.testing.assert_close(again.log_prob(images(3)), before)
    assert len(list((workshop / "cache").iterdir())) == 1


def _refuse(real: Any) -> Any:
    """`fitter` for reading signatures, whose fit fails the test when it is called."""

    def fitter(kind: str) -> Any:
        @functools.wraps(real(kind))
        def fit(*args: Any, **kwargs: Any) -> None:
            raise AssertionError("fitted again")

        return fit

    return fitter


def test_a_prior_for_another_shape_or_another_model_is_refused(workshop: Path) -> None:
    saved("mixture")
    with pytest.raises(BadInput, match=r"images of shape \(1, 2, 2\), the client's images have \(1, 8, 8\)"):
        trained("mixture", "mine", "digits", (1, 8, 8))
    with pytest.raises(BadInput, match="holds a mixture prior, and this model needs a vae prior"):
        trained("vae", "mine", "digits", SHAPE)
    with pytest.raises(BadInput, match="did you mean mine"):
        trained("mixture", "mime", "digits", SHAPE)
    with pytest.raises(BadInput, match="cannot read"):
        trained("mixture", "mime.safetensors", "digits", SHAPE)


def _broken(path: Path, how: str) -> None:
    with safe_open(path, framework="pt") as f:
        raw, tensors = f.metadata(), {n: f.get_tensor(n).clone() for n in f.keys()}  # noqa: SIM118 (not a dict)
    if how == "pickle":
        torch.save(tensors, path)
        return
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-50])
        return
    if how == "another kind":
        raw["kind"] = json.dumps("os")
    elif how == "another shape":
        raw["input_shape"] = json.dumps([1, 3, 3])
    elif how == "a shape of words":
        raw["input_shape"] = json.dumps(["a"])
    elif how == "no metadata":
        raw = {}
    elif how == "a tensor missing":
        tensors.pop(sorted(tensors)[-1])
    elif how == "NaN":
        tensors[sorted(tensors)[0]].fill_(float("nan"))
    save_file(tensors, path, metadata=raw)


BROKEN = ["pickle", "truncated", "another kind", "another shape", "a shape of words", "no metadata", "a tensor missing",
          "NaN"]  # fmt: skip


@pytest.mark.parametrize("kind", store.kinds())
@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_file_is_refused_in_one_line(workshop: Path, kind: str, how: str) -> None:
    _, path = saved(kind)
    store.load(path)
    _broken(path, how)
    with pytest.raises(BadInput, match=r"mine\.safetensors"):
        store.load(path)


@pytest.mark.slow
def test_the_command_line_fits_lists_shows_and_attacks(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prior", "fit", "mixture", "--prior.components", "2") == 0
    assert "held-out log-likelihood" in capsys.readouterr().out
    assert (workshop / "priors" / "mixture-digits.png").stat().st_size > 1000
    assert run("prior", "ls") == 0
    assert "mixture-digits" in capsys.readouterr().out
    assert run("prior", "show", "mixture-digits") == 0
    assert "components 2" in capsys.readouterr().out
    assert run("attack", "--prior", "mixture", "--prior.file", "mixture-digits", *MAP) == 0


@pytest.mark.parametrize(
    "argv",
    [
        ("prior", "fit", "unheard-of"),
        ("prior", "forget"),
        ("prior", "show", "unheard-of"),
        ("prior", "fit", "vae", "--prior.latents", "0"),
        ("prior", "fit", "vae", "--out", "prior.pt"),
        ("attack", "--prior", "vae", "--prior.file", "unheard-of", *MAP),
        ("attack", "--prior", "mixture", "--prior.file", "mine", "--network", "lenet", *MAP),
    ],
    ids=lambda argv: " ".join(argv[:4]),
)
def test_what_a_user_can_get_wrong_is_one_line_and_exit_code_2(
    workshop: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]
) -> None:
    saved("mixture")
    assert run(*argv) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("pplleak: ")


@pytest.mark.parametrize(
    "kind", [*(pytest.param(k, marks=pytest.mark.slow) for k in ("class_flow", "class_vae")), "flow", "vae"]
)
def test_ctrl_c_keeps_what_is_fitted(workshop: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def stopped(label: str, total: int) -> Iterator[int]:
        yield from range(3)
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="after 3 of") as stop:
        store.fitted(kind, images(), LABELS, progress=stopped)
    assert stop.value.fitted.draw(1).shape == (1, *SHAPE)
    monkeypatch.setattr(prior_command, "bar", stopped)
    assert run("prior", "fit", kind) == 130
    assert "after 3 of" in store.load(workshop / "priors" / f"{kind}-digits.safetensors").about["interrupted"]


def test_what_is_held_out_is_not_fitted_to() -> None:
    x = torch.arange(50.0).reshape(50, 1, 1, 1)
    train, held_out = store.split(x)
    assert sorted([*train.flatten().tolist(), *held_out.flatten().tolist()]) == list(range(50))
    assert len(held_out) == 5


def test_a_named_prior_serves_a_model_whatever_the_reference(workshop: Path) -> None:
    saved("vae")
    client = tiny()
    with pytest.raises(BadInput):
        data.reference("digits", client.input_shape)
    model = programs.load("models", "optimal")
    assert model(client, prior="vae:file=mine").shape == (client.update_size,)
