"""Causal language modelling as a client's loss: transformers' own loss is the reference; which attacks know it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import texts
import torch
from command_line import one_line
from torch import Tensor

from pplleak import data
from pplleak.client import Client, networks
from pplleak.density import embedding_rows
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import Scenario, observe
from pplleak.inference import dager, isir, lamp
from pplleak.posterior import tokens
from pplleak.settings import Named


def shared(file: Path, batch: int = 1, loss: str = "next_token", **settings: Any) -> Observation:
    """What a small causal language model shares of a text's private sentences."""
    made = Named("gpt2", {"width": 32, "heads": 2, **settings})
    channel = Protection(channel=Named("gaussian", {"sigma": 1e-10}))
    return observe(Scenario(str(file), batch_size=batch, network=made, dtype="float64", loss=loss, protection=channel))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_gradient_is_that_of_transformers_own_loss(tied: bool, reduction: str, tmp_path: Path) -> None:
    import transformers

    file = texts.few(tmp_path / "few.txt")
    vocabulary, (x, _) = data.private(str(file)).vocabulary, data.private(str(file)).batch(0, 4)
    assert vocabulary is not None and len({int(n) for n in (x >= 3).sum(1)}) > 1  # sentences of several lengths
    size, length = len(vocabulary), x.shape[1]
    network = networks.get("gpt2")(
        (length,), size, vocabulary=size, width=8, heads=2, next_token=True, tied=tied
    ).double()  # fmt: skip
    client = Client(network, (length,), size, loss=f"next_token:reduction={reduction}", vocabulary=vocabulary)
    assert client.path == ("vmap" if tied else "lazy")  # a table that is used twice has no closed form
    ours = client.split(client.update(x.double(), torch.zeros(4).long()).materialise())
    config = transformers.GPT2Config(
        vocab_size=size, n_embd=8, n_layer=2, n_head=2, n_positions=length, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, attn_implementation="eager", tie_word_embeddings=tied, use_cache=False,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).double()
    model.transformer.load_state_dict(network.body.state_dict())
    if not tied:
        model.lm_head.weight.data = network.head.weight.data.clone()
    ids = x.long()
    labels = ids.masked_fill(ids == 0, -100)
    loss = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
    count = (labels[:, 1:] != -100).sum()
    (loss if reduction == "mean" else loss * count).backward()
    theirs = {n.replace("transformer", "body").replace("lm_head", "head"): p.grad for n, p in model.named_parameters()}
    assert theirs.keys() == ours.keys()
    for name, grad in theirs.items():  # they compute the loss in float32, whatever the model
        assert grad is not None
        torch.testing.assert_close(ours[name], grad, rtol=1e-4, atol=1e-5 * float(grad.abs().max()))
    logits = model(input_ids=ids, attention_mask=(ids != 0).long()).logits[:, :-1]
    exact = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction=reduction)
    gradients = torch.autograd.grad(exact, list(model.parameters()))
    for (name, _), grad in zip(theirs.items(), gradients, strict=True):
        torch.testing.assert_close(ours[name], grad, rtol=1e-9, atol=1e-12)
    lengths = (ids != 0).sum(1).double() - 1  # the mean is over tokens, and not over sentences
    alone = torch.stack([client.update(x[k : k + 1].double(), torch.zeros(1).long()).materialise() for k in range(4)])
    weight = lengths / lengths.sum() if reduction == "mean" else torch.ones(4).double()
    whole = torch.cat([g.flatten() for g in ours.values()])
    torch.testing.assert_close((weight[:, None] * alone).sum(0), whole, rtol=1e-9, atol=1e-12)
    if reduction == "mean":
        assert not torch.allclose(alone.mean(0), whole, rtol=1e-3)


def _found(observed: Observation, ids: Tensor) -> float:
    """The share of the private sentences that are among ids."""
    assert observed.truth is not None
    own = {tuple(row) for row in ids.round().long().tolist()}
    return sum(tuple(row) in own for row in observed.truth.long().tolist()) / len(observed.truth)


@pytest.mark.slow
def test_rows_name_words_where_the_output_layer_is_another_and_dager_reads_sentences(tmp_path: Path) -> None:
    file = texts.written(tmp_path / "notes.txt")
    for tied in (True, False):
        observed = shared(file, tied=tied)
        named = embedding_rows.named(observed)
        assert named is not None and named.tied == tied and observed.truth is not None
        if not tied:
            true = {int(i) for i in observed.truth.long().flatten() if i >= 3}
            assert named.exact and set(named.tokens) == true
        noisy = embedding_rows.named(replace(observed, protection=observed.protection.with_sigma(1e-3)))
        assert noisy is not None and noisy.tied == tied  # behind noise, too, where sizes do not tell
        posterior = dager.run(lambda: None, observed, observed.client)
        assert _found(observed, torch.as_tensor(posterior.mode)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_dager_tells_the_sentences_of_a_language_models_batch_apart(tied: bool, tmp_path: Path) -> None:
    """One that begins as another does, and one that occurs twice, are told by the whole gradient, not by the span."""
    lines = ["the clerk signs a letter before noon", "the clerk signs a letter", "our bank keeps every record",
             "the clerk signs a letter", "a lawyer denies", "our hospital shares the contract"]  # fmt: skip
    observed = shared(texts.written(tmp_path / "notes.txt", texts.sentences() + lines), 4, width=64, tied=tied)
    vocabulary = observed.client.vocabulary
    assert vocabulary is not None
    place = {word: k for k, word in enumerate(vocabulary.tokens)}
    length = observed.client.input_shape[0]
    ids = torch.stack([vocabulary.framed([place[w] for w in line.split()], length) for line in lines])
    for picks in ([0, 2, 4, 5], [0, 1, 2, 5], [1, 2, 3, 5]):
        x = ids[picks].double()
        g = observed.client.update(x, torch.zeros(4).long()).materialise().detach()
        seen = replace(observed, g=g, truth=x)
        found = dager.run(lambda: None, seen, seen.client)
        assert sorted(found.mode.astype(int).tolist()) == sorted(x.long().tolist())
        assert not found.reasons and found.attrs["found"] == 4
        wrong = replace(seen, g=g + 0.3 * g.std() * torch.randn_like(g))  # and said to be without noise
        try:
            lost = dager.run(lambda: None, wrong, wrong.client)
        except BadInput as refused:
            assert "isir" in str(refused) or "narrower" in str(refused) or "wider" in str(refused)
        else:
            assert _found(wrong, torch.as_tensor(lost.mode)) < 1


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "loss"), [(1, "next_token"), (2, "next_token"), (2, "next_token:reduction=sum")])
def test_a_sampler_of_sentences_finds_those_of_a_language_model(batch: int, loss: str, tmp_path: Path) -> None:
    observed = shared(texts.few(tmp_path / "few.txt"), batch, loss, depth=1)
    observed = replace(observed, protection=observed.protection.with_sigma(1e-3))
    _, model = texts.shared(tmp_path / "few.txt", "gpt2", batch=batch, sigma=1e-3, depth=1)
    posterior = isir.run(model, observed, observed.client, draws=8, chains=4, islands=2)
    vocabulary = observed.client.vocabulary
    assert vocabulary is not None and observed.truth is not None
    found = tokens.tokens(posterior.with_(truth=observed.truth.numpy()), vocabulary)
    assert found.right is not None and found.right.all() and found.probability.min() > 0.9


def test_what_does_not_know_the_loss_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = texts.few(tmp_path / "few.txt")
    observed = shared(file, depth=1)
    with pytest.raises(BadInput, match="behind next_token that is the sentence itself"):
        lamp.run(lambda: None, observed, observed.client)
    words = ["attack", "--loss", "next_token", "--out", str(tmp_path / "out"), "--data"]
    one_line([*words, str(file), "--network", "bert"], capsys, "logits of the next token at every place")
    one_line([*words, "digits"], capsys, "logits of the next token at every place")
