"""The command line, as a user meets it: every command at tiny size."""

from __future__ import annotations

import csv
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import ROOT, run, shell, tiny, tiny_settings
from pyro import poutine
from safetensors.torch import save_file
from scenes import build_client, from_data
from texts import written

from pplleak import channels, priors, programs
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior
from pplleak.studies.attack.attack import attack

pytestmark = pytest.mark.usefixtures("short_trajectories")  # no test here asks how good a draw is

KEYS = {"psnr_map", "psnr_mean", "ssim_map", "ssim_mean", "sd_mean", "coverage_90", "rhat_max", "ess_min",
        "divergences", "seconds", "converged"}  # fmt: skip
# No search for the cause where a fit fails, as tiny ones do: it takes longer than the attack.
NO_SEARCH = ["--explain", "False"]


@pytest.mark.slow
@pytest.mark.process
def test_an_inference_file_is_a_script(tmp_path: Path) -> None:
    """It finds the package and itself from wherever it is run; what a script does: the next test, in this process."""
    done = shell([sys.executable, str(ROOT / "inference" / "map.py"), "--help"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--inference.starts" in done.stdout and "--inference.draws" not in done.stdout  # those of map


OF_TEXT = {"dager", "isir", "lamp"}


@pytest.mark.slow
@pytest.mark.parametrize("inference", sorted(programs.names("inference")))
def test_every_inference_file_runs_as_a_script_and_writes_what_it_promises(
    inference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `python FILE` runs it, but in this process: a new interpreter takes longer than the attack."""
    monkeypatch.chdir(tmp_path)
    file = str(ROOT / "inference" / f"{inference}.py")
    score, data = "psnr_map", ["--network.widths", "4"]
    if inference == "gibbs":
        score, data = "cell_accuracy", [*data, "--data", "wine"]
    elif inference in OF_TEXT:
        told = ["--network", "bert", "--network.width", "32", "--network.heads", "2", "--dtype", "float64"]
        score, data = "token_accuracy", ["--data", str(written(tmp_path / "t.txt")), *told, "--sigma", "1e-9"]
    elif inference == "seer":
        crafted = ["--network.widths", "64", "--batch-size", "4"]
        assert run(["craft", "--attack", "seer", "--steps", "3", *crafted]) == 0
        data = [*crafted, "--checkpoint", "crafted.safetensors"]
    elif inference == "tensor":
        data = ["--network.widths", "256", "--sigma", "1e-9"]
    monkeypatch.setattr(sys, "argv", [file, "--out", "o", *NO_SEARCH, *data, *tiny(inference)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(file, run_name="__main__")
    shown = capsys.readouterr().out
    assert not stopped.value.code
    assert inference in shown and "verdict" in shown
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert summary[score] is not None
    assert score != "psnr_map" or set(summary) >= KEYS
    assert (tmp_path / "o" / "attack.png").read_bytes().startswith(b"\x89PNG")
    posterior = Posterior.load(tmp_path / "o" / "posterior.nc")
    assert posterior.attrs["inference"] == inference and posterior.attrs["seed"] == 0
    assert set(posterior.attrs["versions"]) >= {"pplleak", "torch", "pyro-ppl"}


IMAGES = [p for p in priors.names() if p != "sentences"]  # that of text: tests/cli/test_cli_text.py
OPTIMAL = [*(f"optimal:prior={p}" for p in IMAGES), *(f"optimal:channel={c}" for c in channels.names())]


def true_channel(model: str) -> str:
    """The name of the channel that a model believes in, or gaussian where it takes more than settings."""
    client = build_client("linear", {}, (1, 8, 8), 10)
    believed = poutine.trace(programs.load("models", model)).get_trace(client).nodes["g"]["fn"]
    name = type(believed).__name__.lower()
    return name if name in channels.names() else "gaussian"


def of_a_tiny_network(model: str = "optimal", **more: Any) -> Observation:
    """What a client shares through the channel that the model believes in."""
    return from_data(**{"settings": {"widths": (4,)}, "channel": true_channel(model), **more})


@pytest.mark.slow
@pytest.mark.parametrize(("labels", "model"), [("known", "logistic"), ("unknown", "optimal:channel=laplace")])
def test_the_command_attacks_as_the_library_does(labels: str, model: str, tmp_path: Path) -> None:
    """So the tests below, of every model, prior, channel and network, ask the library, without pictures and pages."""
    words = ["--model", model, "--channel", true_channel(model), "--labels", labels, "--network.widths", "4"]
    assert run(["attack", *words, "--out", str(tmp_path), *tiny("hmc"), "--inference", "hmc"]) == 0
    posterior = Posterior.load(tmp_path / "posterior.nc")
    assert posterior.to_arviz()["posterior"]["x"].dims == ("chain", "draw", "example", "channel", "row", "col")
    target = of_a_tiny_network(model, labels_shared=labels == "known")
    same = attack(target, model, "hmc", settings=tiny_settings("hmc"))
    assert posterior.truth is not None and np.array_equal(posterior.x, same.x)
    assert np.array_equal(posterior.y, same.y)
    other = attack(target, model, "hmc", settings=tiny_settings("hmc"), seed=1)
    assert not np.array_equal(posterior.x, other.x)


@pytest.mark.slow
@pytest.mark.parametrize(("place", "model"), list(enumerate(programs.names("models"))))
def test_every_model_is_attacked_with_known_and_unknown_labels(place: int, model: str) -> None:
    """By a sampler with the one, by a search with the other: every second model the other way round, since a sampler
    records the model's density first, which takes longer than the rest."""
    for shared, inference in zip((True, False), ("hmc", "map") if place % 2 else ("map", "hmc"), strict=True):
        target = of_a_tiny_network(model, labels_shared=shared)
        posterior = attack(target, model, inference, settings=tiny_settings(inference))
        assert posterior.to_arviz()["posterior"]["x"].dims == ("chain", "draw", "example", "channel", "row", "col")
        assert posterior.truth is not None and np.isfinite(posterior.x).all()


@pytest.mark.slow
@pytest.mark.parametrize("model", OPTIMAL)
def test_the_optimal_adversary_attacks_under_every_prior_and_behind_every_channel(
    model: str, quick_priors: None
) -> None:
    # All thresholds of the sparse vector technique are summed out, entry by entry: the fewer entries, the quicker.
    more = {"settings": {"widths": (1,)}} if model.endswith("svt") else {}
    target = of_a_tiny_network(model, **more)
    assert np.isfinite(attack(target, model, "map", settings=tiny_settings("map")).mode).all()


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mlp", "linear", "lenet", "convnet"])
def test_every_network_is_attacked_also_in_a_batch(network: str) -> None:
    target = from_data(network=network, batch_size=2)
    assert attack(target, inference="map", settings=tiny_settings("map")).mode.shape == (2, 1, 8, 8)


@pytest.mark.slow
def test_an_attack_on_an_observation_file_is_bitwise_the_direct_attack(observation: Path, tmp_path: Path) -> None:
    assert run(["attack", "--out", str(tmp_path / "direct"), *tiny("hmc")]) == 0
    assert run(["attack", "--observed", str(observation), "--out", str(tmp_path / "file"), *tiny("hmc")]) == 0
    assert run(["attack", "--seed", "1", "--out", str(tmp_path / "other"), *tiny("hmc")]) == 0
    direct, file, other = (Posterior.load(tmp_path / n / "posterior.nc") for n in ("direct", "file", "other"))
    assert np.array_equal(direct.x, file.x) and np.array_equal(direct.stats["lp"], file.stats["lp"])
    assert not np.array_equal(direct.x, other.x)
    summary = json.loads((tmp_path / "file" / "summary.json").read_text())
    assert all(summary[k] is None for k in ("psnr_map", "psnr_mean", "ssim_map", "ssim_mean", "coverage_90"))
    assert summary["sd_mean"] > 0


@pytest.mark.slow
def test_a_users_own_network_and_gradient_are_wrapped_and_attacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(
        "from torch import nn\n"
        "def build(input_shape, num_classes, *, width=5):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, num_classes))\n"
    )
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 7), torch.nn.Tanh(), torch.nn.Linear(7, 10))
    torch.nn.functional.cross_entropy(net(torch.rand(1, 1, 8, 8)), torch.tensor([4])).backward()
    shared = {f"gradient.{n}": p.grad for n, p in net.named_parameters() if p.grad is not None}
    save_file({**shared, **{f"parameter.{n}": p.detach() for n, p in net.named_parameters()}}, "mine.safetensors")
    own = ["--network", "net.py:build", "--network.width", "7"]
    wrap = ["observe", "--gradient", "mine.safetensors", "--input-shape", "1", "8", "8", "--shared-labels", "4"]
    assert run([*wrap, *own, "--sigma", "0.01", "--out", "o.safetensors"]) == 0
    argv = ["attack", "--observed", "o.safetensors", "--inference", "map", *tiny("map"), "--out", "a"]
    assert run(argv) == 2  # a file does not choose code to run
    assert run([*argv, "--network", "net.py:build"]) == 0  # its settings come with the file
    assert Posterior.load("a/posterior.nc").attrs["network_settings"] == {"width": 7}


@pytest.mark.slow
def test_compare_writes_every_attack_and_its_averages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["compare", "--inference", "map,hmc", "--count", "2", *tiny("map", "map"), *tiny("hmc", "hmc")]
    assert run([*argv, "--out", str(tmp_path)]) == 0
    rows = list(csv.DictReader((tmp_path / "compare.csv").open()))
    assert [(r["index"], r["inference"]) for r in rows] == [("0", "map"), ("0", "hmc"), ("1", "map"), ("1", "hmc")]
    means = json.loads((tmp_path / "compare.json").read_text())
    values = [float(r["psnr_map"]) for r in rows if r["inference"] == "map"]
    assert means["map"]["psnr_map"]["mean"] == pytest.approx(np.mean(values))
    assert means["map"]["psnr_map"]["se"] == pytest.approx(np.std(values, ddof=1) / np.sqrt(2))
    assert means["map"]["coverage_90"] is None and means["hmc"]["coverage_90"]["count"] == 2
    assert (tmp_path / "compare.png").stat().st_size > 1000
    assert "mean ± standard error" in capsys.readouterr().out


def test_ls_lists_the_folders_and_cp_starts_a_model_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["ls"]) == 0
    shown = capsys.readouterr().out
    for kind in ("models", "inference"):
        for name, said in programs.names(kind).items():  # type: ignore[arg-type]
            assert name in shown and said in shown
    assert run(["cp", "dlg", "mine.py"]) == 0 and run(["cp", "map", "climb.py"]) == 0
    argv = ["attack", "--model", "./mine.py", "--inference", "./climb.py", "--model.sigma", "0.2", "--out", "o"]
    assert run([*argv, "--inference.steps", "5"]) == 0
    assert Posterior.load("o/posterior.nc").attrs["beliefs"] == {"sigma": 0.2}


def test_help_shows_every_setting_of_what_was_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["attack", "--inference", "svi", "--model", "logistic", "--help"]) == 0
    shown = capsys.readouterr().out
    for kind, name, flag in (("models", "logistic", "model"), ("inference", "svi", "inference")):
        for setting in programs.settings(programs.load(kind, name)):  # type: ignore[arg-type]
            assert f"--{flag}.{setting.name.replace('_', '-')}" in shown
    assert "--network.widths" in shown and "--inference.chains" in shown


@pytest.mark.slow
def test_hmc_says_that_a_network_with_kinks_is_not_to_be_trusted(tmp_path: Path) -> None:
    kinked = ["--network.activation", "relu", "--inference", "hmc"]
    assert run(["attack", *kinked, "--out", str(tmp_path), *tiny("hmc")]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["converged"] is False
    assert any("kinks" in doubt and "not to be trusted" in doubt for doubt in summary["doubts"])


@pytest.mark.slow
@pytest.mark.process
def test_ctrl_c_keeps_what_was_drawn_and_says_so(tmp_path: Path) -> None:
    """By a signal; what each inference keeps: tests/inference/test_inference_kept.py."""
    argv = ["attack", *NO_SEARCH, "--inference", "hmc", *tiny("hmc"), "--inference.draws=100000", "--out", "o"]
    # A bar is drawn where there is a terminal; here progress shows in the file that marks the start of sampling.
    code = (
        "import signal, sys, pplleak.cli as cli, pplleak.cli.attack as command\n"
        "from pplleak.density import step_size\n"
        "step_size.MAX_STEPS = 4\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it\n"
        "def bar(label, total):\n"
        "    for k in range(total):\n"
        "        if label == 'sampling' and k == 10: open('started', 'w').close()\n"
        "        yield k\n"
        "command.bar = bar\n"
        "cli.main(sys.argv[1:])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, *argv], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        assert process.poll() is None, "ended before it was interrupted"
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 130
    assert "interrupted" in out
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert summary["converged"] is False and any("interrupted" in doubt for doubt in summary["doubts"])
    assert Posterior.load(tmp_path / "o" / "posterior.nc").x.shape[1] >= 8


@pytest.mark.slow
@pytest.mark.process
def test_ctrl_c_before_the_first_draw_is_one_line(tmp_path: Path) -> None:
    code = (
        "import signal, runpy\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it\n"
        "runpy.run_module('pplleak', run_name='__main__', alter_sys=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "attack", "--inference.steps", "1000000", "--out", "o"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (tmp_path / "o").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err.strip()) == (130, "pplleak: interrupted before anything could be kept")


@pytest.mark.slow
@pytest.mark.process
def test_a_built_wheel_works_outside_the_checkout(tmp_path: Path) -> None:
    uv = os.environ.get("UV", "uv")
    built = shell([uv, "build", "--wheel", "--quiet", "--out-dir", str(tmp_path / "dist"), str(ROOT)], ROOT)
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    site = tmp_path / "site"
    installed = shell([uv, "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)], ROOT)
    assert installed.returncode == 0, installed.stderr
    assert {p.name for p in site.iterdir() if p.is_dir() and not p.name.endswith(".dist-info")} <= {"pplleak", "bin"}
    code = (  # in one interpreter: each imports torch
        "import runpy, pplleak.models.dlg as m\n"
        "from pplleak import cli\n"
        "print(m.__file__)\n"
        "try:\n    cli.main(['ls'])\nexcept SystemExit as listed:\n    assert not listed.code\n"
        "runpy.run_module('pplleak.inference.map', run_name='__main__', alter_sys=True)  # as python -m does\n"
    )
    words = ["--model", "dlg", "--out", "m", *NO_SEARCH, *tiny("map")]
    done = shell([sys.executable, "-c", code, *words], tmp_path, PYTHONPATH=str(site))
    assert done.stdout.startswith(str(site)) and "refractive" in done.stdout, done.stderr
    assert done.returncode == 0 and (tmp_path / "m" / "attack.png").exists(), done.stderr
