"""
A defence, known and unknown
============================

The client sends the largest tenth of its entries. An attacker who takes the zeros for gradients that are 0 is
misled; one who knows of the filter reads in a zero that the entry was small, and no more.
"""

import matplotlib.pyplot as plt

import pplleak as pl

filtered = "topk:rate=0.9,sigma=0.003"
observed = pl.observe(pl.Scenario(data="digits", index=3, network="mlp:widths=(16,)", protection=filtered))
search = {"starts": 4, "steps": 400}
unaware = pl.attack(observed, inference="map", beliefs={"channel": "gaussian:sigma=0.003"}, settings=search)
aware = pl.attack(observed, inference="map", settings=search)

# %%
# The attack that does not know is not only wrong: the check of its fit tells that its model does not explain what was
# shared.

figure, axes = plt.subplots(1, 3, figsize=(6, 2.4), layout="constrained")
psnr = [posterior.summary["examples"][0]["psnr_map"] for posterior in (unaware, aware)]
titles = "private image", f"unaware: {psnr[0]:.1f} dB", f"aware: {psnr[1]:.1f} dB"
for ax, image, title in zip(axes, (observed.truth[0], unaware.mode[0], aware.mode[0]), titles, strict=True):
    ax.imshow(image[0], cmap="gray", vmin=0, vmax=1)
    ax.set_title(title, fontsize=10)
    ax.axis("off")
for name, posterior in (("unaware", unaware), ("aware", aware)):
    print(f"{name}: {posterior.verdict}")
