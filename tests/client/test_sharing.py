"""What of a gradient was shared: parts, tied weights by any of their names, sparse and half-precision ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from command_line import one_line, run
from conftest import batch_of, own, tiny
from layers import tied
from safetensors.torch import save_file
from torch import Tensor, nn

import pplleak as pl
from pplleak import channels
from pplleak.client import Client, sharing, weights
from pplleak.client.training import LocalTraining
from pplleak.density import label_recovery
from pplleak.errors import BadInput
from pplleak.federation import files
from pplleak.federation.observation import flatten

NETWORK = ["--network.widths", "4", "--network.activation", "tanh"]
SHAPE = ["--input-shape", "1", "2", "2", "--num-classes", "3"]


def gradients(client: Client, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Of plain autograd."""
    parameters = {n: p.clone().requires_grad_() for n, p in client.network.named_parameters()}
    loss = F.cross_entropy(torch.func.functional_call(client.network, parameters, (x,)), y)
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def part(client: Client, *withheld: str, **more: Any) -> Client:
    module = client.network.requires_grad_(True)
    return Client(module, client.input_shape, withheld=withheld, **more)


def test_what_is_withheld_is_no_part_of_the_update() -> None:
    whole = tiny()
    x, y = batch_of(whole, size=3)
    expected = gradients(whole, x, y)
    some = part(whole, "1.weight")
    assert list(some.layers) == [n for n in expected if n != "1.weight"] and some.lazy
    g = torch.cat([t.flatten() for n, t in expected.items() if n != "1.weight"])
    for u in (some.update(x, y), some.materialised(x, y)):
        torch.testing.assert_close(u.materialise(), g, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(u.sqdist(torch.zeros_like(g)), g.square().sum(), rtol=1e-10, atol=0)
    for name, said in (("2.weight", "no trainable parameter"), (None, "so it shares no gradient")):
        with pytest.raises(BadInput, match=said):
            part(whole, *([name] if name else expected))


def test_local_training_moves_what_is_withheld_all_the_same() -> None:
    """A layer that is trained and not shared is no frozen one: the second step sees that it has moved."""
    whole, local = tiny(), LocalTraining(0.5, 3)
    x, y = batch_of(whole, size=2)
    trained = part(whole, local=local)
    moved = trained.split(trained.update(x, y).materialise())
    some = part(whole, "1.weight", local=local)
    found = some.split(some.update(x, y).materialise())
    assert list(found) == [n for n in moved if n != "1.weight"]
    for name, t in found.items():
        torch.testing.assert_close(t, moved[name], rtol=1e-12, atol=0)
    module = whole.network.requires_grad_(True)
    module.get_parameter("1.weight").requires_grad_(False)
    frozen = Client(module, whole.input_shape, local=local)
    assert not torch.allclose(frozen.update(x, y).materialise(), some.update(x, y).materialise(), rtol=1e-3)


def test_labels_are_not_read_off_a_layer_that_is_withheld() -> None:
    last = list(tiny().layers)[-2]
    some = part(tiny(), last)
    observed = pl.Observation(some.update(*batch_of(some)).materialise(), client=some)
    with pytest.raises(BadInput, match="last layer, which would tell the labels, was not shared"):
        label_recovery.recover(some, observed)


def test_a_channel_that_clips_whole_gradients_is_refused() -> None:
    some = part(tiny(), "1.weight")
    with pytest.raises(BadInput, match="clips the whole gradient"):
        channels.require_examples(some, 1)


def test_tied_weights_come_by_any_of_their_names() -> None:
    client = own(tied, (1, 2, 3))
    x, y = batch_of(client)
    shared = gradients(client, x, y)
    assert "1.weight" in shared and "3.weight" not in shared
    g = flatten(client, shared)
    other = {("3.weight" if n == "1.weight" else n): t for n, t in shared.items()}
    both = {**shared, "3.weight": shared["1.weight"]}
    assert torch.equal(flatten(client, other), g) and torch.equal(flatten(client, both), g)
    with pytest.raises(BadInput, match="one parameter of the network"):
        flatten(client, {**shared, "3.weight": shared["1.weight"] + 1})
    module, changed = own(tied, (1, 2, 3)).network, {n: t + 1 for n, t in other.items()}
    weights.load(module, changed, "a file")
    assert torch.equal(module.get_parameter("1.weight"), changed["3.weight"])
    assert sharing.withheld(client.network.requires_grad_(True), sharing.by_owner(client.network, other, "")) == ()


class Words(nn.Module):
    """A table of rows, of which an example takes a few: its gradient is sparse."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.rows = nn.Embedding(7, 4, sparse=sparse)
        self.last = nn.Linear(4, 3)

    def forward(self, picks: Tensor) -> Tensor:
        return self.last(self.rows(picks).mean(1))  # type: ignore[no-any-return]


@pytest.mark.slow
def test_names_of_wrapped_networks_are_those_of_the_networks_inside() -> None:
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    for wrapped in (nn.DataParallel(network), torch.compile(network)):
        named = dict(wrapped.state_dict())  # type: ignore[attr-defined]
        assert list(sharing.by_owner(network, named, "it")) == list(network.state_dict())
    own = nn.ModuleDict({"module": nn.Linear(4, 3)})
    assert list(sharing.by_owner(own, dict(own.state_dict()), "it")) == ["module.weight", "module.bias"]


def test_sparse_gradients_are_read_in_every_form() -> None:
    torch.manual_seed(0)
    module, picks, y = Words(True), torch.tensor([[1, 5], [5, 6]]), torch.tensor([0, 2])
    F.cross_entropy(module(picks), y).backward()
    assert module.rows.weight.grad is not None and module.rows.weight.grad.is_sparse
    layers = {n: p.shape for n, p in module.named_parameters()}
    shared = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    plain = Words(False)
    plain.load_state_dict(module.state_dict())
    F.cross_entropy(plain(picks), y).backward()
    assert plain.rows.weight.grad is not None
    coo, rest = shared.pop("rows.weight"), shared
    full = plain.rows.weight.grad
    at = full.flatten().nonzero()[:, 0]
    for form in ({"rows.weight": coo},
                 {"rows.weight.indices": coo._indices(), "rows.weight.values": coo._values()},
                 {"rows.weight.indices": at.int(), "rows.weight.values": full.flatten()[at]}):  # fmt: skip
        found = sharing.dense(layers, {**rest, **form}, "it")
        torch.testing.assert_close(found["rows.weight"], full)
        assert list(found) and set(found) == set(layers)
    for bad, said in (({"rows.weight.indices": at + 28, "rows.weight.values": full.flatten()[at]}, "outside"),
                      ({"rows.weight.indices": at, "rows.weight.values": full}, "do not fit"),
                      ({"rows.weight.indices": at.float(), "rows.weight.values": full.flatten()[at]}, "whole numbers"),
                      ({"rows.weight.indices": -at - 1, "rows.weight.values": coo._values()[0]}, "do not fit"),
                      ({"rows.weight.indices": -at - 1, "rows.weight.values": at.double()}, "outside")):  # fmt: skip
        with pytest.raises(BadInput, match=said):
            sharing.dense(layers, {**rest, **bad}, "it")


def exported(path: Path, dtype: torch.dtype = torch.float32, *, without: str = "", sparse: str = "") -> Client:
    """A gradient of a tiny client as its owner writes it."""
    client = tiny(dtype="float32", activation="tanh")
    shared = {n: t.to(dtype) for n, t in gradients(client, *batch_of(client)).items() if n != without}
    if sparse:
        t = shared.pop(sparse).flatten()
        shared |= {f"{sparse}.indices": t.nonzero()[:, 0], f"{sparse}.values": t[t != 0]}
    tensors = {f"gradient.{n}": t for n, t in shared.items()}
    save_file({**tensors, **{f"parameter.{n}": p for n, p in weights.state(client.network).items()}}, path)
    return client


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float16, 2**-10), (torch.bfloat16, 2**-7), (torch.float32, 2**-23)])
@pytest.mark.parametrize("sparse", ["", "1.weight"])
def test_half_precision_and_sparse_files_are_read_and_their_rounding_is_sigma(
    tmp_path: Path, dtype: torch.dtype, eps: float, sparse: str
) -> None:
    source, out = tmp_path / "g.safetensors", tmp_path / "o.safetensors"
    client = exported(source, dtype, sparse=sparse)
    assert run(["observe", "--gradient", str(source), *SHAPE, *NETWORK, "--clean", "--out", str(out)]) == 0
    observed = pl.load(out)
    exact = flatten(client, gradients(client, *batch_of(client)))
    rms = float(observed.g.double().square().mean().sqrt())
    assert observed.sigma == pytest.approx(eps * rms, rel=1e-5)
    assert float((observed.g - exact).abs().max()) <= eps * float(exact.abs().max())
    assert dtype == torch.float32 or not torch.equal(observed.g, exact)


def test_a_missing_layer_is_not_shared_where_one_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "g.safetensors", tmp_path / "o.safetensors"
    client = exported(source, without="1.weight")
    wrap = ["observe", "--gradient", str(source), *SHAPE, *NETWORK, "--sigma", "0.01", "--out", str(out)]
    one_line(wrap, capsys, "--shared-only")
    assert run([*wrap, "--shared-only"]) == 0
    observed = pl.load(out)  # the file says so from then on
    assert observed.client.withheld == ("1.weight",) and "1.weight" not in observed.client.layers
    declared = part(client, "1.weight")
    x, y = batch_of(client)
    torch.testing.assert_close(observed.g, declared.update(x, y).materialise())
    files.write(out, {n: t for n, t in gradients(client, x, y).items() if n != "1.weight"}, input_shape=(1, 2, 2),
                num_classes=3, network="mlp:widths=(4,),activation=tanh", parameters=weights.state(client.network),
                protection="gaussian:sigma=0.01")  # fmt: skip
    attack = ["attack", "--observed", str(out), "--prior", "uniform", "--inference", "map", "--out", str(tmp_path)]
    one_line(attack, capsys, "only what is there was shared: --shared-only")
    assert pl.load(out, shared_only=True).client.withheld == ("1.weight",)
    with pytest.raises(sharing.NotShared):
        pl.load(out)
    one_line([*attack[:1], *attack[3:], "--shared-only"], capsys, "add --observed FILE")
    one_line([*wrap[:1], *wrap[3:], "--shared-only"], capsys, "add --gradient")
