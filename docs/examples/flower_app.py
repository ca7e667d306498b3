"""A Flower app as in its PyTorch quickstart, on scikit-learn's digits, recorded by one line."""

import sys

import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pplleak.federation.capture.flower import recorder


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.fc1, self.fc2 = nn.Linear(54, 32), nn.Linear(32, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv(x)), 2).flatten(1)
        return self.fc2(F.relu(self.fc1(x)))


def load_data(client: int) -> DataLoader:
    digits, mine = load_digits(), slice(1500 + 10 * client, 1510 + 10 * client)
    x = torch.tensor(digits.images[mine] / 16, dtype=torch.float32)[:, None]
    return DataLoader(TensorDataset(x, torch.tensor(digits.target[mine])), batch_size=4, shuffle=True)


app = ClientApp(mods=[recorder(sys.argv[1] if len(sys.argv) > 1 else "recorded")])  # the one line


@app.train()
def train(message: Message, context: Context) -> Message:
    net, criterion = Net(), nn.CrossEntropyLoss()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    loader = load_data(context.node_config["partition-id"])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    net.train()
    for _ in range(2):
        for x, y in loader:
            optimizer.zero_grad()
            criterion(net(x), y).backward()
            optimizer.step()
    metrics = MetricRecord({"num-examples": len(loader.dataset)})
    return Message(content=RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)


server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=4, min_available_nodes=4)
    strategy.start(grid=grid, initial_arrays=ArrayRecord(Net().state_dict()), num_rounds=3)


if __name__ == "__main__":
    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server_app=server, client_app=app, num_supernodes=4, backend_config=resources)
