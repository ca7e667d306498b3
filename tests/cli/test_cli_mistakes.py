"""The command line's answer to every mistake: one line, exit code 2, nothing lost."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import changed, one_line
from safetensors.torch import save_file
from scenes import build_client

MISTAKES = {
    "index out of range": (["--index", "1000"], "images 0 to 296"),
    "an option that is none": (["--prior.rank", "x"], "unrecognized options: --prior.rank"),
    "an option misspelt": (["--sigm", "0.1"], "did you mean --sigma"),
    "a word for a number": (["--sigma", "abc"], "--sigma: 'abc' is no FLOAT or infer (pplleak attack --help"),
    "no value": (["--index"], "missing value for argument '--index'"),
    "negative index": (["--index", "-1"], "out of range"),
    "label out of range": (["--label", "12"], "classes 0 to 9"),
    "negative sigma": (["--sigma", "-1"], "sigma must be a positive number"),
    "belief of zero noise": (["--model.sigma", "0"], "sigma must be a positive number"),
    "unknown channel": (["--channel", "prund"], "did you mean pruned or rounded?"),
    "rate of one": (["--channel", "pruned", "--channel.rate", "1"], "rate must be at least 0 and below 1"),
    "sigma of zero": (["--sigma", "0"], "sigma must be a positive number"),
    "negative rate": (["--channel", "masked", "--channel.rate", "-0.1"], "rate must be at least 0 and below 1"),
    "two sigmas for four": (
        ["--channel", "weighted", "--channel.sigmas", "0.1", "0.2"],
        "give one for each of 1.weight, 1.bias, 3.weight, 3.bias, or one for all",
    ),
    "sigmas and sigma": (["--channel", "weighted", "--sigma", "0.1"], "the channel weighted has no sigma: set sigmas"),
    "no clients": (["--channel", "aggregated", "--channel.clients", "0"], "clients must be at least 1"),
    "too many directions": (
        ["--channel", "aggregated", "--channel.simulated", "5"],
        "fewer than the 5 simulated updates, not 20",
    ),
    "belief of a clip of zero": (["--model.channel", "dpsgd:clip=0"], "clip must be a positive number, not 0"),
    "checkpoint of another network": (["--checkpoint", "lenet.safetensors"], "lenet.safetensors is of another network"),
    "model without labels": (["--model", "./unlabelled.py"], "no site 'y' (the labels)"),
    "clip of zero": (["--channel", "dpsgd", "--channel.clip", "0"], "clip must be a positive number"),
    "noise of a channel without": (
        ["--channel", "dpsgd", "--sigma", "1"],
        "has no sigma: set noise_multiplier and clip",
    ),
    "belief of a negative rate": (["--model.channel", "masked:rate=-1"], "rate must be at least 0 and below 1"),
    "belief in another channel": (["--model.channel", "sign"], "does not consist of signs"),
    "no draws": (["--inference.draws", "0"], "draws must be a positive number"),
    "empty batch": (["--batch-size", "0"], "at least 1"),
    "unknown model": (["--model", "optmal"], "did you mean optimal?"),
    "a prior named as a model": (["--model", "vae"], "optimal:prior=vae"),
    "a prior named twice": (["--prior", "ppca", "--model.prior", "gaussian:floor=0.1"], "named twice"),
    "unknown prior": (["--prior", "gausian"], "did you mean gaussian"),
    "a prior for a model that has its own": (["--model", "dlg", "--prior", "ppca"], "a prior of its own"),
    "unknown inference": (["--inference", "hcm"], "did you mean hmc?"),
    "unknown network": (["--network", "mpl"], "did you mean mlp?"),
    "unknown data": (["--data", "digts"], "did you mean digits?"),
    "missing data": (["--data", "mnist", "--data-root", "/nowhere"], "the data root"),
    "missing file": (["--model", "./none.py"], "no file ./none.py"),
    "model that raises": (["--model", "./boom.py"], "RuntimeError: boom (line 3)"),
    "model that does not parse": (["--model", "./syntax.py"], "cannot be loaded: SyntaxError"),
    "model without g": (["--model", "./half.py"], "no site 'y'"),
    "network of other classes": (["--network", "net.py:build"], "it returns (2, 7)"),
    "network without that function": (["--network", "net.py:bild"], "has no function 'bild'"),
    "prior of another shape": (["--network", "mlp", "--model.reference", "pictures"], "name images like the client's"),
    "unwritable out": (["--out", "boom.py/x"], "another folder"),
    "missing observation": (["--observed", "none.safetensors"], "cannot read"),
}


@pytest.fixture()
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of a user who errs."""
    monkeypatch.chdir(tmp_path)
    Path("boom.py").write_text('"""mine"""\ndef model(client, batch_size=1):\n    raise RuntimeError("boom")\n')
    Path("syntax.py").write_text("def model(:\n")
    Path("half.py").write_text(
        "import pyro, pyro.distributions as d\n"
        "def model(client, batch_size=1):\n"
        "    pyro.sample('x', d.Normal(0., 1.).expand([1, 1, 8, 8]).to_event(4))\n"
    )
    Path("net.py").write_text(
        "from torch import nn\n"
        "def build(input_shape, num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))\n"
    )
    Path("unlabelled.py").write_text(
        "import pyro, pyro.distributions as d\n"
        "def model(client, batch_size=1):\n"
        "    pyro.sample('x', d.Normal(0., 1.).expand([1, 1, 8, 8]).to_event(4))\n"
        "    pyro.sample('g', d.Normal(0., 1.).expand([client.update_size]).to_event(1))\n"
    )
    save_file(build_client("lenet", {}, (1, 8, 8), 10).network.state_dict(), "lenet.safetensors")
    from PIL import Image

    Path("pictures").mkdir()
    for k in range(3):
        Image.fromarray(np.full((5, 5), k, np.uint8)).save(f"pictures/{k}.png")
    return tmp_path


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(
    mistake: str, workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, expected = MISTAKES[mistake]
    one_line(["attack", "--out", "o", *words], capsys, expected)


def test_an_unknown_command_and_an_unknown_file_suggest_the_near_ones(
    workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_line(["atack"], capsys, "did you mean attack?")
    one_line(["cp", "dlgg", "x.py"], capsys, "did you mean dlg")
    one_line(["cp", "dlg", "boom.py"], capsys, "nothing was overwritten")
    assert "boom" in Path("boom.py").read_text()


BROKEN = {
    "NaN": (lambda o, p: changed(p, o, **{"gradient.1.bias": torch.full((64,), torch.nan)}), "NaN or infinity"),
    "wrong shape": (lambda o, p: changed(p, o, **{"gradient.1.bias": torch.ones(63)}), "has shape (63,)"),
    "extra layer": (lambda o, p: changed(p, o, **{"gradient.9.bias": torch.ones(3)}), "of another network"),
    "other network": (lambda o, p: changed(p, o, {"network": "lenet", "settings": {}}), "of another network"),
    "label": (lambda o, p: changed(p, o, {"labels": [12]}), "label 12 is out of range"),
    "two labels": (lambda o, p: changed(p, o, {"labels": [1, 2]}), "2 labels for a batch of 1"),
    "network that is code": (lambda o, p: changed(p, o, {"network": "evil.py:build"}), "not a built-in one but code"),
    "network that is code, without a function": (
        lambda o, p: changed(p, o, {"network": "evil.py:"}),
        "not a built-in one but code",
    ),
    "network that is a file": (lambda o, p: changed(p, o, {"network": "evil.py"}), "not a built-in one but code"),
    "unknown setting": (lambda o, p: changed(p, o, {"settings": {"depth": 3}}), "no setting 'depth'"),
    "unknown channel": (lambda o, p: changed(p, o, {"channel": {"name": "fog", "settings": {}}}), "unknown channel"),
    "channel without settings": (lambda o, p: changed(p, o, {"channel": {"name": "sign"}}), "field `settings`"),
    "unknown channel setting": (
        lambda o, p: changed(p, o, {"channel": {"name": "pruned", "settings": {"clip": 1}}}), "no setting 'clip'"
    ),
    "impossible channel setting": (
        lambda o, p: changed(p, o, {"channel": {"name": "pruned", "settings": {"rate": 2}}}), "rate must be at least 0"
    ),
    "channel setting of another kind": (
        lambda o, p: changed(p, o, {"channel": {"name": "pruned", "settings": {"rate": "half"}}}), "Expected `float`"
    ),
    "impossible size": (lambda o, p: changed(p, o, {"input_shape": [1, -8, 8]}), "impossible sizes"),
    "metadata of another kind": (lambda o, p: changed(p, o, {"batch_size": "two"}), "Expected `int`, got `str`"),
    "truncated": (lambda o, p: p.write_bytes(o.read_bytes()[: o.stat().st_size // 2]), "truncated"),
    "empty": (lambda o, p: p.write_bytes(b""), "not a whole safetensors file"),
    "no metadata": (lambda o, p: save_file({"w": torch.ones(2)}, p), "no pplleak metadata"),
}  # fmt: skip


@pytest.mark.parametrize("breakage", BROKEN)
def test_a_broken_observation_is_one_line_and_exit_code_2(
    breakage: str, observation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    breaks, expected = BROKEN[breakage]
    path = tmp_path / "broken.safetensors"
    breaks(observation, path)
    one_line(["attack", "--observed", str(path), "--out", str(tmp_path / "o")], capsys, expected)


class Hostile:
    def __reduce__(self) -> tuple:
        return (os.system, ("touch executed",))


@pytest.mark.parametrize(
    "write", [lambda p: p.write_bytes(pickle.dumps(Hostile())), lambda p: torch.save(Hostile(), p)]
)
def test_a_pickle_is_refused_and_not_executed(
    write: object, workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(Path("o.safetensors"))  # type: ignore[operator]
    one_line(["attack", "--observed", "o.safetensors", "--out", "o"], capsys, "is a pickle")
    assert not Path("executed").exists()


@pytest.mark.parametrize("name", ["evil.py:", "evil.py:build", "evil.py", ":evil.py", "./evil.py::"])
def test_an_observation_never_chooses_code_to_run(
    name: str, observation: Path, workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("evil.py").write_text("from pathlib import Path\nPath('executed').touch()\n")
    changed(Path("o.safetensors"), observation, {"network": name})
    one_line(["attack", "--observed", "o.safetensors", "--out", "o"], capsys, f"made with the network '{name}'")
    assert not Path("executed").exists()
