"""
How sure an attack can be
=========================

One reconstruction looks sure of itself, right or wrong. Draws from the posterior say which pixels the gradient settles
and which it leaves open: the standard deviation is large where the draws differ.
"""

import matplotlib.pyplot as plt

import pplleak as pl

few = {"chains": 8, "warmup": 80, "draws": 60}
posteriors = {}
for sigma in (0.01, 0.3):
    scenario = pl.Scenario(data="digits", index=3, network="mlp:widths=(16,)", protection=f"gaussian:sigma={sigma}")
    posteriors[sigma] = pl.attack(pl.observe(scenario), inference="hmc", settings=few, seed=0)

# %%
# The same image behind little and behind much noise. The mean of much noise is near the mean of all digits, and its
# standard deviation says so: it is that of the prior.

figure, axes = plt.subplots(2, 4, figsize=(7, 3.8), layout="constrained")
for row, (sigma, posterior) in zip(axes, posteriors.items(), strict=True):
    images = posterior.truth[0], posterior.mean[0], posterior.sd[0], posterior.draws[-1][0]
    titles = "private image", f"mean, σ = {sigma:g}", f"sd, {posterior.sd.mean():.2f} on average", "a draw"
    for ax, image, title in zip(row, images, titles, strict=True):
        ax.imshow(image[0], cmap="magma" if "sd" in title else "gray", vmin=0, vmax=0.4 if "sd" in title else 1)
        ax.set_title(title, fontsize=9)
        ax.axis("off")

# %%
# Whether any of this can be believed is the first line of every result. So short a run, made while a page is built, is
# doubted, and says why.

for sigma, posterior in posteriors.items():
    print(f"σ = {sigma:g}: {posterior.verdict}")
