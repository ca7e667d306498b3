"""Flower: three rounds of four clients in its own simulation, each recorded by one line of the app; by Opacus, too."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

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


def ran(app: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, str(app), str(folder)], cwd=app.parent, capture_output=True, text=True, timeout=400,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_three_rounds_of_four_clients_are_recorded_and_go_on_where_one_cannot_be(tmp_path: Path) -> None:
    pytest.importorskip("flwr.simulation")
    pytest.importorskip("ray")
    app, folder = tmp_path / "app.py", tmp_path / "audit"
    source = APP.read_text()
    assert source.count(STEP) == 1
    assert source.count(STRATEGY) == 1
    told = source.replace(STRATEGY, SEEN.format(seen=tmp_path / "seen"))
    app.write_text(told.replace(STEP, TWICE))  # client 3: two forward passes a step, which no observation can say
    done = ran(app, folder)
    assert done.stderr.count("Received 4 results") == 3  # the client that could not be recorded went on
    names = {p.stem for p in folder.glob("*.safetensors")}
    assert names == {f"round-{r}-client-{c}" for r in (1, 2, 3) for c in (0, 1, 2)}
    assert "round-1-client-3 was not recorded" in done.stdout + done.stderr
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
    seen = [pl.load(p, network=f"{app}:Net") for p in (tmp_path / "seen").glob("round-*.safetensors")]
    assert len(seen) == 12  # the server sees the fourth client, too
    for name in names:  # and of the others what they recorded themselves, to the rounding of its numbers
        own = pl.load(folder / f"{name}.safetensors", network=f"{app}:Net")
        near = [o for o in seen if float((o.g - own.g).norm() / own.g.norm()) < 1e-3]
        assert len(near) == 1 and near[0].batch_size == own.batch_size and near[0].client.local == own.client.local


def test_three_rounds_of_four_clients_by_opacus_are_recorded_step_by_step(tmp_path: Path) -> None:
    pytest.importorskip("flwr.simulation")
    pytest.importorskip("ray")
    pytest.importorskip("opacus")
    app, folder = tmp_path / "app.py", tmp_path / "audit"
    source = re.sub(r"num_rounds=\d", "num_rounds=3", (EXAMPLES / "flower_dp_app.py").read_text())
    assert source.count("noise_multiplier=1.0") == 1
    app.write_text(source.replace("noise_multiplier=1.0", "noise_multiplier=0.05"))  # so little that images show
    ran(app, folder)
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
