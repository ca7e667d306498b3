"""A Flower app audited end to end by the lines that the documentation shows: with plain local training, and by DP-SGD.

    uv run --all-extras benchmarks/flower_audit.py
    uv run --all-extras benchmarks/flower_audit.py --data cifar10 --data-root /path/to/data

`docs/examples/flower_app.py` (SGD with momentum) and `flower_dp_app.py` (a NumPyClient whose steps are Opacus'): a CNN
with ReLU and max-pooling on digits, four clients, two rounds, Flower's own simulation; on CIFAR-10, with the network of
Flower's PyTorch quickstart in its place. What was recorded is audited by `pplleak audit … --truth …`. A row an app and
data: lines of the app that are there for the recording; seconds of the app and of the audit; updates, those of each
finding, and the share with an attack that is trusted; how many of them an attack had time for and was scored; PSNR of
the best attack on each of these, on average and of the example that was given away most, beside a guess's; ε of the
last step, and what share of such examples no attack on one step brings back to an RMS error of 0.1
(`studies.audit.curves`; empty without DP-SGD).
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import tyro

from pplleak import runs
from pplleak.studies.audit import audit, curves, words

ROOT = Path(__file__).parents[1]
APPS = ("flower_app", "flower_dp_app")
ROUNDS = "num_rounds=2"
COLUMNS = {
    "app": str, "data": str, "lines": int, "app_seconds": float, "audit_seconds": float, "updates": int,
    **dict.fromkeys(words.LEVELS, int), "trusted": float, "scored": int, "psnr_mean": float, "psnr_best": float,
    "guess_mean": float, "epsilon": float | None, "limit": float | None,
}  # fmt: skip
PRIVATE = r"class Net\(nn\.Module\):.*?(?=\n\n\n(?:app|def weights))"  # of an app, what it trains and on what
QUICKSTART = """class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc1, self.fc2, self.fc3 = nn.Linear(16 * 5 * 5, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.conv2(self.pool(F.relu(self.conv1(x))))))
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x.flatten(1))))))


def load_data(client: int) -> DataLoader:
    from pplleak import data

    images = data.private("cifar10", ROOT)
    return DataLoader(TensorDataset(*images.batch(10 * client, 10)), batch_size=4, shuffle=True)"""


@dataclasses.dataclass(frozen=True)
class Settings:
    budget: float = 4.0
    """Minutes of each audit."""
    data: Literal["digits", "cifar10"] = "digits"
    data_root: Path | None = None
    apps: tuple[str, ...] = APPS
    csv: Path = Path("benchmarks/results/flower_audit.csv")


def audited(app: str, folder: Path, settings: Settings) -> dict[str, Any]:
    """The row of one app, run and audited in a folder of its own."""
    source = (ROOT / "docs" / "examples" / f"{app}.py").read_text(encoding="utf-8")
    file, public = folder / f"{app}.py", ["--data", settings.data]
    run = re.sub(r"num_rounds=\d", ROUNDS, source)
    if settings.data_root is not None:
        root = str(settings.data_root.resolve())
        run, made = re.subn(PRIVATE, lambda _: QUICKSTART.replace("ROOT", repr(root)), run, flags=re.DOTALL)
        assert made == 1
        public += ["--data-root", root]
    file.write_text(run, encoding="utf-8")
    app_seconds = ran(sys.executable, file.name, "recorded", folder=folder)
    audit_seconds = ran(
        sys.executable, "-m", "pplleak", "audit", "recorded", "--truth", "recorded/private",
        "--network", f"{file.name}:Net", "--budget", str(settings.budget), *public, folder=folder,
    )  # fmt: skip
    out = folder / "audit-report"
    rows = audit.tables(out)[0].read()
    by_name = [[r for r in rows if r["name"] == name] for name in dict.fromkeys(r["name"] for r in rows)]
    found = Counter(words.finding(of).level for of in by_name)
    judged = ([r for r in of if r["psnr"] is not None] for of in by_name)
    scored = [max(of, key=lambda r: r["psnr"]) for of in judged if of]  # of the others no attack had time
    if not scored:
        raise SystemExit(f"no attack on {app} was scored: give it more time, by --budget")
    noises = {curves.noise_of(r["protection"]) for r in rows} - {None}
    guessed, limit = curves.read(out), None
    if noises and guessed is not None:
        (noise,) = noises
        known = guessed.at(True)[curves.DELTAS.index(curves.NEAR)][1]
        limit = curves.rero.gaussian(known, noise)
    return {
        "app": app, "data": settings.data, "lines": sum("recorder" in line for line in source.splitlines()),
        "app_seconds": round(app_seconds, 1), "audit_seconds": round(audit_seconds, 1), "updates": len(by_name),
        **{level: found[level] for level in words.LEVELS},
        "trusted": sum(any(r["trusted"] for r in of) for of in by_name) / len(by_name),
        "scored": len(scored), "psnr_mean": sum(r["psnr"] for r in scored) / len(scored),
        "psnr_best": max(r["best_psnr"] for r in scored),
        "guess_mean": sum(r["guess_psnr"] for r in scored) / len(scored),
        "epsilon": max((r["epsilon"] for r in rows if r["epsilon"] is not None), default=None), "limit": limit,
    }  # fmt: skip


def ran(*command: str, folder: Path) -> float:
    """Seconds of a command that ends well."""
    begin = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode}: {' '.join(command)}\n{done.stderr[-3000:]}")
    return time.perf_counter() - begin


def main(settings: Settings) -> None:
    if (settings.data == "digits") != (settings.data_root is None):
        raise SystemExit("--data cifar10 needs --data-root, the folder that holds it; digits are a package's own")
    rows = runs.Rows(settings.csv, COLUMNS, ("app", "data"))
    for app in settings.apps:
        with tempfile.TemporaryDirectory() as folder:
            made = audited(app, Path(folder), settings)
        print(made, flush=True)
        rows.add([made])


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
