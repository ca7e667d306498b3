"""How many clients that are other ones than the adversary believes are doubted, and how often is the cause named?

    uv run benchmarks/wrong_clients.py

Twelve wrong clients share digits through Gaussian noise of 0.1, 0.01 and 0.001 times the rms entry of what they share;
the adversary believes in the plain one and knows σ. Each is attacked by `map`, and where the fit is doubted, other
clients are tried (`pplleak.studies.attack.causes`). `right` clients, who are what the adversary believes, must not be
doubted. Two tables: a row an attack, and a row a client and σ (client, sigma_ratio, draws, doubted, cause_named: the
share whose cause was named rightly); and a figure. An attack that the first table holds is not run again.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

import pplleak as pl
from pplleak import runs
from pplleak.client import seeded
from pplleak.client.training import LocalTraining
from pplleak.progress import bar

COLUMNS = {
    "client": str, "sigma_ratio": float, "draw": int, "doubted": bool, "cause": str, "rightly": bool,
    "nats": float | None, "chi2_sd": float | None, "psnr": float, "seconds": float,
}  # fmt: skip
TABLE = {"client": str, "sigma_ratio": float, "draws": int, "doubted": float, "cause_named": float | None}
RATIOS = (0.1, 0.01, 0.001)
MAP = {"starts": 4, "steps": 300}
RIGHT = "right"


@dataclasses.dataclass(frozen=True)
class Settings:
    draws: int = 4
    """Digits behind each wrong client and σ."""
    right: int = 200
    """Right clients, dealt out to the three σ."""
    csv: Path = Path("benchmarks/results/wrong_clients_draws.csv")
    table: Path = Path("benchmarks/results/wrong_clients.csv")
    figure: Path = Path("docs/_static/wrong_clients.png")


@dataclass(frozen=True, eq=False)
class Wrong:
    """A wrong client: shared(client, x, y, seed) -> what it shares, examples, and the names that its cause may have."""

    shared: Callable[[pl.Client, Tensor, Tensor, int], Tensor]
    examples: int = 1
    causes: tuple[str, ...] = ()
    local: LocalTraining | None = None
    buffers: bool = False


def plain(client: pl.Client, x: Tensor, y: Tensor) -> Tensor:
    return client.update(x, y).materialise().detach()


def scaled(factor: float) -> Callable[..., Tensor]:
    return lambda client, x, y, seed: factor * plain(client, x, y)


def of_loss(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """The gradient of a loss as PyTorch has it, by plain autograd."""

    def shared(client: pl.Client, x: Tensor, y: Tensor, seed: int) -> Tensor:
        return gradient(trainable(client), x, y, loss)

    return shared


def trainable(client: pl.Client) -> nn.Module:
    return seeded(lambda: copy.deepcopy(client.network), 0).requires_grad_(True)


def gradient(network: nn.Module, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss(network(x), y), list(network.parameters()))])


def weighted(client: pl.Client, x: Tensor, y: Tensor, seed: int) -> Tensor:
    weights = torch.randn(10, generator=torch.Generator().manual_seed(seed)).exp()
    return gradient(trainable(client), x, y, nn.CrossEntropyLoss(weights))


def elsewhere(client: pl.Client, x: Tensor, y: Tensor, seed: int) -> Tensor:
    """With the weights of ten steps later, on other images."""
    network, private = trainable(client), pl.Scenario(index=100 + seed)
    other = pl.observe(replace(private, batch_size=16, network="mlp:widths=(32,)"))
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(10):
        optimizer.zero_grad()
        F.cross_entropy(network(other.truth), other.labels).backward()
        optimizer.step()
    return gradient(network, x, y, F.cross_entropy)


def stale(client: pl.Client, x: Tensor, y: Tensor, seed: int) -> Tensor:
    """With running statistics that the server was not told."""
    network, generator = trainable(client), torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.uniform_(-0.5, 0.5, generator=generator)  # type: ignore[union-attr]
            module.running_var.uniform_(0.2, 1.0, generator=generator)  # type: ignore[union-attr]
    return gradient(network, x, y, F.cross_entropy)


def trained(optimizer: Callable[..., torch.optim.Optimizer]) -> Callable[..., Tensor]:
    def shared(client: pl.Client, x: Tensor, y: Tensor, seed: int) -> Tensor:
        network = trainable(client)
        assert client.local is not None
        steps, before = optimizer(network.parameters(), lr=client.local.lr), [p.clone() for p in network.parameters()]
        for _ in range(client.local.steps):
            steps.zero_grad()
            F.cross_entropy(network(x), y).backward()
            steps.step()
        after = zip(network.parameters(), before, strict=True)
        return torch.cat([(p - b).flatten() for p, b in after]).detach()

    return shared


def one_hot(y: Tensor) -> Tensor:
    return F.one_hot(y, 10).float()


CLIENTS = {
    "half loss": Wrong(scaled(0.5), causes=("half_loss", "scale")),
    "double loss": Wrong(scaled(2.0), causes=("double_loss", "scale")),
    "sum over the batch": Wrong(scaled(3.0), 3, ("sum", "scale")),
    "label smoothing 0.2": Wrong(of_loss(nn.CrossEntropyLoss(label_smoothing=0.2)), causes=("label_smoothing",)),
    "class weights": Wrong(weighted, 3, ("class_weights",)),
    "mse": Wrong(of_loss(lambda out, y: F.mse_loss(out, one_hot(y))), causes=("mse",)),
    "bce": Wrong(of_loss(lambda out, y: F.binary_cross_entropy_with_logits(out, one_hot(y))), causes=("bce",)),
    "other weights": Wrong(elsewhere),
    "missing buffers": Wrong(stale, buffers=True),
    "normalised input": Wrong(lambda c, x, y, seed: plain(c, (x - 0.3) / 0.25, y), causes=("normalised",)),
    "momentum": Wrong(trained(lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9)), 3, ("optimizer",),
                      LocalTraining(0.1, 4)),
    "adam": Wrong(trained(lambda p, lr: torch.optim.Adam(p, lr)), 3, ("optimizer",), LocalTraining(0.01, 4)),
}  # fmt: skip
PLAIN = Wrong(lambda client, x, y, seed: plain(client, x, y))


def with_buffers(seed: int) -> pl.Client:
    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.GELU(), nn.Linear(32, 10)).eval()

    return pl.Client(seeded(build, seed), (1, 8, 8))


def measure(name: str, ratio: float, draw: int) -> dict[str, Any]:
    """One attack on one client, what is doubted and what is named."""
    wrong = CLIENTS.get(name, replace(PLAIN, examples=1 + draw % 2))
    base = pl.observe(pl.Scenario(index=draw, batch_size=wrong.examples, seed=draw, network="mlp:widths=(32,)",
                                  local=wrong.local))  # fmt: skip
    client = with_buffers(draw) if wrong.buffers else base.client
    assert base.truth is not None and base.labels is not None
    u = wrong.shared(client, base.truth, base.labels, draw)
    sigma = ratio * float(u.square().mean().sqrt())
    g = u + sigma * torch.randn(u.shape, generator=torch.Generator().manual_seed(draw + 1))
    observed = replace(base, g=g, client=client, protection=pl.Protection.parse(f"gaussian:sigma={sigma!r}"))
    found = pl.attack(observed, inference="map", settings=MAP, seed=draw, explain=True)
    summary = found.summary
    return {
        "client": name, "sigma_ratio": ratio, "draw": draw, "doubted": summary["fits"] is False,
        "cause": summary["cause"] or "", "rightly": (summary["cause"] or "") in (wrong.causes or ("",)),
        "nats": summary["cause_nats"], "chi2_sd": summary["chi2_sd"], "psnr": summary["psnr_map"],
        "seconds": summary["seconds"],
    }  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a client and σ: how many were doubted, and of these, how often the cause was named rightly."""
    cells = {(r["client"], r["sigma_ratio"]): [] for r in rows}  # type: dict[tuple[str, float], list[dict[str, Any]]]
    for row in rows:
        cells[row["client"], row["sigma_ratio"]].append(row)
    return [
        {
            "client": client, "sigma_ratio": ratio, "draws": len(cell),
            "doubted": sum(r["doubted"] for r in cell) / len(cell),
            "cause_named": None if client == RIGHT else sum(r["doubted"] and r["rightly"] for r in cell) / len(cell),
        }
        for (client, ratio), cell in cells.items()
    ]  # fmt: skip


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Two panels, clients down and σ across: how many were doubted, how often the cause was named."""
    from matplotlib.figure import Figure

    names = [n for n in (*CLIENTS, RIGHT) if any(r["client"] == n for r in rows)]
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    known = {(r["client"], r["sigma_ratio"]): r for r in rows}
    for axes, key in zip(figure.subplots(1, 2, sharey=True), ("doubted", "cause_named"), strict=True):
        good = np.full((len(names), len(RATIOS)), np.nan)
        for i, name in enumerate(names):
            for j, ratio in enumerate(RATIOS):
                cell = known.get((name, ratio))
                if cell is None or cell[key] is None:
                    continue
                good[i, j] = 1 - cell[key] if name == RIGHT else cell[key]
                axes.text(j, i, f"{cell[key] * cell['draws']:.0f} of {cell['draws']}", ha="center", va="center")
        axes.imshow(good, cmap="RdYlGn", vmin=-0.4, vmax=1.4, aspect="auto")
        axes.set_xticks(range(len(RATIOS)), [f"{r:g}" for r in RATIOS])
        axes.set_yticks(range(len(names)), [f"{n} client" if n == RIGHT else n for n in names])
        axes.tick_params(length=0)
        axes.set_xlabel("σ over the rms entry of what is shared")
    figure.axes[0].set_title("doubted")
    figure.axes[1].set_title("doubted, and the cause named rightly")
    path.parent.mkdir(parents=True, exist_ok=True)
    runs.write(path, lambda part: figure.savefig(part, dpi=110, format="png"))


def main(args: Settings) -> None:
    torch.set_num_threads(1)
    kept = runs.Rows(args.csv, COLUMNS, ("client", "sigma_ratio", "draw"))
    rows = kept.read()
    wanted = [(n, r, k) for k in range(args.draws) for n in CLIENTS for r in RATIOS]
    wanted += [(RIGHT, RATIOS[k % 3], k) for k in range(args.right)]
    done = {kept.about(r) for r in rows}
    left = [job for job in wanted if job not in done]
    for step in bar("clients", len(left)):
        rows = kept.add([measure(*left[step])])
    cells = table(rows)
    runs.Rows(args.table, TABLE, ("client", "sigma_ratio")).add(cells)
    draw(cells, args.figure)
    for cell in cells:
        print(
            ", ".join(
                f"{n} {v:.2f}" if isinstance(v, float) and n != "sigma_ratio" else f"{n} {v}" for n, v in cell.items()
            )
        )
    for name, group in (("wrong", [r for r in rows if r["client"] != RIGHT]),
                        (RIGHT, [r for r in rows if r["client"] == RIGHT])):  # fmt: skip
        print(f"{name}: {sum(r['doubted'] for r in group)} of {len(group)} doubted")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
