"""
From a training step to a report
================================

`pl.record` stands around a client's own training step, and `pplleak audit` says what the step gave away.
"""

import contextlib
import re
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn

import pplleak as pl
from pplleak import cli, data
from pplleak.client import networks

folder = Path(tempfile.mkdtemp())
for client in range(3):
    torch.manual_seed(0)
    network = networks.get("mlp")((1, 8, 8), 10, widths=(16,), activation="relu")
    x, y = data.private("digits").batch(client, 1)
    with pl.record(network, folder / f"round-1-client-{client}.safetensors", source="mlp:widths=(16,),activation=relu"):
        nn.functional.cross_entropy(network(x), y).backward()

# %%
# The audit, as on the command line. The private batches lie in `private`, for the score alone.

command = f"audit {folder} --truth {folder}/private --attacks quotient --out {folder}/out"
with contextlib.suppress(SystemExit):  # with which every command ends
    cli.main(command.split())
page = (folder / "out" / "report.html").read_text()
for line in re.findall(r'<section aria-labelledby="q2">.*?</section>', page, re.S):
    print(re.sub(r"<[^>]+>", " ", line))

# %%
# What the report shows of the first client: its private image, and what came back.

found = pl.Posterior.load(folder / "out" / "attacks" / "round-1-client-0.quotient.nc")
figure, axes = plt.subplots(1, 2, figsize=(4, 2.3), layout="constrained")
for ax, image, title in zip(
    axes, (found.truth[0], found.mode[0]), ("private image", "read off the update"), strict=True
):
    ax.imshow(image[0], cmap="gray", vmin=0, vmax=1)
    ax.set_title(title, fontsize=10)
    ax.axis("off")
