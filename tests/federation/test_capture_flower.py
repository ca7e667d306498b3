"""Flower: three rounds of four clients in its own simulation, each recorded by one line of the app."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import pplleak as pl
from pplleak.federation import capture

pytestmark = [pytest.mark.slow, pytest.mark.process]

APP = """
import sys
import torch, torch.nn as nn, torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, 4, 3), nn.Linear(16, 3)

    def forward(self, x):
        return self.last(F.max_pool2d(F.relu(self.conv(x)), 2).flatten(1))


if __name__ == "__main__":
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    from app import Net
    from pplleak.federation.capture.flower import recorder

    app = ClientApp(mods=[recorder(sys.argv[1])])  # the one line

    @app.train()
    def train(message, context):
        net, client = Net(), context.node_config["partition-id"]
        net.load_state_dict(message.content["arrays"].to_torch_state_dict())
        generator = torch.Generator().manual_seed(client)
        data = TensorDataset(torch.rand(6, 1, 6, 6, generator=generator), torch.arange(6) % 3)
        optimizer, criterion = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9), nn.CrossEntropyLoss()
        for _ in range(2):
            for x, y in DataLoader(data, batch_size=4):
                if client == 3:
                    criterion(net(x), y)  # a second forward pass, which no observation can say
                optimizer.zero_grad()
                criterion(net(x), y).backward()
                optimizer.step()
        content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": MetricRecord({"num-examples": 6})})
        return Message(content=content, reply_to=message)

    server = ServerApp()

    @server.main()
    def main(grid, context):
        everyone = dict(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=4, min_available_nodes=4)
        result = FedAvg(**everyone).start(grid=grid, initial_arrays=ArrayRecord(Net().state_dict()), num_rounds=3)
        torch.save(result.arrays.to_torch_state_dict(), sys.argv[1] + "/last.pt")

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server_app=server, client_app=app, num_supernodes=4, backend_config=resources)
"""


def test_three_rounds_of_four_clients_are_recorded_and_go_on_where_one_cannot_be(tmp_path: Path) -> None:
    pytest.importorskip("flwr.simulation")
    pytest.importorskip("ray")
    app, folder = tmp_path / "app.py", tmp_path / "audit"
    app.write_text(APP)
    done = subprocess.run(
        [sys.executable, str(app), str(folder)], cwd=tmp_path, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (folder / "last.pt").exists()  # all rounds ended, the client's that was not recorded, too
    names = {p.stem for p in folder.glob("*.safetensors")}
    assert names == {f"round-{r}-client-{c}" for r in (1, 2, 3) for c in (0, 1, 2)}
    assert "round-1-client-3 was not recorded" in done.stdout + done.stderr
    for name in names:
        observed = pl.load(folder / f"{name}.safetensors", network=f"{app}:Net")
        kept = capture.read(folder / "private" / f"{name}.safetensors")
        u = observed.client.update(kept.x, kept.y).materialise()
        assert float((u - observed.g).norm() / observed.g.norm()) < 1e-3
        other = observed.client.update(kept.x.flip(0), kept.y).materialise()  # a wrong twin
        assert float((other - observed.g).norm() / observed.g.norm()) > 1e-2
    first = [pl.load(folder / f"round-1-client-{c}.safetensors", network=f"{app}:Net").client for c in (0, 1)]
    weights = [dict(c.network.named_parameters()) for c in first]
    assert all(bool((weights[0][n] == weights[1][n]).all()) for n in weights[0])  # what the server sent
