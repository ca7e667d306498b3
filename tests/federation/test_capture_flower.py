"""Flower: three rounds of four clients in its own simulation, each recorded by one line of the app; by Opacus, too."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import pplleak as pl
from pplleak import channels
from pplleak.federation import capture

pytestmark = [pytest.mark.slow, pytest.mark.process]

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"  # the apps as the documentation shows them
APP = EXAMPLES / "flower_app.py"
STEP = "            criterion(net(x), y).backward()\n"
TWICE = f"            context.node_config['partition-id'] == 3 and criterion(net(x), y)\n{STEP}"
STRATEGY = "    strategy.start("
SEEN = """
    from pplleak.client.training import LocalTraining
    from pplleak.federation.capture.flower import Known, server_recorder
    from pplleak.settings import Named

    local = LocalTraining(0.01, epochs=2, batch_size=4, optimizer=Named("sgd", {{"momentum": 0.9}}))
    strategy = server_recorder(strategy, "{seen}", Known(Net(), (1, 8, 8), 10, local))
    strategy.start("""


# Both apps in one process, each its own script: to import Flower takes longer than either of them. The clients of the
# first are two workers of Ray, which record at the same time; to start them takes longer still, and those of the second
# run one after the other where the simulation runs.
BOTH = """
import runpy, sys

import ray
from flwr.server.superlink.fleet.vce.backend import raybackend


class Here(raybackend.Backend):
    num_workers = 1

    def __init__(self, config): ...

    def build(self, app_fn):
        self.app_fn = app_fn

    def is_worker_idle(self):
        return True

    def process_message(self, message, context):
        return self.app_fn()(message, context), context

    def terminate(self): ...


ray.init(num_cpus=2, include_dashboard=False)
for app, folder in (sys.argv[1:3], sys.argv[3:5]):
    sys.argv = [app, folder]
    runpy.run_path(app, run_name="__main__")
    raybackend.RayBackend = Here
"""


class Recorded(NamedTuple):
    """The two apps, the folders that they recorded into, where the first one's server saw its clients, and what was
    printed."""

    app: Path
    folder: Path
    seen: Path
    dp_app: Path
    dp_folder: Path
    said: str


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    for needed in ("flwr.simulation", "ray", "opacus"):
        pytest.importorskip(needed)
    tmp_path = tmp_path_factory.mktemp("flower")
    app, dp_app, seen = tmp_path / "app.py", tmp_path / "dp_app.py", tmp_path / "seen"
    source = APP.read_text()
    assert source.count(STEP) == 1
    assert source.count(STRATEGY) == 1
    told = source.replace(STRATEGY, SEEN.format(seen=seen))
    app.write_text(told.replace(STEP, TWICE))  # client 3: two forward passes a step, which no observation can say
    source = re.sub(r"num_rounds=\d", "num_rounds=3", (EXAMPLES / "flower_dp_app.py").read_text())
    assert source.count("noise_multiplier=1.0") == 1
    dp_app.write_text(source.replace("noise_multiplier=1.0", "noise_multiplier=0.05"))  # so little that images show
    folders = tmp_path / "audit", tmp_path / "dp_audit"
    done = subprocess.run(
        [sys.executable, "-c", BOTH, str(app), str(folders[0]), str(dp_app), str(folders[1])],
        cwd=tmp_path, capture_output=True, text=True, timeout=500,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return Recorded(app, folders[0], seen, dp_app, folders[1], done.stdout + done.stderr)


def test_three_rounds_of_four_clients_are_recorded_and_go_on_where_one_cannot_be(recorded: Recorded) -> None:
    app, folder = recorded.app, recorded.folder
    assert recorded.said.count("Received 4 results") == 3  # the client that could not be recorded went on
    names = {p.stem for p in folder.glob("*.safetensors")}
    assert names == {f"round-{r}-client-{c}" for r in (1, 2, 3) for c in (0, 1, 2)}
    assert "round-1-client-3 was not recorded" in recorded.said
    for name in names:
        observed = pl.load(folder / f"{name}.safetensors", network=f"{app}:Net")
        kept = capture.read(folder / "private" / f"{name}.safetensors")
        u = observed.client.update(kept.x, kept.y).materialise()
        error = float((u - observed.g).norm() / observed.g.norm())
        assert error < 0.25  # the client shuffles anew in its second epoch, which the model does not
        other = observed.client.update(kept.x.flip(0), kept.y).materialise()  # a wrong twin: labels of others
        assert float((other - observed.g).norm() / observed.g.norm()) > 2 * error
    first = [pl.load(folder / f"round-1-client-{c}.safetensors", network=f"{app}:Net").client for c in (0, 1)]
    weights = [dict(c.network.named_parameters()) for c in first]
    assert all(bool((weights[0][n] == weights[1][n]).all()) for n in weights[0])  # what the server sent
    seen = [pl.load(p, network=f"{app}:Net") for p in recorded.seen.glob("round-*.safetensors")]
    assert len(seen) == 12  # the server sees the fourth client, too
    for name in names:  # and of the others what they recorded themselves, to the rounding of its numbers
        own = pl.load(folder / f"{name}.safetensors", network=f"{app}:Net")
        near = [o for o in seen if float((o.g - own.g).norm() / own.g.norm()) < 1e-3]
        assert len(near) == 1 and near[0].batch_size == own.batch_size and near[0].client.local == own.client.local


def test_three_rounds_of_four_clients_by_opacus_are_recorded_step_by_step(recorded: Recorded) -> None:
    app, folder = recorded.dp_app, recorded.dp_folder
    names = sorted(p.stem for p in folder.glob("*.safetensors"))
    rounds = {name.rpartition("-step-")[0] for name in names}  # Poisson sampling may draw a step without an example
    assert rounds == {f"round-{r}-client-{c}" for r in (1, 2, 3) for c in (0, 1, 2, 3)}
    squares, others, spent = [], [], []
    for name in names:
        observed = pl.load(folder / f"{name}.safetensors", network=f"{app}:Net")
        kept = capture.read(folder / "private" / f"{name}.safetensors")
        channel = observed.protection.channel
        assert channel is not None and channel.name == "dpsgd"
        noise = []
        for x in (kept.x, kept.x.roll(1, -1)):  # a wrong twin: images that are shifted by a pixel
            update = observed.client.update(x, kept.y)  # at the weights that this step began with
            law = channels.make(channel, update, observed.client, len(kept.y), None)
            assert isinstance(law, channels.DPSGD)
            noise.append(((observed.g - law.clipped.update.materialise()) / law.sigma).square().double())
        squares.append(noise[0])
        others.append(noise[1])
        spent.append((name.rpartition("-step-")[0], observed.provenance["privacy"]["epsilon"]))
    found, twin = torch.cat(squares), torch.cat(others)
    spread = (2 / len(found)) ** 0.5
    assert abs(float(found.mean()) - 1) < 4 * spread < abs(float(twin.mean()) - 1)
    for one in rounds:  # every fit has an engine of its own, whose ε grows with its steps
        own = [epsilon for name, epsilon in spent if name == one]
        assert own == sorted(own) and own[0] > 0
