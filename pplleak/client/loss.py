"""The loss ℓ of a client: what each example of a batch adds, one function each, and how the batch is reduced.

    cross_entropy      cross_entropy:label_smoothing=0.1,reduction=sum      mse      bce:weights=(1.0,2.5)
    next_token         of a causal language model, whose targets are its own inputs

A function loss(logits, y, *, …settings) -> (examples,) of the network's output (examples, num_classes) and targets y
is all that a new one needs: labels (examples,), or vectors (examples, num_classes). It is found here by its name. A
loss of the user's own is such a function of a file, FILE.py:FUNCTION, which no file from others ever names
(`built_in_loss`). Three settings belong to all of them:

    reduction   mean: Σ_b w_b ℓ_b / Σ_b w_b;   sum: Σ_b w_b ℓ_b
    weights     of the classes, w_b = weights[y_b], as PyTorch's `weight`; () weighs all alike; of next_token w_b is
                the number of tokens that sentence b predicts, so that all tokens of a batch count alike
    targets     what y is: classes, probabilities, binary, real, or input (`pplleak.client.targets`)

Networks that draw noise return their own penalty beside the logits (`pplleak.federation.defences.precode`), which is
added to ℓ_b.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from pplleak import blame, programs, sources
from pplleak.client.targets import Kind
from pplleak.data.vocabulary import PAD
from pplleak.errors import BadInput, printable
from pplleak.settings import Named

Output = Tensor | tuple[Tensor, Tensor]  # logits; of a network with noise, also what each example adds to the loss
DEFAULT = "cross_entropy"
ARGUMENTS = ["logits", "y"]  # of a loss, before its settings
SHARED: dict[str, Any] = {"reduction": "mean", "weights": (), "targets": "classes"}
TARGETS: dict[str, tuple[Kind, ...]] = {  # that a built-in loss compares with; one of the user's own takes any
    "cross_entropy": ("classes", "probabilities"),
    "bce": ("classes", "probabilities", "binary", "input"),
    "mse": ("classes", "probabilities", "binary", "real", "input"),
    "next_token": ("input",),
}


def cross_entropy(logits: Tensor, y: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """−Σ_k q_k log softmax(logits)_k in nats, q = (1 − s) e_y + s / K with s the label smoothing; e_y a one-hot label,
    or probabilities y."""
    return F.cross_entropy(logits, y, reduction="none", label_smoothing=label_smoothing)


def bce(logits: Tensor, y: Tensor) -> Tensor:
    """Binary cross entropy of every logit against the one-hot label, or a vector y, its mean over the K, in nats."""
    logits = logits.flatten(1)
    return F.binary_cross_entropy_with_logits(logits, _vector(logits, y), reduction="none").mean(-1)


def mse(logits: Tensor, y: Tensor) -> Tensor:
    """Squared error of the outputs against the one-hot label, or a vector y, its mean over the K."""
    logits = logits.flatten(1)
    return (logits - _vector(logits, y)).square().mean(-1)


def next_token(logits: Tensor, y: Tensor) -> Tensor:
    """Causal language modelling: −log softmax(logits_t)[w_{t+1}] in nats, mean over the places t that a token follows,
    of logits (examples, length, V) and the token ids w = y (examples, length); [PAD] is no target.

    With the mean over a batch, it is the loss of transformers' GPT2LMHeadModel with labels=w, and −100 for [PAD]."""
    ids = y.long()
    each = F.cross_entropy(logits[:, :-1].mT, ids[:, 1:], reduction="none", ignore_index=PAD)
    return each.sum(1) / predicted(y).clamp(min=1).to(each.dtype)


def predicted(ids: Tensor) -> Tensor:
    """How many tokens of sentences (…, length) have one before them, (…), int."""
    return (ids[..., 1:].long() != PAD).sum(-1)


def _vector(logits: Tensor, y: Tensor) -> Tensor:
    if y.is_floating_point():
        return y.flatten(1)
    return (torch.arange(logits.shape[-1], device=y.device) == y[..., None]).to(logits.dtype)


@dataclass(frozen=True)
class Loss:
    """A loss with its settings at their values; `each` gives ℓ_b (examples,)."""

    name: str
    each: Callable[[Tensor, Tensor], Tensor]
    reduction: str
    weights: tuple[float, ...]
    targets: Kind = "classes"

    @property
    def sums_to_zero(self) -> bool:
        """Whether Σ_k ∂ℓ/∂logit_k = 0, as of every cross entropy, of classes and of probabilities."""
        return self.name == DEFAULT

    @property
    def of_tokens(self) -> bool:
        """Whether the network gives logits at every position, and a sentence counts by its tokens."""
        return self.name == "next_token"

    def shares(self, y: Tensor, x: Tensor | None = None) -> Tensor:
        """w_b, over Σ_b w_b where the reduction is a mean: what each example's ℓ_b counts, (…, B) of labels y (…, B),
        or of vectors (…, B, K); x (…, B, length), sentences, where they count by their tokens."""
        one = torch.ones(y.shape[:-1] if y.is_floating_point() else y.shape, dtype=torch.float64, device=y.device)
        w = one.new_tensor(self.weights)[y] if self.weights else one
        if self.of_tokens:
            assert x is not None  # the sentences are their own targets
            w = predicted(x).to(one.dtype).expand(one.shape)
        return w / w.sum(-1, keepdim=True) if self.reduction == "mean" else w


def names() -> dict[str, str]:
    """Every loss with the first line of its docstring."""
    return sources.functions(Path(__file__), ARGUMENTS)


@functools.cache  # a client asks at every step
def get(text: str) -> Loss:
    """The loss of a name with settings, `cross_entropy:label_smoothing=0.1`; FILE.py:FUNCTION runs the file.

    Raises:
        BadInput: there is none of that name, with the near ones; an unknown setting; a value that is refused.
    """
    named = Named.parse(text)
    built_in = named.name in (known := names())
    function = globals()[named.name] if built_in else programs.named("loss", named.name, known)
    own = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for setting in named.settings:
        if setting not in (*own, *SHARED):
            raise BadInput(f"the loss {named.name} has no setting '{setting}': it has {', '.join((*own, *SHARED))}")
    able = TARGETS.get(named.name, get_args(Kind))
    reduction, weights, targets = (
        named.settings.get(n, default) for n, default in {**SHARED, "targets": able[0]}.items()
    )
    if reduction not in ("mean", "sum"):
        raise BadInput(f"the reduction of a loss is mean or sum, not {reduction!r}")
    if targets not in able:
        raise BadInput(f"the targets of the loss {named.name} are {', '.join(able)}, not {printable(targets)}")
    weights = weights if isinstance(weights, tuple) else (weights,)
    if not all(isinstance(w, (int, float)) and math.isfinite(w) and w > 0 for w in weights):
        raise BadInput(f"the weights of a loss are one positive number a class, not {weights!r}")
    if weights and targets != "classes":
        raise BadInput(f"weights count classes, and the targets of this loss are {targets}: leave one of them out")
    settings = {n: v for n, v in named.settings.items() if n in own}
    smoothing = settings.get("label_smoothing", 0.0)
    if not (isinstance(smoothing, (int, float)) and 0 <= smoothing <= 1):
        raise BadInput(f"label_smoothing must lie between 0 and 1, not {smoothing!r}")
    each = functools.partial(function, **settings)
    each = each if built_in else functools.partial(_checked, named.name, each)
    return Loss(named.name, each, reduction, tuple(map(float, weights)), targets)


def built_in_loss(text: str) -> bool:
    """Whether a loss is one of this file, and no code of somebody's."""
    return Named.parse(text).name in names()


def _checked(name: str, each: Callable[[Tensor, Tensor], Tensor], output: Tensor, y: Tensor) -> Tensor:
    """What a user's function returns, where that is a number an example."""
    values = each(output, y)
    if not isinstance(values, Tensor) or values.shape != output.shape[:1]:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise BadInput(f"the loss {name} must return one number an example, shape ({len(output)},), and returns "
                       f"{got}: compute it with reduction='none', and average over all but the first dimension; how "
                       "examples are put together is the setting reduction")  # fmt: skip
    return values


def check(text: str, outputs: int, inputs: int = 0) -> None:
    """Raise BadInput where a client of so many outputs, and entries of an input, cannot have this loss."""
    loss = get(text)
    if loss.weights and len(loss.weights) != outputs:
        raise BadInput(f"the loss has {len(loss.weights)} weights, and the network {outputs} classes: give one each")
    if outputs == 1 and loss.name == DEFAULT:
        raise BadInput("the network has one logit, and the cross entropy of one class is 0 whatever the data: its "
                       "gradient says nothing; give a network with a logit for each class")  # fmt: skip
    if loss.targets == "input" and loss.name in TARGETS and not loss.of_tokens and outputs != inputs:
        raise BadInput(f"the loss compares the output with the input itself (targets=input), and the network returns "
                       f"{outputs} numbers for {inputs}: give one that returns as many")  # fmt: skip


def probe(text: str, output: Tensor, y: Tensor) -> None:
    """Raise BadInput for a loss that fails on two examples, or that mixes them: each has a loss of its own."""
    loss = get(text)
    with blame.blamed(f"the loss {loss.name} fails on outputs of shape {tuple(output.shape)}"):
        both = loss.each(output, y)
        alone = torch.cat([loss.each(output[k : k + 1], y[k : k + 1]) for k in range(2)])
    if not both.isfinite().all():
        raise BadInput(f"the loss {loss.name} is NaN or infinite at the network's own output")
    if not torch.allclose(both, alone, rtol=1e-4, atol=1e-5):
        raise BadInput(f"the loss {loss.name} of an example depends on the rest of its batch: give one that does not")


def require_cross_entropy(loss: str, who: str) -> None:
    """Raise BadInput, in the name of what reads δ = softmax − e_y off a gradient, for a client of another loss."""
    if loss != DEFAULT:
        raise BadInput(f"{who} the mean cross entropy, and the client's loss is {loss}: take another way")


def total(loss: str, output: Output, x: Tensor, y: Tensor, shares: Tensor) -> Tensor:
    """Σ_b shares_b ℓ_b, with what the network adds to ℓ_b; shares (examples,) of `Loss.shares`."""
    logits, penalty = output if isinstance(output, tuple) else (output, None)
    each = get(loss).each(logits, x if get(loss).targets == "input" else y)
    each = each if penalty is None else each + penalty.reshape(each.shape)
    return (shares.to(each.dtype) * each).sum()
