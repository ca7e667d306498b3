"""The pictures of docs/not-to-believe.md: clients that are not what their adversary believes, before and after mending.

    uv run benchmarks/not_to_believe.py

Each case attacks one digit twice by `map`: as somebody would who does not know better, and with what mends it. A figure
shows the private image and both reconstructions, framed in red where they are doubted and in green where they are not;
the verdicts are printed, for the page.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

import pplleak as pl
from pplleak import runs
from pplleak.progress import bar

QUIET = "gaussian:sigma=0.005"
QUICK = {"starts": 4, "steps": 800}


@dataclasses.dataclass(frozen=True)
class Settings:
    out: Path = Path("docs/_static/not_to_believe")
    """Folder for the pictures."""
    only: tuple[str, ...] = ()
    """Cases to draw; default: all."""


@dataclass(frozen=True, eq=False)
class Case:
    """What is observed, the attack that does not know better, the words for it; and the same for the one that does."""

    wrong: pl.Observation
    believed: str
    right: pl.Observation
    mended: str
    settings: dict[str, Any] = dataclasses.field(default_factory=lambda: dict(QUICK))
    beliefs: dict[str, Any] = dataclasses.field(default_factory=dict)


def scene(**more: Any) -> pl.Observation:
    return pl.observe(pl.Scenario(**{"index": 3, "protection": QUIET, "network": "mlp:widths=(32,)", **more}))


def of_another_client(**how: Any) -> tuple[pl.Observation, pl.Observation]:
    """What another client shares, to an adversary who believes in the plain one, and to one who knows."""
    right = scene(**how)
    plain = scene(**{n: v for n, v in how.items() if n not in ("loss", "normalise")})
    return replace(right, client=plain.client), right


def normalised() -> Case:
    wrong, right = of_another_client(normalise=(0.3, 0.25))
    return Case(wrong, "the network sees the image itself", right, "--normalise 0.3 0.25")


def summed() -> Case:
    wrong, right = of_another_client(loss="cross_entropy:reduction=sum", batch_size=2)
    return Case(wrong, "the loss is averaged over the batch", right, "--loss cross_entropy:reduction=sum")


def squared() -> Case:
    wrong, right = of_another_client(loss="mse")
    return Case(wrong, "the loss is a cross entropy", right, "--loss mse")


def loud() -> Case:
    right = scene(protection="gaussian:sigma=0.0001")
    wrong = replace(right, protection=pl.Protection.parse("gaussian:sigma=0.1"))
    return Case(wrong, "σ is 0.1", replace(right, protection=pl.Protection.parse("gaussian:sigma=infer")),
                "--sigma infer")  # fmt: skip


def clipped() -> Case:
    right = scene(protection="dpsgd:noise_multiplier=0.01,clip=0.5")
    wrong = replace(right, protection=pl.Protection.parse("gaussian:sigma=0.005"))
    return Case(wrong, "nothing but noise was added", right, "--channel dpsgd --channel.clip 0.5")


def mislabelled() -> Case:
    right = scene()
    assert right.labels is not None
    return Case(replace(right, labels=(right.labels + 1) % 10), "the label is 7", right, "the label is 6")


def other_weights() -> Case:
    right = scene()
    return Case(
        replace(right, client=scene(seed=1).client), "these are the weights", right, "the weights that were used"
    )


def unfinished() -> Case:
    right = scene(protection="gaussian:sigma=0.05")
    return Case(right, "five steps are enough", right, "climb until it ends", {"starts": 1, "steps": 5})


CASES: dict[str, Callable[[], Case]] = {
    f.__name__: f for f in (normalised, summed, squared, loud, clipped, mislabelled, other_weights, unfinished)
}


def draw(case: Case, path: Path) -> tuple[str, str]:
    """The figure of a case, and the verdicts of both attacks."""
    from matplotlib.figure import Figure

    ways = ((case.wrong, case.settings, case.believed), (case.right, QUICK, case.mended))
    attacks = [
        pl.attack(seen, inference="map", beliefs=case.beliefs, settings=settings, explain=True)
        for seen, settings, _ in ways
    ]
    truth = attacks[0].truth
    assert truth is not None
    figure = Figure(figsize=(6.6, 2.9), layout="constrained")
    panels = figure.subplots(1, 3)
    shown = [("private image", truth, ""), *(
        (("“" if k == 0 else "") + words + ("”" if k == 0 else ""), found.mode, f"{found.summary['psnr_map']:.1f} dB")
        for k, (found, (_, _, words)) in enumerate(zip(attacks, ways, strict=True)))]  # fmt: skip
    colours = ("#333333", *("#b42318" if f.summary["fits"] is False or not f.converged else "#1a7f37" for f in attacks))
    for axes, (title, images, score), colour in zip(panels, shown, colours, strict=True):
        axes.imshow(np.clip(images[0].mean(0), 0, 1), cmap="gray", vmin=0, vmax=1)
        axes.set_title("\n".join(textwrap.wrap(title, 28, break_long_words=False)), fontsize=9)
        axes.set_xlabel(score, color=colour, weight="bold")
        axes.set_xticks([])
        axes.set_yticks([])
        for side in axes.spines.values():
            side.set_color(colour)
            side.set_linewidth(3)
    path.parent.mkdir(parents=True, exist_ok=True)
    runs.write(path, lambda part: figure.savefig(part, dpi=110, format="png"))
    return attacks[0].verdict, attacks[1].verdict


def main(args: Settings) -> None:
    torch.set_num_threads(1)
    names = [n for n in CASES if n in (args.only or CASES)]
    verdicts = {}
    for k in bar("cases", len(names)):
        verdicts[names[k]] = draw(CASES[names[k]](), args.out / f"{names[k]}.png")
    for name, (wrong, right) in verdicts.items():
        print(f"{name}\n  wrong: {wrong}\n  right: {right}")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
