"""The built-in networks, and the weights that are loaded into them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from command_line import run
from conftest import batch_of
from layers import assert_quantities, reference, some_g
from safetensors.torch import save_file
from scenes import build_client, from_data
from torch import nn

from pplleak import cli, programs
from pplleak.client import networks, weights
from pplleak.client.networks import _activations
from pplleak.client.training import LocalTraining
from pplleak.errors import BadInput
from pplleak.federation.stored import load, save
from pplleak.posterior import Posterior

SHAPE = (1, 8, 8)
SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"widths": (5,)},
    "linear": {"zero": False},
    "lenet": {"channels": 3},
    "convnet": {"channels": (3, 4), "width": 5},
    "convbig": {"channels": (3, 4, 3), "width": 5},
    "resnet18": {},
    "resnet20": {"width": 2},
    "vit": {"width": 8, "heads": 2},
    "tabular_resnet": {"width": 6, "hidden": 5},
    "ft_transformer": {"width": 8, "heads": 2, "depth": 1},
    "torchvision": {"arch": "shufflenet_v2_x0_5"},
    "timm": {"arch": "test_resnet"},
}


def test_every_network_is_listed_and_tested() -> None:
    assert set(networks.names()) == {*SMALL, "bert", "gpt2"}  # of text: test_text_networks.py
    assert all(networks.names().values())


@pytest.mark.parametrize("name", SMALL)
def test_a_built_in_network_takes_images_and_gives_logits(name: str) -> None:
    for shape in (SHAPE, (3, 12, 12)):
        network = networks.load(name)(shape, 7, **SMALL[name])
        assert network(torch.rand(2, *shape)).shape == (2, 7)
    assert all(s.help for s in programs.settings(networks.load(name)))


@pytest.mark.parametrize("name", [n for n in SMALL if n != "resnet18"])  # its 11 million weights take too long here
def test_its_update_is_lazy_and_the_gradient(name: str) -> None:
    client = build_client(name, SMALL[name], SHAPE, 3, dtype="float64")
    assert client.lazy
    x, y = batch_of(client, (2,), 2)
    assert_quantities(client.update(x, y), reference(client, x, y), some_g(client))


@pytest.mark.parametrize("collection", ["torchvision", "timm"])
def test_networks_of_a_collection_are_looked_up_by_their_names(collection: str) -> None:
    """Never fetched: a name that timm would download is none."""
    for arch in ("resnet19", "hf-hub:timm/resnet18.a1_in1k", "retinanet_resnet50_fpn"):
        with pytest.raises(BadInput, match=f"unknown network of {collection} '{arch}'"):
            build_client(collection, {"arch": arch}, SHAPE, 3)
    client = build_client(collection, {**SMALL[collection], "mode": "train"}, SHAPE, 3)
    assert client.mixes_batch and not client.lazy  # BatchNorm by the client's own batch


@pytest.mark.slow
def test_resnet18_is_lazy_while_its_normalisation_is_in_eval_mode() -> None:
    assert build_client("resnet18", {}, SHAPE, 3).lazy


def test_batch_norm_in_train_mode_ties_the_examples() -> None:
    client = build_client("resnet20", {"width": 2, "batch_norm": "train"}, SHAPE, 3, dtype="float64")
    assert client.mixes_batch and not client.lazy
    x, y = batch_of(client, (2,), 3)
    assert_quantities(client.update(x, y), reference(client, x, y), some_g(client))


def test_the_sizes_are_those_of_the_papers() -> None:
    def size(network: nn.Module) -> int:
        return sum(p.numel() for p in network.parameters())

    assert size(networks.get("resnet20")((3, 32, 32), 10)) == 269_722  # 0.27 M, He et al. 2016, table 6
    # 32·(9 + 1) + 64·(32·9 + 1) + 100·(64·7·7 + 1) + 10·(100 + 1)
    assert size(networks.get("convnet")((1, 28, 28), 10)) == 320 + 18_496 + 313_700 + 1_010


@pytest.mark.parametrize("name", ["resnet20", "vit", "convbig", "convnet", "lenet"])
def test_the_activation_is_a_setting(name: str) -> None:
    assert build_client(name, {**SMALL[name], "activation": "relu"}, SHAPE, 3).kinks == ("relu",)
    assert build_client(name, {**SMALL[name], "activation": "silu"}, SHAPE, 3).kinks == ()


@pytest.mark.parametrize("name", get_args(_activations.Activation))
def test_every_activation_that_can_be_named_is_the_function_of_that_name(name: Any) -> None:
    x = torch.linspace(-3, 3, 13)
    assert torch.equal(_activations.activated(name)(x), getattr(torch.nn.functional, name)(x))


def test_an_activation_that_is_none_suggests_the_near_ones() -> None:
    with pytest.raises(BadInput, match="did you mean gelu"):
        build_client("mlp", {"activation": "gellu"}, SHAPE, 3)


@pytest.mark.parametrize(
    ("shape", "settings", "said"),
    [((1, 7, 7), {}, "patches"), ((1, 8, 12), {}, "patches"), (SHAPE, {"width": 6, "heads": 4}, "multiple of 4")],
)
def test_a_vit_that_cannot_be_is_refused(shape: tuple[int, ...], settings: dict[str, int], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        build_client("vit", settings, shape, 3)


# -- trained weights -------------------------------------------------------------------------------------------------


def trained(path: Path, **settings: Any) -> tuple[Path, nn.Module]:
    """A checkpoint of a resnet20 whose every weight and running statistic is its own."""
    network = networks.get("resnet20")(SHAPE, 10, width=2, **settings)
    with torch.no_grad():
        for t in weights.state(network).values():
            t.add_(0.05 * torch.rand_like(t))
    save_file(network.state_dict(), path)
    return path, network


@pytest.mark.slow
def test_a_checkpoint_gives_the_client_its_weights_and_running_statistics(tmp_path: Path) -> None:
    path, network = trained(tmp_path / "w.safetensors")
    client = build_client("resnet20", {"width": 2}, SHAPE, 10, checkpoint=path)
    x = torch.rand(3, *SHAPE)
    assert torch.equal(client.network(x), network(x))
    other = build_client("resnet20", {"width": 2}, SHAPE, 10)
    assert not torch.allclose(other.network(x), network(x))


def test_an_observation_carries_them(tmp_path: Path) -> None:
    path, _ = trained(tmp_path / "w.safetensors")
    target = from_data(network="resnet20", settings={"width": 2}, checkpoint=path)
    save(target, tmp_path / "o.safetensors")
    found = load(tmp_path / "o.safetensors")
    x, y = batch_of(found.client, (), 1)
    assert torch.equal(found.client.update(x, y).materialise(), target.client.update(x, y).materialise())
    with pytest.raises(BadInput, match="leave the checkpoint"):
        load(tmp_path / "o.safetensors", checkpoint=path)


def test_a_checkpoint_of_another_network_is_refused_in_one_line(tmp_path: Path) -> None:
    path, _ = trained(tmp_path / "w.safetensors")
    for name, settings in (("mlp", {}), ("resnet20", {"width": 4})):
        with pytest.raises(BadInput, match=r"w\.safetensors") as caught:
            build_client(name, settings, SHAPE, 10, checkpoint=path)
        assert "\n" not in str(caught.value)
    state = {n: t for n, t in networks.get("resnet20")(SHAPE, 10, width=2).state_dict().items() if "running" not in n}
    save_file(state, tmp_path / "half.safetensors")
    with pytest.raises(BadInput, match=r"lacks 1\.running_mean"):
        build_client("resnet20", {"width": 2}, SHAPE, 10, checkpoint=tmp_path / "half.safetensors")


def test_a_checkpoint_with_nan_or_as_a_pickle_is_refused_unread(tmp_path: Path) -> None:
    state = networks.get("mlp")(SHAPE, 10).state_dict()
    state["1.weight"][0, 0] = torch.nan
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(BadInput, match=r"'1\.weight' holds NaN"):
        build_client("mlp", {}, SHAPE, 10, checkpoint=tmp_path / "nan.safetensors")
    (tmp_path / "w.pt").write_bytes(pickle.dumps(1))
    with pytest.raises(BadInput, match="pickle"):
        build_client("mlp", {}, SHAPE, 10, checkpoint=tmp_path / "w.pt")


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--checkpoint", "w.safetensors"], "another network"),
        (["--checkpoint", "nothing.safetensors"], "cannot read"),
        (["--local-steps", "3"], "add --local-lr"),
        (["--local-lr", "-1"], "learning rate"),
        (["--local-lr", "0.1", "--local-batch-size", "2"], "only 1 examples"),
    ],
)
@pytest.mark.parametrize("command", ["attack", "observe", "compare"])
def test_a_client_that_cannot_be_is_one_line_and_exit_code_2(
    command: str, words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    trained(tmp_path / "w.safetensors")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, *words])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.slow
def test_an_observation_of_a_trained_client_that_trains_locally_is_attacked_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained(tmp_path / "w.safetensors")
    client = ["--network", "resnet20", "--network.width", "2", "--checkpoint", "w.safetensors"]
    words = [*client, "--network.activation", "silu", "--local-lr", "0.01", "--local-steps", "2"]
    search = ["--inference", "map", "--inference.starts", "1", "--inference.steps", "2"]
    for command in (["observe", *words], ["attack", *search, "--observed", "observation.safetensors"]):
        assert run(command) == 0
    assert load("observation.safetensors").client.local == LocalTraining(0.01, 2)
    said = Posterior.load("attack/posterior.nc").attrs
    assert said["local"] == {"lr": 0.01, "steps": 2, "batch_size": None}


def test_local_training_that_diverges_is_refused_before_it_is_shared() -> None:
    with pytest.raises(BadInput, match="diverge"):
        from_data(network="resnet20", settings={"width": 2}, local=LocalTraining(1e6, 20))


def test_ls_lists_the_networks(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        cli.main(["ls"])
    assert set(SMALL) <= set(capsys.readouterr().out.split())


def test_a_safetensors_file_may_begin_with_any_length(tmp_path: Path) -> None:
    """The first byte of a header 128 (mod 256) bytes long is that of a pickle, and is no pickle."""
    lengths = set()
    for extra in range(0, 400, 8):
        path = tmp_path / "weights.safetensors"
        save_file({"w": torch.ones(2)}, path, {"note": "x" * extra})
        lengths.add(path.read_bytes()[0])
        assert weights.read(path)[0]["w"].tolist() == [1, 1]
    assert 0x80 in lengths
