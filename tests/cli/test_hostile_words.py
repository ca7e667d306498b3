"""Words and code of a user that break things: one line, exit code 2, and where the code failed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_line import one_line
from safetensors.torch import save_file

NETWORK = """
import sys, torch
from torch import nn
class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(64, 10)
    def forward(self, x):
        BODY
def build(input_shape, num_classes):
    network = Network()
    MAKING
    return network
"""
NETWORKS = {
    "exit in forward": ("sys.exit()", "", "sys.exit() (", "net.py, line 9)"),
    "exit while it is built": ("return self.last(x.flatten(1))", "sys.exit(0)", "sys.exit(0)", "net.py, line 12)"),
    "detached": ("return self.last(x.flatten(1)).detach()", "", "no slope in the images", ""),
    "integer": ("return self.last(x.flatten(1)).long()", "", "torch.int64", ""),
    "item": ("y = self.last(x.flatten(1)); return y * y.sum().item()", "", ".item()", ""),
    "meta": ("return self.last(x.flatten(1))", "network.to('meta')", "the meta device", ""),
    "uncopyable": ("return self.last(x.flatten(1))", "network.g = (i for i in ())", "cannot pickle", ""),
    "hook": ("return self.last(x.flatten(1))", "network.register_forward_hook(lambda *a: 1 / 0)", "ZeroDivi", "12)"),
    "deep": ("return self.last(x.flatten(1))", "network.b = nn.ModuleList(nn.Linear(1, 1) for _ in range(9**9))",
             "has more than 2000 parameters", ""),
    "wide": ("return self.last(x.flatten(1))", "network.b = nn.Linear(10**6, 10**6, device='meta')", "are free", ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_users_network_that_breaks_is_one_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    body, making, expected, where = NETWORKS[kind]
    Path("net.py").write_text(NETWORK.replace("BODY", body).replace("MAKING", making or "pass"))
    one_line(["observe", "--network", "net.py:build"], capsys, expected)
    if where:
        with pytest.raises(AssertionError):
            one_line(["observe", "--network", "net.py:build"], capsys, "line 1000)")
        one_line(["observe", "--network", "net.py:build"], capsys, where)


WORDS = {
    "seed below zero": (["attack", "--seed", "-1"], "--seed must be a whole number from 0 to 2147483647"),
    "seed of numpy's end": (["attack", "--seed", str(2**32)], "--seed must be a whole number"),
    "NaN": (["attack", "--prior.floor", "nan"], "--prior.floor is nan: give a number"),
    "vanishing sigma": (["attack", "--sigma", "1e-300"], "from 1e-30 to 1e+30"),
    "empty folder": (["attack", "--out", ""], "--out has an empty name"),
    "long name": (["attack", "--data", "d" * 5000], "unknown data"),
    "no text": (["attack", "--out", "\udcff"], "is not UTF-8"),
    "local steps": (["attack", "--local-lr", "0.1", "--local-steps", "1000000000"], "below 10,000"),
    "quick, and none": (["defend", "--quick", "True", "--count", "0"], "count must be a positive number"),
    "wrapped batch of none": (["observe", "--batch-size", "0"], "batch size must be at least 1"),
    "wrapped batch below none": (["observe", "--batch-size", "-5"], "batch size must be at least 1"),
    "wrapped batch of billions": (["observe", "--batch-size", "1000000000"], "GiB are free: take a smaller batch"),
    "aggregated without clients": (["observe", "--channel", "aggregated", "--channel.clients", "0"], "at least 1"),
    "wrapped label": (["observe", "--shared-labels", str(2**63)], "label 9223372036854775808 is out of range"),
}  # fmt: skip
WRAPPED = [
    "--gradient",
    "g.safetensors",
    "--network",
    "linear",
    "--input-shape",
    "2",
    "--num-classes",
    "3",
    "--sigma",
    "1",
]


@pytest.mark.parametrize("kind", WORDS)
def test_a_word_that_breaks_things_is_one_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words, expected = WORDS[kind]
    if words[0] == "observe":
        shapes = {"1.weight": (3, 2), "1.bias": (3,)}
        shared = {f"gradient.{n}": torch.ones(s) for n, s in shapes.items()}
        save_file({**shared, **{f"parameter.{n}": torch.ones(s) for n, s in shapes.items()}}, "g.safetensors")
        words = [*words, *WRAPPED]
    one_line(words, capsys, expected)
