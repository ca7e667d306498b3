"""Priors p(x) and p(y): what the adversary knows of the data before. One family a file."""

from pplleak.priors.box import uniform
from pplleak.priors.gaussian import FittedGaussian, fit_gaussian
from pplleak.priors.labels import Labels
from pplleak.priors.store import trained
from pplleak.priors.vae import VAE, fit_vae

__all__ = ["VAE", "FittedGaussian", "Labels", "fit_gaussian", "fit_vae", "trained", "uniform"]
