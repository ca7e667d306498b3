"""log p(z | g), one function for every inference, and the parts that samplers share."""

from pplleak.density.density import Density, Model, Site, build, marginal, traced
from pplleak.density.refusals import require_finite, require_told

__all__ = ["Density", "Model", "Site", "build", "marginal", "require_finite", "require_told", "traced"]
