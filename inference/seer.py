"""The secret decoder of weights that were trained with it: a batch's brightest example from its gradient (a point).

    x* = r(D g),   g = Σ_b ∇ℓ(x_b, y_b), the batch's mean times its size

D projects the gradient into a few directions, in which the other examples' gradients all but vanish, by the weights
that the server has handed out (`studies/crafted/seer.py` trains both). One example of the batch is decoded; the
others are the mean of public images, and are said to be none of the batch's. Without its weights a decoder says
nothing, and does not notice.

Source: Garov, Dimitrov, Jovanović and Vechev, Hiding in Plain Sight: Disguising Data Stealing Attacks in Federated
Learning (SEER), ICLR 2024.
"""

from __future__ import annotations

from pathlib import Path

import torch

from pplleak.client import Client
from pplleak.density import Model, require_finite, secret_decoder
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior, read_off
from pplleak.progress import ProgressBar, silent


@torch.no_grad()
def run(
    model: Model,
    observed: Observation,
    client: Client,
    *,
    seed: int = 0,
    progress: ProgressBar = silent,
    decoder: str = "decoder.safetensors",
) -> Posterior:
    """The images of a batch as a posterior of one draw; neither the model nor the seed is looked at.

    Args:
        decoder: the file that was written beside the weights.
    """
    require_finite(observed)
    if client.local is not None:
        raise BadInput("the decoder is of a gradient, and this client shares local training: take inference map")
    held, size = secret_decoder.load(Path(decoder), client), observed.batch_size
    seen = held["project"] @ (size * observed.g.to(client.device).float())
    brightest = secret_decoder.decoded(held, seen)
    x = torch.cat([brightest[None], held["mean"].expand(size - 1, -1)])
    logits = client.network(brightest.reshape(1, *client.input_shape).to(client.dtype))[0]
    if observed.labels is None:
        y = logits.argmax().expand(size)
    else:  # it stands where the label is that its own network finds the likeliest
        y, place = observed.labels, int(logits[observed.labels].argmax())
        x[[0, place]] = x[[place, 0]]
    reasons = [f"one example of {size} is decoded: the mean of public images for the others"] if size > 1 else []
    return read_off(client, observed, x, y, "the secret decoder of the weights", reasons)


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
