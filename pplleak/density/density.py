"""log p(z | g): a model and an observation as one function on flat, unconstrained coordinates.

Every inference works on this function, and none needs to know the model. z (chains, dim) holds the model's latent
sites one after the other, each mapped to the whole real line by `biject_to`; discrete sites (unknown labels) are
summed out exactly:

    log p(z | g) = log Σ_y p(g | x(z), y) p(y) p(x(z)) + log |∂x/∂z| + constant

Where relabelling the examples of a batch changes nothing (`exchangeable`), its unknown labels are summed over their
counts, not over their orders: y₁ ≤ … ≤ y_B, each weighed by its number of orders B! / Π n_k!. This breaks the symmetry
between examples of different classes. As a density of x in the order 1 … B it is another one; as a density of the
*unordered* batch {(x_b, y_b)}, and so in p(g) too, it is the same: the full sum is its average over all orders.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Unit
from torch import Tensor
from torch.distributions import Transform, biject_to

from pplleak.client import Client
from pplleak.density import room
from pplleak.density.exchange import exchangeable, interchangeable
from pplleak.density.recording.tape import Chunked, Plain, Recorded, record
from pplleak.density.refusals import require_finite, require_program
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.priors.labels import Labels

Model = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Site:
    """A continuous latent site: its value's shape, the transform onto its support, its slice of z."""

    name: str
    shape: torch.Size
    free_shape: torch.Size
    transform: Transform
    where: slice


@dataclass(frozen=True, eq=False)
class Density:
    """The unnormalised log posterior of `model` given `observed`; call it with z (chains, dim)."""

    model: Model
    client: Client
    observed: Observation
    sites: tuple[Site, ...]
    discrete: dict[str, Tensor]  # name -> every value, (K, *event_shape)
    log_orders: dict[str, Tensor] = field(default_factory=dict)  # name -> log of how many values each stands for, (K,)
    moved: dict[str, Any] = field(default_factory=dict)  # name -> law of a discrete site with too many values to sum
    given: dict[str, Tensor] = field(default_factory=dict)  # of those, the values (chains, *event_shape), or (1, …)
    exchangeable: bool = False  # where it was looked at: the examples of a batch with open or equal labels

    @property
    def dim(self) -> int:
        return self.sites[-1].where.stop if self.sites else 0

    @property
    def bounded(self) -> bool:
        """True where a site is not the whole real line: z then has a Jacobian, and another mode than x."""
        probe = torch.ones(1, self.dim, dtype=self.client.dtype, device=self.client.device)
        return bool(self.constrain(probe)[1] != self.constrain(2 * probe)[1])

    def __call__(self, z: Tensor, *, jacobian: bool = True, temperature: float | Tensor = 1.0) -> Tensor:
        """log p(z | g) + constant, float64, shape (chains,).

        Args:
            z: (chains, dim).
            jacobian: False gives the density of the sites themselves, whose maximum is the MAP.
            temperature: exponent of the likelihood; 0 is the prior, 1 the posterior.
        """
        values, log_det = self.constrain(z)
        prior, likelihood = self._terms(values, len(z))
        total = marginal(prior, likelihood, temperature)
        return total + log_det if jacobian else total

    def terms(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """log p(z, y) and log p(g | z, y), each (…, chains) with leading dimensions for the discrete sites; from them
        `marginal` gives the density at any temperature."""
        values, log_det = self.constrain(z)
        prior, likelihood = self._terms(values, len(z))
        return prior + log_det, likelihood

    def value_and_grad(self, z: Tensor, **how: Any) -> tuple[Tensor, Tensor]:
        """log p(z | g) (chains,) and its gradient (chains, dim); the chains do not see each other."""
        return Plain(functools.partial(self, **how))(z)

    def in_parts(self, chains: int, **how: Any) -> Recorded:
        """`value_and_grad` of so many chains, as many at a time as fit into memory."""
        plain, size = Plain(functools.partial(self, **how)), room.at_once(self, chains)
        return plain if size == chains else Chunked(plain, size)

    def recorded(self, chains: int) -> Recorded:
        """`value_and_grad` for one number of chains, recorded once: what a sampler calls thousands of times."""
        with pyro.validation_enabled(False):
            return record(self, torch.zeros(chains, self.dim, dtype=self.client.dtype, device=self.client.device))

    def constrain(self, z: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """z -> the sites' values (chains, *shape), and log |∂ value / ∂z| (chains,) in float64."""
        values, log_det = {}, torch.zeros(len(z), dtype=torch.float64, device=z.device)
        for site in self.sites:
            free = z[:, site.where].reshape(len(z), *site.free_shape)
            value = site.transform(free)
            jac = site.transform.log_abs_det_jacobian(free, value)
            log_det = log_det + jac.double().reshape(len(z), -1).sum(1)
            values[site.name] = value
        return values, log_det

    def unconstrain(self, values: dict[str, Tensor]) -> Tensor:
        """The sites' values (chains, *shape) -> z (chains, dim)."""
        free = [site.transform.inv(values[site.name]) for site in self.sites]
        return torch.cat([f.reshape(len(f), -1) for f in free], 1).to(self.client.dtype)

    def sample_prior(self, count: int) -> Tensor:
        """`count` draws of z from the prior, by torch's generator; where the model has a `pyro.factor`, from what it
        is multiplied onto: a place to start from, not the prior."""
        given = {"g": self.observed.g} if count * self.client.update_size > room.ROOM else {}
        with torch.no_grad(), pyro.validation_enabled(False):
            if not self.sites:  # all that is open is discrete
                return torch.zeros(count, 0, dtype=self.client.dtype, device=self.client.device)
            traced = poutine.trace(self._plated(count, given)).get_trace()
            return self.unconstrain({s.name: traced.nodes[s.name]["value"] for s in self.sites})

    @torch.no_grad()
    def images(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """x (chains, batch, *input_shape) and labels y (chains, batch) at z; unknown labels are drawn from
        p(y | x, g) by torch's generator."""
        values, _ = self.constrain(z)
        count = len(z)
        if not self.discrete:
            nodes = self.trace(values, count).nodes
            return nodes["x"]["value"].expand(count, *nodes["x"]["value"].shape[-self._event :]), self._labels(
                nodes, count
            )
        joint = sum(self._terms(values, count))
        assert isinstance(joint, Tensor)
        drawn = torch.distributions.Categorical(logits=joint.flatten(0, -2).mT).sample()
        picks = torch.unravel_index(drawn, joint.shape[:-1])
        chosen = {n: s[i] for (n, s), i in zip(self.discrete.items(), reversed(picks), strict=True)}
        nodes = self.trace({**values, **chosen}, count).nodes
        return nodes["x"]["value"], self._labels(nodes, count)

    @property
    def _event(self) -> int:
        return 1 + len(self.client.input_shape)

    def _labels(self, nodes: Any, count: int) -> Tensor:
        return nodes["y"]["value"].expand(count, self.observed.batch_size)

    def _terms(self, values: dict[str, Tensor], chains: int) -> tuple[Tensor, Tensor]:
        """Σ over the other sites of log p, and log p of g; (…, K₂, K₁, chains), one dimension a discrete site.

        A `pyro.factor` counts with g: `sample_prior` draws from the other sites, and knows nothing of it.
        """
        extra = {}
        shape = torch.Size([len(s) for s in reversed(self.discrete.values())] + [chains])
        prior = likelihood = torch.zeros(shape, dtype=torch.float64, device=self.client.device)
        for k, (name, support) in enumerate(self.discrete.items()):
            extra[name] = support.reshape(len(support), *(1,) * (k + 1), *support.shape[1:])
            if name in self.log_orders:
                prior = prior + self.log_orders[name].reshape(-1, *(1,) * (k + 1))
        traced = self.trace({**values, **extra}, chains)
        for name, node in traced.nodes.items():
            if node["type"] != "sample" or isinstance(node["fn"], PLATE):
                continue
            lp = node["fn"].log_prob(node["value"])
            if node["mask"] is not None:
                lp = torch.where(torch.as_tensor(node["mask"]), lp, torch.zeros_like(lp))
            try:
                lp = (lp.double() * node["scale"]).expand(shape)
            except RuntimeError as error:
                raise BadInput(
                    f"the model's site '{name}' has log-density shape {tuple(lp.shape)} for {chains} chains: declare "
                    "the rest of its dimensions as event dimensions, with .to_event()"
                ) from error
            if name == "g" or isinstance(node["fn"], Unit):
                likelihood = likelihood + lp
            else:
                prior = prior + lp
        return prior, likelihood

    def fixed(self, given: dict[str, Tensor]) -> Density:
        """The same at values of the sites in `moved`: one for each chain, or one for all."""
        return replace(self, given=given)

    def _call(self) -> Any:
        return self.model(self.client, self.observed.batch_size)

    def _plated(self, chains: int, data: dict[str, Tensor]) -> Callable[[], Any]:
        def plated() -> Any:
            with pyro.plate("chains", chains, dim=-1):
                return self._call()

        return poutine.condition(plated, data=data)

    def trace(self, values: dict[str, Tensor], chains: int) -> poutine.Trace:
        data = {"g": self.observed.g, **self.given, **values}
        if self.observed.labels is not None:
            data["y"] = self.observed.labels
        with pyro.validation_enabled(False):
            return poutine.trace(self._plated(chains, data)).get_trace()


def marginal(prior: Tensor, likelihood: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """log Σ_y p(z, y) p(g | z, y)^temperature, (chains,), from `Density.terms`."""
    joint = prior + temperature * likelihood
    return joint if joint.dim() == 1 else joint.flatten(0, -2).logsumexp(0)


PLATE = pyro.poutine.subsample_messenger._Subsample


def traced(model: Model, client: Client, batch_size: int) -> poutine.Trace:
    """The model's sites with a draw of each; torch's generator stays where it was."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
        return poutine.trace(model).get_trace(client, batch_size)


def build(model: Model, client: Client, observed: Observation, *, moves: bool = False) -> Density:
    """Read the model's sites once and check what a model file promises.

    Args:
        moves: discrete sites with too many values to sum over are left in `moved`, for a search that moves through them
            (`pplleak.density.moves`); else they are refused.

    Raises:
        BadInput: no sites x, y and g; a g of another size than the observation; an observation with NaN.
    """
    if observed.g.shape != (client.update_size,):
        raise BadInput(
            f"the observation has shape {tuple(observed.g.shape)}, the client's update ({client.update_size},)"
        )
    require_finite(observed)
    trace = traced(model, client, observed.batch_size)
    nodes = trace.nodes
    for name, meaning in (("x", "the data"), ("y", "the labels"), ("g", "the shared gradient")):
        if name not in nodes:
            raise BadInput(f"the model has no site '{name}' ({meaning}): a model file samples x, y and g")
    require_program(trace, client, observed.batch_size)
    given = {"g"} | ({"y"} if observed.labels is not None else set())
    sites: list[Site] = []
    discrete: dict[str, Tensor] = {}
    moved: dict[str, Any] = {}
    open_labels: Labels | None = None
    start = 0
    for name, node in nodes.items():
        if node["type"] != "sample" or node["is_observed"] or name in given or isinstance(node["fn"], PLATE):
            continue
        if name == "y" and isinstance(node["fn"], Labels) and observed.batch_size > 1:
            open_labels = node["fn"]
            continue
        if node["fn"].has_enumerate_support:
            try:
                discrete[name] = node["fn"].enumerate_support(expand=False)
            except BadInput:
                if not moves:
                    raise
                moved[name] = node["fn"]
            continue
        transform = biject_to(node["fn"].support)
        shape = node["value"].shape
        free = torch.Size(transform.inverse_shape(shape))
        size = math.prod(free)
        sites.append(Site(name, shape, free, transform, slice(start, start + size)))
        start += size
    if not sites and not (moves and (moved or discrete)):
        raise BadInput("the model has no continuous latent site: there is nothing to infer along slopes")
    built = Density(model, client, observed, tuple(sites), discrete, moved=moved)
    if interchangeable(observed):
        built = replace(built, exchangeable=exchangeable(built))
    if open_labels is None:
        return built
    try:
        orders: dict[str, Tensor] = {}
        if built.exchangeable:
            y, orders["y"] = open_labels.enumerate_counts()
        else:
            y = open_labels.enumerate_support(expand=False)
        whole = replace(built, discrete={**discrete, "y": y}, log_orders=orders)
        room.require(whole)
        return whole
    except BadInput:
        if not moves:
            raise
        return replace(built, moved={**moved, "y": open_labels})
