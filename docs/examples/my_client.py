"""A client without pplleak: plain PyTorch, one backward pass, one safetensors file."""

import torch
import torch.nn.functional as F
from my_net import build
from safetensors.torch import save_file
from sklearn.datasets import load_digits

torch.manual_seed(7)
network = build((1, 8, 8), 10)

digits = load_digits()
x = torch.tensor(digits.images[1600] / 16, dtype=torch.float32)[None, None]  # (batch, channels, rows, columns)
y = torch.tensor([digits.target[1600]])

F.cross_entropy(network(x), y).backward()  # the mean over the batch: what a FedSGD client shares

sigma = 0.02  # this client adds noise before it shares; the server knows how much
tensors = {}
for name, p in network.named_parameters():
    tensors[f"gradient.{name}"] = p.grad + sigma * torch.randn_like(p)
for name, t in network.state_dict().items():  # weights, and the statistics of normalisations: the server knows them
    tensors[f"parameter.{name}"] = t.detach()
save_file(tensors, "gradient.safetensors")
print(f"shared the gradient of a {y.item()}")
