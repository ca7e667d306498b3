"""Channels p(g | u): what the server sees of the update. The same object defends the client (`sample`) and informs
the adversary (`log_prob`); each is a Pyro distribution over a lazy `pplleak.client.update.Update`."""

from pplleak.channels.aggregated import Aggregated, moments, others
from pplleak.channels.base import Channel, Noise
from pplleak.channels.directional import Directional
from pplleak.channels.dpsgd import DPSGD, require_examples
from pplleak.channels.elastic import Elastic
from pplleak.channels.gaussian import Gaussian, Weighted, by_layer
from pplleak.channels.laplace import Laplace
from pplleak.channels.pruned import Masked, Order, Pruned
from pplleak.channels.quantised import Quantised, Sign
from pplleak.channels.topk import TopK

__all__ = [
    "DPSGD",
    "Aggregated",
    "Channel",
    "Directional",
    "Elastic",
    "Gaussian",
    "Laplace",
    "Masked",
    "Noise",
    "Order",
    "Pruned",
    "Quantised",
    "Sign",
    "TopK",
    "Weighted",
    "by_layer",
    "moments",
    "others",
    "require_examples",
]
