"""Clients that people really have: a failure must never look like privacy. Each case is what somebody tries first."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from command_line import one_line, run
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import pplleak as pl
from pplleak.client import weights
from pplleak.federation import files
from pplleak.federation.observation import Observation
from pplleak.federation.scenario import build_client
from pplleak.posterior import Posterior
from pplleak.posterior.summary import colour
from pplleak.settings import Named
from pplleak.studies.attack.report import signal

MAP = {"starts": 2, "steps": 100, "newton": 8}
SHAPE = (1, 8, 8)


def scene(sigma: float = 0.02, **more: Any) -> Observation:
    return pl.observe(pl.Scenario(index=3, protection=f"gaussian:sigma={sigma}", network="mlp:widths=(16,)", **more))


def shares(observed: Observation, u: Tensor) -> Observation:
    """The same observation of a client that shares something else, through the same noise."""
    noise = torch.randn(u.shape, generator=torch.Generator().manual_seed(7))
    return replace(observed, g=(u + (observed.sigma or 0.0) * noise).detach())


def attacked(observed: Observation, **settings: Any) -> Posterior:
    return pl.attack(observed, inference="map", settings={**MAP, **settings})


def told(observed: Observation) -> tuple[dict[str, Any], str]:
    found = attacked(observed)
    return found.summary, " ".join(found.summary["doubts_of_fit"])


def update(observed: Observation, x: Tensor | None = None) -> Tensor:
    assert observed.truth is not None and observed.labels is not None
    return observed.client.update(observed.truth if x is None else x, observed.labels).materialise()


@pytest.mark.parametrize(
    ("size", "sigma"),
    [(1, 0.1), *(pytest.param(n, s, marks=pytest.mark.slow) for n, s in ((1, 0.02), (2, 0.1), (2, 0.02)))],
)
def test_a_right_client_is_not_doubted(size: int, sigma: float) -> None:
    observed = scene(sigma, batch_size=size)
    summary, said = told(observed)
    assert summary["fits"] is True and said == "" and abs(summary["chi2_sd"]) < 4
    assert abs(summary["scale"] - 1) < 4 * summary["scale_se"]


@pytest.mark.slow
def test_f1_inputs_that_are_normalised_outside_the_network_are_doubted() -> None:
    observed = scene()
    assert observed.truth is not None
    summary, said = told(shares(observed, update(observed, (observed.truth - 0.3) / 0.25)))
    assert summary["fits"] is False and "outside [0, 1]" in said and "normalised outside the network" in said


@pytest.mark.slow
def test_f1_normalising_them_is_a_setting_that_brings_the_image_back() -> None:
    right = scene(normalise=(0.3, 0.25))
    wrong = replace(right, client=scene().client)
    known, unknown = attacked(right).summary, attacked(wrong).summary
    assert known["fits"] is True and unknown["fits"] is False
    assert known["psnr_map"] > 20 > unknown["psnr_map"]


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "named"), [(0.5, "half the loss"), (2.0, "twice the loss")])
def test_f2_another_scale_of_the_loss_is_named(factor: float, named: str) -> None:
    observed = scene()
    summary, said = told(shares(observed, factor * update(observed)))
    assert summary["fits"] is False and named in said


@pytest.mark.slow
def test_f2_a_sum_over_the_batch_is_named() -> None:
    observed = scene(batch_size=2)
    summary, said = told(shares(observed, 2 * update(observed)))
    assert summary["fits"] is False and "summed over the batch of 2, not averaged" in said


@pytest.mark.slow
def test_f13_adam_on_the_client_is_attacked_as_such_and_doubted_as_plain_sgd() -> None:
    """eps is large enough that steps depend on how long a slope is, and not on its sign alone."""
    local = pl.LocalTraining(1e-3, 4, optimizer=Named.parse("adam:eps=0.01"))
    observed = scene(1e-4, local=local, dtype="float64")
    plain = replace(observed, client=replace(observed.client, local=pl.LocalTraining(1e-3, 4)))
    right, wrong = (attacked(o, starts=1, steps=40, newton=n) for o, n in ((observed, 20), (plain, 2)))
    assert observed.truth is not None
    truth = observed.truth.flatten().numpy()
    psnr = [-10 * math.log10(float(((p.mean.reshape(-1) - truth) ** 2).mean())) for p in (right, wrong)]
    assert psnr[0] > psnr[1] + 20 and psnr[0] > 30
    assert right.summary["fits"] is True and right.summary["doubts_of_fit"] == []
    assert wrong.summary["fits"] is False and wrong.summary["chi2_per_entry"] > 50


# -- files ---------------------------------------------------------------------------------------------------------

BATCHNORM = """
from torch import nn

def build(input_shape, num_classes):
    norm = nn.BatchNorm1d(16)
    before = nn.Sequential(nn.Flatten(), nn.Linear(64, 16))
    return nn.Sequential(before, norm, nn.Tanh(), nn.Linear(16, num_classes)).eval()
"""


@pytest.fixture()
def network(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(BATCHNORM)
    return f"{tmp_path / 'net.py'}:build"


def trained(network: str) -> nn.Module:
    client = build_client(network, SHAPE, 10, seed=4)
    norm = client.network[1]  # type: ignore[index]
    norm.running_mean.uniform_(-1, 1), norm.running_var.uniform_(0.5, 2)
    return client.network


def exported(path: Path, module: nn.Module, tensors: dict[str, Tensor], sigma: str = "0.01") -> list[str]:
    """A gradient of one digit as its owner writes it, and the command that wraps it."""
    module.requires_grad_(True)
    x, y = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.tensor([4])
    F.cross_entropy(module(x), y).backward()
    shared = {f"gradient.{n}": p.grad for n, p in module.named_parameters() if p.grad is not None}
    save_file({**shared, **{f"parameter.{n}": t.detach() for n, t in tensors.items()}}, path)
    return ["observe", "--gradient", str(path), "--input-shape", "1", "8", "8", "--shared-labels", "4",
            "--sigma", sigma, "--out", str(path.with_name("o.safetensors"))]  # fmt: skip


def test_f3_a_file_without_running_statistics_is_refused_by_their_name(
    tmp_path: Path, network: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = trained(network)
    wrap = exported(tmp_path / "g.safetensors", module, dict(module.named_parameters()))
    one_line([*wrap, "--network", network], capsys, "lacks 1.running_mean")


def test_f4_a_state_dict_with_its_counters_is_read_whole(tmp_path: Path, network: str) -> None:
    module = trained(network)
    wrap = exported(tmp_path / "g.safetensors", module, module.state_dict())
    assert "parameter.1.num_batches_tracked" in load_file(tmp_path / "g.safetensors")
    assert run([*wrap, "--network", network]) == 0
    observed = pl.load(tmp_path / "o.safetensors", network=network)
    assert torch.equal(weights.state(observed.client.network)["1.running_mean"], module[1].running_mean)  # type: ignore[index]


def test_f5_without_weights_they_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client = build_client("mlp:widths=(16,)", SHAPE, 10, seed=4)
    wrap = exported(tmp_path / "g.safetensors", client.network, {})
    one_line([*wrap, "--network.widths", "16"], capsys, "where are the weights?")
    observed = scene()
    files.write(tmp_path / "o.safetensors", observed.client.split(observed.g), input_shape=SHAPE, num_classes=10,
                network="mlp:widths=(16,)", protection="gaussian:sigma=0.02", labels=[4])  # fmt: skip
    with pytest.raises(pl.BadInput, match=r"where are the weights\?"):
        pl.load(tmp_path / "o.safetensors")
    save_file(weights.state(observed.client.network), tmp_path / "theirs.safetensors")
    again = pl.load(tmp_path / "o.safetensors", checkpoint=tmp_path / "theirs.safetensors")
    assert torch.equal(again.g, observed.g)


def test_f6_one_logit_behind_a_cross_entropy_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    (tmp_path / "one.py").write_text(
        "from torch import nn\n\ndef build(input_shape, num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    F.binary_cross_entropy_with_logits(module(torch.rand(1, *SHAPE))[:, 0], torch.ones(1)).backward()
    tensors = {f"gradient.{n}": p.grad for n, p in module.named_parameters() if p.grad is not None}
    tensors |= {f"parameter.{n}": p.detach() for n, p in module.named_parameters()}
    save_file(tensors, tmp_path / "g.safetensors")
    words = ["observe", "--gradient", str(tmp_path / "g.safetensors"), "--input-shape", "1", "8", "8", "--sigma", "0.1",
             "--num-classes", "1", "--network", f"{tmp_path / 'one.py'}:build"]  # fmt: skip
    one_line(words, capsys, "one logit")


@pytest.mark.slow
def test_f7_another_loss_does_not_sum_to_zero_over_the_last_bias() -> None:
    observed = scene()
    assert observed.truth is not None and observed.labels is not None
    module = observed.client.network.requires_grad_(True)
    loss = F.mse_loss(module(observed.truth), F.one_hot(observed.labels, 10).float(), reduction="sum")
    u = torch.cat([d.flatten() for d in torch.autograd.grad(loss, list(module.parameters()))])
    module.requires_grad_(False)
    summary, said = told(shares(observed, u))
    assert summary["fits"] is False and "not a cross entropy" in said


def test_f8_sigma_of_a_file_of_ones_own_is_said_or_follows_from_its_rounding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = build_client("mlp:widths=(16,)", SHAPE, 10, seed=4)
    wrap = exported(tmp_path / "g.safetensors", client.network, dict(client.network.named_parameters()))
    wrap += ["--network.widths", "16"]
    at = wrap.index("--sigma")
    silent = wrap[:at] + wrap[at + 2 :]
    one_line(silent, capsys, "Say --sigma (of each entry), --sigma infer if nobody knows, or --clean")
    one_line([*wrap, "--clean"], capsys, "leave one of them out")
    assert run([*silent, "--clean"]) == 0
    observed = pl.load(tmp_path / "o.safetensors")
    rms = float(observed.g.double().square().mean().sqrt())
    assert observed.sigma == pytest.approx(2**-23 * rms, rel=1e-6)
    for dtype, eps in ((torch.bfloat16, 2**-7), (torch.float16, 2**-10), (torch.float64, 2**-23)):
        assert files.rounding({"a": torch.full((4,), 0.5, dtype=dtype)}) == pytest.approx(eps * 0.5)


@pytest.mark.parametrize("share, said", [(0.0, "is that of noise alone"), (0.6, "% of its length is signal"),
                                        (1.0, "noise hardly changes it")])  # fmt: skip
def test_f9_the_norm_of_the_gradient_is_told_against_that_of_its_noise(share: float, said: str) -> None:
    observed = scene(0.02)
    noise = 0.02 * torch.randn(observed.g.shape, generator=torch.Generator().manual_seed(1))
    u = torch.randn(observed.g.shape, generator=torch.Generator().manual_seed(2))
    length = share / max((1 - share**2) ** 0.5, 1e-3) * 0.02
    line = signal(replace(observed, g=noise + length * u))
    percent = re.search(r"(\d+)% of", line)
    assert percent is None or abs(int(percent[1]) / 100 - share) < 0.05
    assert said in line and f"D = {len(u):,}" in line and "σ = 0.02" in line


@pytest.mark.slow
def test_f8_a_sigma_that_is_far_too_large_is_doubted() -> None:
    observed = scene(0.001)
    summary, said = told(replace(observed, protection=scene(0.1).protection))
    assert summary["fits"] is False and "a smaller sigma" in said and summary["chi2_per_entry"] < 0.1


@pytest.mark.slow
def test_f10_the_model_follows_the_channel_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "o.safetensors"
    clip = ["--channel.clip", "0.5", "--channel.noise-multiplier", "0.02"]
    assert run(["observe", "--channel", "dpsgd", *clip, "--network.widths", "16", "--out", str(path)]) == 0
    found = attacked(pl.load(path, public=scene().public))
    assert found.attrs["beliefs"]["channel"].startswith("dpsgd") and found.summary["fits"] is True
    wrong = pl.attack(pl.load(path, public=scene().public), inference="map", settings=MAP,
                      beliefs={"channel": "gaussian:sigma=0.01"})  # fmt: skip
    assert wrong.summary["fits"] is False


def test_f14_labels_that_a_models_rule_reads_are_shown_and_doubted() -> None:
    both = scene(0.001, batch_size=2)
    assert both.truth is not None
    y = torch.tensor([6, 6])
    observed = replace(shares(both, both.client.update(both.truth, y).materialise()), labels=None)
    found = pl.attack(observed, "gradinversion", "map", settings={"steps": 5})
    recovered = found.summary["recovered_labels"]
    assert len(set(recovered["labels"])) == 2 and "gradinversion" in recovered["rule"]
    assert any("rules disagree on the labels" in d and "6 6" in d for d in found.summary["doubts"])


@pytest.mark.slow
def test_f24_a_layer_that_is_missing_from_the_file_is_not_shared_if_one_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The attack on such a file is that on a client that shares the rest; with a frozen layer it would be another."""
    whole = scene()
    assert whole.truth is not None and whole.labels is not None
    tensors = {f"gradient.{n}": t for n, t in whole.client.split(whole.g).items() if n != "1.weight"}
    tensors |= {f"parameter.{n}": t for n, t in weights.state(whole.client.network).items()}
    save_file({n: t.contiguous() for n, t in tensors.items()}, tmp_path / "g.safetensors")
    wrap = ["observe", "--gradient", str(tmp_path / "g.safetensors"), "--input-shape", "1", "8", "8", "--sigma", "0.02",
            "--shared-labels", str(int(whole.labels)), "--network.widths", "16", "--out"]  # fmt: skip
    one_line([*wrap, str(tmp_path / "o.safetensors")], capsys, "lacks 1.weight")
    assert run([*wrap, str(tmp_path / "o.safetensors"), "--shared-only"]) == 0
    observed = replace(pl.load(tmp_path / "o.safetensors"), public=whole.public)
    declared = pl.Client(whole.client.network.requires_grad_(True), SHAPE, withheld=("1.weight",))
    kept = torch.cat([t.flatten() for n, t in whole.client.split(whole.g).items() if n != "1.weight"])
    both = [attacked(o) for o in (observed, replace(observed, client=declared, g=kept))]
    assert (both[0].mode == both[1].mode).all() and both[0].summary["fits"] is True
    distance = [float(((m - whole.truth.numpy()) ** 2).mean()) for m in (both[0].mode, attacked(whole).mode)]
    assert distance[1] < distance[0]  # a layer more says more


# -- the verdict ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_verdict_begins_with_what_matters_and_is_whole_on_the_picture() -> None:
    observed = scene()
    right = pl.attack(observed, inference="laplace", settings={"starts": 2, "steps": 200, "draws": 50})
    assert right.summary["trusted"] is True and right.summary["sd_ratio"] < 0.5 and colour(right.summary) == "good"
    assert right.verdict.startswith("This gradient gives the image away")
    wrong = attacked(shares(observed, 2 * update(observed)))
    assert wrong.verdict.startswith("Not to be believed: the gradient is")
    assert wrong.summary["trusted"] is False and colour(wrong.summary) == "bad"
    drawn = " ".join(t.get_text() for t in pl.plot(wrong).texts)
    assert wrong.verdict in drawn.replace("\n", " ") and "…" not in drawn
    bar = [t.get_text() for a in pl.plot(right).axes for c in a.child_axes for t in c.get_xticklabels()]
    assert any("prior 0.2" in t for t in bar)
    json.dumps(wrong.summary, allow_nan=False)


@pytest.mark.slow
def test_noise_that_hides_everything_leaves_the_priors_guess() -> None:
    found = pl.attack(scene(10.0), inference="laplace", settings={"starts": 2, "steps": 200, "draws": 50})
    assert found.verdict.startswith("This gradient says little: what you see is the prior's guess")
    assert found.summary["trusted"] is False and found.summary["signal_to_noise"] == pytest.approx(1, abs=0.1)


@pytest.mark.slow
def test_a_point_estimate_is_neither_good_nor_bad() -> None:
    found = attacked(scene(), steps=200)
    assert found.summary["trusted"] is None and colour(found.summary) == "open"
    assert found.verdict.startswith("A point estimate")


def test_a_batch_says_how_many_are_shown_and_which_is_worst() -> None:
    found = attacked(scene(batch_size=5), steps=20, newton=0)
    assert len(found.summary["examples"]) == 5
    assert found.summary["worst_psnr"] == pytest.approx(min(e["psnr_map"] for e in found.summary["examples"]))
    assert any("4 of 5 examples are shown" in t.get_text() for t in pl.plot(found).texts)


def test_sigma_is_called_assumed_and_an_update_an_update_where_they_are() -> None:
    found = attacked(scene(), steps=5, newton=0)

    def title(posterior: Posterior) -> str:
        return str(pl.plot(posterior).texts[0].get_text())

    assert title(found) == "What one shared gradient + noise of σ = 0.02 reveals"
    assert "assumed σ = 0.02" in title(found.with_(truth=None))
    assert "shared update" in title(found.with_(attrs={**found.attrs, "local": {"lr": 0.1}}))


@pytest.mark.slow
def test_strict_tells_an_untrusted_result_by_its_exit_code(tmp_path: Path) -> None:
    words = ["attack", "--inference", "map", "--inference.starts", "1", "--inference.steps", "5", "--out"]
    assert run([*words, str(tmp_path / "a")]) == 0
    assert run([*words, str(tmp_path / "b"), "--strict"]) == 3
    written = json.loads((tmp_path / "b" / "summary.json").read_text())
    for key in ("trusted", "fits", "chi2_per_entry", "chi2_sd", "scale", "scale_se", "prior_stretch", "signal_to_noise",
                "sd_ratio", "converged", "doubts", "sigma", "network", "seed", "data", "versions"):  # fmt: skip
        assert key in written
