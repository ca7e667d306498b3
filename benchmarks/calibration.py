"""Which inference is calibrated? The table of models and inferences, and of adversaries who believe a wrong σ.

    uv run benchmarks/calibration.py --data-root DIR                     # everything: hours on one core
    uv run benchmarks/calibration.py --data-root DIR --only mnist        # the rows whose name holds a word
    uv run benchmarks/calibration.py --data-root DIR --collect           # nothing is run: the table of what is there

A row is a `pplleak calibrate` in a folder of its own under --runs; Ctrl-C keeps every draw, and the same command goes
on. seconds: CPU seconds of one thread for one posterior, its search for the MAP and warm-up included. p, narrow and
shifted: of the verdict, and of the verdicts on the same posteriors with sd × 0.75 and mean + 0.25 sd.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
import tyro

from pplleak import runs
from pplleak.cli import calibrate as calibration_command
from pplleak.studies.calibration import calibration
from pplleak.studies.calibration import report as calibration_report
from pplleak.studies.calibration.draws import Draw

COLUMNS = ["model", "inference", "size", "draws", "coverage_90", "coverage_90_se", "sbc_p_min", "rhat_max", "khat",
           "psnr_mean", "seconds", "converged", "verdict", "p", "narrow", "shifted"]  # fmt: skip

START = "--inference.starts 4 --inference.steps 100"
HMC = f"--inference hmc --inference.chains 16 --inference.draws 250 --inference.warmup 100 {START}"
NUTS = f"--inference nuts --inference.chains 2 --inference.draws 60 --inference.warmup 60 {START}"
ROWS = {  # name -> draws, what the table calls the inference, the command line
    "digits-gaussian-hmc": (100, "hmc", f"--prior gaussian {HMC}"),
    "digits-vae-hmc": (100, "hmc", f"--prior vae {HMC}"),
    "mnist-gaussian-hmc": (100, "hmc", f"--prior gaussian {HMC}"),
    "mnist-vae-hmc": (100, "hmc", f"--prior vae {HMC}"),
    "digits-gaussian-hmc-half-sigma": (30, "hmc, believes σ/2", f"--prior gaussian {HMC} --adversary.sigma 0.05"),
    "digits-vae-hmc-half-sigma": (30, "hmc, believes σ/2", f"--prior vae {HMC} --adversary.sigma 0.05"),
    "mnist-gaussian-hmc-half-sigma": (20, "hmc, believes σ/2", f"--prior gaussian {HMC} --adversary.sigma 0.05"),
    "mnist-vae-hmc-half-sigma": (20, "hmc, believes σ/2", f"--prior vae {HMC} --adversary.sigma 0.05"),
    "mnist-gaussian-laplace": (20, "laplace", f"--prior gaussian --inference laplace {START}"),
    **{
        f"mnist-gaussian-svi-{guide}": (
            12, f"svi {guide}", f"--prior gaussian --inference svi --inference.guide {guide} {START}",
        )
        for guide in ("normal", "low_rank", "flow")
    },
    "mnist-gaussian-nuts": (4, "nuts", f"--prior gaussian {NUTS}"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    data_root: Path = Path("data")
    only: str = ""
    collect: bool = False
    runs: Path = Path("calibration")
    csv: Path = Path("benchmarks/results/calibration.csv")


def main(args: Settings) -> None:
    torch.set_num_threads(1)
    for name, (draws, _, line) in ROWS.items():
        if args.collect or args.only not in name:
            continue
        data = f"--data mnist --data-root {args.data_root}" if name.startswith("mnist") else ""
        words = [*data.split(), *line.split(), "--draws", str(draws), "--out", str(args.runs / name)]
        if calibration_command.run(words) != 0:
            break
    rows = [row for name in ROWS if (row := table_row(name, args.runs / name)) is not None]
    runs.table(args.csv, rows, COLUMNS)


def table_row(name: str, folder: Path) -> dict[str, Any] | None:
    """A row of the table from the draws that are there; None for fewer than three. Its picture is drawn anew."""
    draws = [Draw.load(path) for path in sorted((folder / "draws").glob("[0-9]*.npz"))]
    if len(draws) < 3:
        return None
    settings = json.loads((folder / "calibration.json").read_text())["settings"]
    found = calibration_report.write(draws, settings, folder)
    ninety = found["coverage"][calibration.LEVELS.index(0.9)]
    row = {
        "model": name.split("-")[1], "inference": ROWS[name][1], "size": "28x28" if "mnist" in name else "8x8",
        "draws": len(draws), "coverage_90": ninety["inside"], "coverage_90_se": ninety["se"],
        **{n: found[n] for n in ("sbc_p_min", "rhat_max", "khat", "psnr_mean", "seconds")},
        "converged": f"{found['converged']} of {len(draws)}", "verdict": found["verdict"]["word"],
        "p": found["verdict"]["p"], "narrow": found["twins"]["narrow"]["p"], "shifted": found["twins"]["shifted"]["p"],
    }  # fmt: skip
    print(f"{name}: {calibration_report.verdict(found)}")
    return {n: f"{v:.3g}" if isinstance(v, float) else v for n, v in row.items()}


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
