"""A Flower app whose clients train by DP-SGD (Opacus), on scikit-learn's digits, recorded by one line."""

import sys

import torch
import torch.nn.functional as F
from flwr.client import Client, ClientApp, NumPyClient
from flwr.common import Context, ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import run_simulation
from opacus import PrivacyEngine
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
    return DataLoader(TensorDataset(x, torch.tensor(digits.target[mine])), batch_size=4)


def weights(net: nn.Module) -> list:
    return [v.numpy() for v in net.state_dict().values()]


class FlowerClient(NumPyClient):
    def __init__(self, partition: int):
        self.loader = load_data(partition)

    def fit(self, parameters, config):
        net, criterion = Net(), nn.CrossEntropyLoss()
        net.load_state_dict({n: torch.tensor(v) for n, v in zip(net.state_dict(), parameters, strict=True)})
        net.train()
        private, optimizer, loader = PrivacyEngine().make_private(
            module=net, optimizer=torch.optim.SGD(net.parameters(), lr=0.1), data_loader=self.loader,
            noise_multiplier=1.0, max_grad_norm=1.0,
        )  # fmt: skip
        for x, y in loader:
            optimizer.zero_grad()
            criterion(private(x), y).backward()
            optimizer.step()
        return weights(net), len(self.loader.dataset), {}


def client_fn(context: Context) -> Client:
    return FlowerClient(context.node_config["partition-id"]).to_client()


def server_fn(context: Context) -> ServerAppComponents:
    strategy = FedAvg(fraction_fit=1.0, fraction_evaluate=0.0, min_fit_clients=4, min_available_clients=4,
                      initial_parameters=ndarrays_to_parameters(weights(Net())))  # fmt: skip
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=2))


app = ClientApp(client_fn, mods=[recorder(sys.argv[1] if len(sys.argv) > 1 else "recorded")])  # the one line

if __name__ == "__main__":
    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server_app=ServerApp(server_fn=server_fn), client_app=app, num_supernodes=4,
                   backend_config=resources)  # fmt: skip
