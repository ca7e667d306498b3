"""Priors p(x) and p(y): what the adversary knows of the data before. One family a file."""

from pplleak.priors.batchnorm import BatchNormStatistics, batchnorm
from pplleak.priors.box import uniform
from pplleak.priors.flow import FlowOnVAE, FlowPrior, fit_flow
from pplleak.priors.gaussian import FittedGaussian, fit_gaussian
from pplleak.priors.gmrf import GMRF, fit_gmrf
from pplleak.priors.labels import Labels
from pplleak.priors.logit_normal import LogitNormal, fit_logit_normal
from pplleak.priors.mixture import Mixture, fit_mixture
from pplleak.priors.ppca import PPCA, fit_ppca
from pplleak.priors.store import trained
from pplleak.priors.tv import TotalVariation
from pplleak.priors.vae import VAE, fit_vae

__all__ = [
    "GMRF",
    "PPCA",
    "VAE",
    "BatchNormStatistics",
    "FittedGaussian",
    "FlowOnVAE",
    "FlowPrior",
    "Labels",
    "LogitNormal",
    "Mixture",
    "TotalVariation",
    "batchnorm",
    "fit_flow",
    "fit_gaussian",
    "fit_gmrf",
    "fit_logit_normal",
    "fit_mixture",
    "fit_ppca",
    "fit_vae",
    "trained",
    "uniform",
]


def get(name):  # type: ignore  # until the room is found by listing
    def prior(like, *, reference="digits", floor: float = 0.02):  # type: ignore
        """A Gaussian.

        Args:
            reference: the public images.
            floor: standard deviation, in pixel units, that even a constant pixel keeps.
        """
        from pplleak import data

        return fit_gaussian(data.reference(reference, like.input_shape), floor=floor, dtype=like.dtype)

    return prior


def make(named, like, reference):  # type: ignore
    return get(named.name)(like, reference=reference, **named.settings)
