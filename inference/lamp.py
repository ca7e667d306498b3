"""LAMP and TAG: embeddings whose gradient matches, and discrete moves that a language prior judges (a point).

    e* = argmin D(∇ℓ(e), g) + ρ (mean ‖e_i‖ − mean ‖E_v‖)²,     token i = the row of the table E nearest to e_i (cosine)

    cosine   D = 1 − mean over layers of cos(u_l, g_l)          LAMP_cos
    tag      D = Σ_l ‖u_l − g_l‖² + α ‖u_l − g_l‖₁              TAG (Deng et al. 2021); LAMP with α, L1 + L2

by Adam, and after every `every` steps the best of random moves (two tokens change places, one is moved, a part is moved
to the end) of D + λ · (−log p(sentence) / tokens), with p the n-gram prior `sentences` in the place of their GPT-2. TAG
has no moves and no ρ: `--inference.matching tag --inference.moves 0 --inference.norm 0`.

As in the paper the table's own gradient is not looked at, and the lengths of the sentences and their labels are known:
where there is no truth to take lengths from, all are as long as the longest that the gradient of the positions names.

Source: Balunović, Dimitrov, Jovanović, Vechev 2022 (LAMP: Extracting Text from Gradients with Language Model Priors),
section 4 and algorithm 1; Deng et al. 2021 (TAG).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import pyro
import torch
from torch import Tensor, nn

from pplleak.client import Client
from pplleak.client.loss import get, total
from pplleak.data.vocabulary import BEGIN, END, PAD, SPECIAL, lengths
from pplleak.density import Model, embedding_rows, require_finite
from pplleak.errors import BadInput, require_positive
from pplleak.federation.observation import Observation
from pplleak.posterior import Posterior
from pplleak.priors.sentences import Sentences, fit_sentences
from pplleak.progress import ProgressBar, silent


@dataclass(frozen=True, eq=False)
class Relaxed:
    """A network of text whose embeddings are free: table (V, d); ids (B, length) say the frame and what is padding."""

    client: Client
    network: nn.Module
    embedding: nn.Embedding
    wanted: tuple[tuple[Tensor, Tensor], ...]
    ids: Tensor
    labels: Tensor
    matching: str
    alpha: float

    @property
    def own(self) -> Tensor:
        return self.ids >= len(SPECIAL)

    def framed(self, e: Tensor) -> Tensor:
        """e (B, length, d) with the rows of the frame in their places."""
        return torch.where(self.own[..., None], e, self.embedding.weight[self.ids])

    def away(self, e: Tensor, differentiable: bool = False) -> Tensor:
        """D of embeddings e (B, length, d)."""
        handle = self.embedding.register_forward_hook(lambda *_: self.framed(e))
        try:
            output = self.network(self.ids.to(self.client.dtype))
        finally:
            handle.remove()
        loss = total(self.client.loss, output, self.ids, self.labels, get(self.client.loss).shares(self.labels))
        parameters = [p for p, _ in self.wanted]
        made = torch.autograd.grad(loss, parameters, create_graph=differentiable)
        pairs = [(u, g) for u, (_, g) in zip(made, self.wanted, strict=True)]
        if self.matching == "cosine":
            each = [1 - torch.cosine_similarity(u.flatten(), g.flatten(), 0) for u, g in pairs if g.norm() > 0]
            return torch.stack(each).mean()
        return torch.stack([(u - g).square().sum() + self.alpha * (u - g).abs().sum() for u, g in pairs]).sum()

    def nearest(self, e: Tensor) -> Tensor:
        """The ids (B, length) of the tokens nearest to e."""
        assert self.client.vocabulary is not None
        rows = self.embedding.weight[len(SPECIAL) : len(self.client.vocabulary)]
        near = (nn.functional.normalize(e, dim=-1) @ nn.functional.normalize(rows, dim=-1).mT).argmax(-1)
        return torch.where(self.own, near + len(SPECIAL), self.ids)


def relaxed(client: Client, observed: Observation, matching: str, alpha: float) -> Relaxed:
    """The network with free embeddings; raises BadInput where it has no table, or its labels are not known."""
    if client.vocabulary is None or client.local is not None:
        raise BadInput("lamp attacks one gradient of text: give FILE.txt as data, and no local training")
    if get(client.loss).of_tokens:
        raise BadInput("lamp knows what the network is to say, and behind next_token that is the sentence itself: take "
                       "the inference isir or dager")  # fmt: skip
    if observed.labels is None:
        raise BadInput("lamp takes known labels: share them, or recover them")
    network = copy.deepcopy(client.network)
    found = embedding_rows.embedding(network, client.vocabulary)
    if found is None:
        raise BadInput("lamp needs a network with a table of embeddings")
    name, embedding = found
    parts = client.split(observed.g)
    wanted = [(p.requires_grad_(), parts[n]) for n, p in network.named_parameters()
              if n in parts and n != name]  # fmt: skip
    return Relaxed(client, network, embedding, tuple(wanted), _frames(observed), observed.labels, matching, alpha)


def _frames(observed: Observation) -> Tensor:
    """Ids (B, length) with any token in the places of a sentence's own."""
    client, size, length = observed.client, observed.batch_size, observed.client.input_shape[0]
    if observed.truth is not None:
        n = lengths(observed.truth.long())
    else:
        seen = [
            g.square().sum(1) for g in client.split(observed.g).values() if g.shape[:1] == (length,) and g.dim() == 2
        ]
        rows = (seen[0] > 1e-6 * seen[0].max()).nonzero() if seen else torch.tensor([[length - 1]])
        n = (rows.max() - 1).clamp(min=1).expand(size)
    place, n = torch.arange(length, device=client.device), n.to(client.device)[:, None]
    own = torch.where(place <= n, len(SPECIAL), torch.where(place == n + 1, END, PAD))
    return torch.where(place == 0, BEGIN, own)


def run(
    model: Model,
    observed: Observation,
    client: Client,
    *,
    seed: int = 0,
    progress: ProgressBar = silent,
    matching: Literal["cosine", "tag"] = "cosine",
    steps: int = 500,
    lr: float = 0.01,
    norm: float = 1.0,
    alpha: float = 0.01,
    every: int = 50,
    moves: int = 20,
    fluency: float = 0.2,
) -> Posterior:
    """The sentences as a posterior of one draw; the model is not looked at, but for the public sentences. Ctrl-C keeps
    what the steps so far have come to.

    Args:
        matching: cosine, of every layer; tag, the squared distance and alpha times the absolute one.
        steps: of Adam.
        lr: its learning rate, times 0.89 after every `every` steps.
        norm: ρ, of the regulariser that keeps embeddings as long as the table's rows.
        alpha: weight of the absolute distance, of tag.
        every: steps between two rounds of moves.
        moves: random moves a round; 0: none, as TAG has it.
        fluency: λ, of the prior's nats a token.
    """
    require_positive(steps=steps, lr=lr, every=every)
    if min(norm, alpha, moves, fluency) < 0:
        raise BadInput("norm, alpha, moves and fluency must not be negative")
    require_finite(observed)
    pyro.set_rng_seed(seed)
    of = relaxed(client, observed, matching, alpha)
    law = _law(client, observed)
    table = of.embedding.weight[len(SPECIAL) :]
    long = table.norm(dim=1).mean()
    spread = float(table.std())
    e = (spread * torch.randn(*of.ids.shape, table.shape[1], dtype=client.dtype, device=client.device)).requires_grad_()
    adam = torch.optim.Adam([e], lr)
    decay = torch.optim.lr_scheduler.StepLR(adam, every, 0.89)
    reasons: list[str] = []
    done = 0
    try:
        for _ in progress("matching", steps):
            adam.zero_grad()
            length = e[of.own].norm(dim=-1).mean()
            with torch.enable_grad():
                (of.away(e, differentiable=True) + norm * (length - long).square()).backward(inputs=[e])
            adam.step()
            decay.step()
            done += 1
            if moves and done % every == 0:
                with torch.no_grad():
                    e.copy_(_moved(of, e.detach(), law, moves, fluency))
    except KeyboardInterrupt:
        if not done:  # random embeddings are no result
            raise
        reasons.append(f"interrupted after {done} of {steps} steps")
    ids = of.nearest(e.detach()).cpu().numpy().astype("float32")
    told = observed.truth is not None
    assert observed.labels is not None
    return Posterior(
        x=ids[None, None], y=observed.labels.cpu().numpy()[None, None], mode=ids, kind="point",
        reasons=tuple(reasons), g=observed.g.cpu().numpy(),
        attrs={"closed_form": "embeddings that match the gradient", "lengths_told": told},
    )  # fmt: skip


def _law(client: Client, observed: Observation) -> Sentences | None:
    if observed.public is None or client.vocabulary is None:
        return None
    return fit_sentences(observed.public, len(client.vocabulary), 100.0, 1.0, client.dtype, client.device)


def _moved(of: Relaxed, e: Tensor, law: Sentences | None, count: int, fluency: float) -> Tensor:
    """The best of e and of random moves of it."""

    def price(tried: Tensor) -> float:
        with torch.enable_grad():
            away = float(of.away(tried).detach())
        if law is None:
            return away
        ids = of.nearest(tried)
        return away + fluency * float(-(law.log_prob(ids) / lengths(ids).clamp(min=1)).mean())

    best, least = e, price(e)
    for _ in range(count):
        tried = best.clone()
        b = int(torch.randint(len(e), ()))
        n = int(of.own[b].sum())
        order = torch.arange(n)
        i, j = torch.randint(n, (2,)).tolist()
        kind = int(torch.randint(3, ()))
        if kind == 0:
            order[[i, j]] = order[[j, i]]
        elif kind == 1:
            rest = torch.cat([order[:i], order[i + 1 :]])
            order = torch.cat([rest[:j], torch.tensor([i]), rest[j:]])
        else:
            order = torch.cat([order[i:], order[:i]])
        tried[b, 1 : n + 1] = best[b, 1 + order]
        if (own := price(tried)) < least:
            best, least = tried, own
    return best


if __name__ == "__main__":
    from pplleak.cli import script

    script(__file__)
