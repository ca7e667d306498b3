"""Flower: two rounds of three clients in its own simulation, each recorded by one line of the app."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pplleak as pl
from pplleak.federation import capture

pytestmark = [pytest.mark.slow, pytest.mark.process]

APP = Path(__file__).parents[2] / "docs" / "examples" / "flower_app.py"  # as the documentation shows it, with fewer:
FEWER = {"min_train_nodes=4, min_available_nodes=4": "min_train_nodes=3, min_available_nodes=3",
         "num_supernodes=4": "num_supernodes=3", "num_rounds=3": "num_rounds=2"}  # fmt: skip
STEP = "            criterion(net(x), y).backward()\n"
TWICE = f"            context.node_config['partition-id'] == 2 and criterion(net(x), y)\n{STEP}"
STRATEGY = "    strategy.start("
SEEN = """
    from pplleak.client.training import LocalTraining
    from pplleak.federation.capture.flower import Known, server_recorder
    from pplleak.settings import Named

    local = LocalTraining(0.01, epochs=2, batch_size=4, optimizer=Named("sgd", {{"momentum": 0.9}}))
    strategy = server_recorder(strategy, "{seen}", Known(Net(), (1, 8, 8), 10, local))
    strategy.start("""


def test_rounds_of_several_clients_are_recorded_and_go_on_where_one_cannot_be(tmp_path: Path) -> None:
    pytest.importorskip("flwr.simulation")
    pytest.importorskip("ray")
    app, folder = tmp_path / "app.py", tmp_path / "audit"
    source = APP.read_text()
    assert source.count(STEP) == 1
    assert source.count(STRATEGY) == 1
    for word, fewer in FEWER.items():
        assert source.count(word) == 1
        source = source.replace(word, fewer)
    told = source.replace(STRATEGY, SEEN.format(seen=tmp_path / "seen"))
    app.write_text(told.replace(STEP, TWICE))  # client 2: two forward passes a step, which no observation can say
    done = subprocess.run(
        [sys.executable, str(app), str(folder)], cwd=tmp_path, capture_output=True, text=True, timeout=400,
        env={**os.environ, "PYTHONPATH": str(APP.parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("Received 3 results") == 2  # the client that could not be recorded went on
    names = {p.stem for p in folder.glob("*.safetensors")}
    assert names == {f"round-{r}-client-{c}" for r in (1, 2) for c in (0, 1)}
    assert "round-1-client-2 was not recorded" in done.stdout + done.stderr
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
    assert len(seen) == 6  # the server sees the third client, too
    for name in names:  # and of the others what they recorded themselves, to the rounding of its numbers
        own = pl.load(folder / f"{name}.safetensors", network=f"{app}:Net")
        near = [o for o in seen if float((o.g - own.g).norm() / own.g.norm()) < 1e-3]
        assert len(near) == 1 and near[0].batch_size == own.batch_size and near[0].client.local == own.client.local
