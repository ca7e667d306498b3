"""
What one gradient gives away
============================

A client computes the gradient of its network on one private digit and shares it. The attack is given that gradient, the
weights, and public digits of the same kind, and nothing of the private one.
"""

import pplleak as pl

observed = pl.observe(pl.Scenario(data="digits", index=3, network="mlp:widths=(16,)", protection="gaussian:sigma=0.01"))
print(f"the server sees {observed.g.numel()} numbers; the image has {observed.truth.numel()} pixels")

# %%
# The most probable image, by search from several starts. The PSNR is against the private image, which no attack reads.

found = pl.attack(observed, inference="map", settings={"starts": 4, "steps": 150}, seed=0)
print(f"PSNR {found.summary['examples'][0]['psnr_map']:.1f} dB")
pl.plot(found)
