"""What does a gradient of sentences reveal, by the rows of the embeddings, the span test, LAMP and the posterior?

    uv run benchmarks/text.py [--workers 2]

Sentences of 8 to 30 tokens out of the docstrings of Python's library and of scikit-learn (more than 5,000 different
words), classified by 2-layer networks of BERT's and GPT-2's shapes with random weights in float64; labels known. The
same batches for every attack:

    rows       the rows of the table's gradient that are not zero: words without an order. exact_rate: of batches, whose
               words are named exactly; rouge_l: of those words in the order of the vocabulary
    span       the inference `dager`
    lamp       the inference `lamp`, its cosine form, told the sentences' lengths
    tag        `lamp` as TAG has it: squared and absolute distances, no moves, no norm (the model `tag` is of pixels)
    posterior  the sampler `isir`, each token by the decision for its 0-1 loss

exact_rate: sentences right in every token; rouge_l: F₁, mean over the batches; se: of it; seconds: of an attack, the
mean. What an attack refuses counts as nothing found, and `refused` counts such batches; `cut`, those that an attack was
not through with after `limit` seconds: what it had until then is scored. σ = 1e-9 is a clean gradient. A batch that the
CSV of batches holds is not run again, unless it was cut short and has more time now. `minutes` ends a piece of the
work: what is under way by then is dropped. text.json says of which sentences the rows are.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import hashlib
import math
import re
import signal
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from pplleak import runs
from pplleak.data.vocabulary import SPECIAL
from pplleak.density import embedding_rows
from pplleak.errors import BadInput
from pplleak.federation.observation import Observation
from pplleak.federation.protection import Protection
from pplleak.federation.scenario import Scenario, observe
from pplleak.posterior import tokens
from pplleak.settings import Named
from pplleak.studies.attack.attack import attack
from pplleak.studies.audit.clock import Clock, OutOfTime

COLUMNS = ("shape", "batch", "sigma", "frozen", "attack", "batches", "exact_rate", "rouge_l", "se", "refused", "cut",
           "seconds")  # fmt: skip
EACH = {
    "shape": str, "batch": int, "sigma": float, "frozen": int, "attack": str, "index": int, "exact": float,
    "rouge_l": float, "why": str, "seconds": float,
}  # fmt: skip
WIDTHS = {1: 128, 4: 256, 16: 384}
CLEAN, NOISY = 1e-9, 1e-3
SENTENCES = 5_000
CUT, REFUSED = "cut short", "refused: "
GRACE = 30.0  # seconds beyond its limit for what follows on the search; what is not through by then is ended anyhow
Job = tuple[str, int, float, int, str, int]
KEY = ("shape", "batch", "sigma", "frozen", "attack", "index")


@dataclasses.dataclass(frozen=True)
class Settings:
    minutes: float = 7.0
    """For all; attacks under way by then are dropped."""
    limit: float = 120.0
    """Seconds for one attack."""
    workers: int = 1
    """Processes of one thread each."""
    text: Path = Path(tempfile.gettempdir()) / "pplleak-sentences.txt"
    """Where the sentences are written."""
    csv: Path = Path("benchmarks/results/text.csv")


def sentences() -> Iterator[str]:
    """Sentences of docstrings, in the order of their files."""
    sklearn = find_spec("sklearn")
    assert sklearn is not None and sklearn.origin is not None
    folders = (Path(sysconfig.get_path("stdlib")), Path(sklearn.origin).parent)
    files = [p for folder in folders for p in sorted(folder.rglob("*.py")) if "site-packages" not in str(p)
             or folder == folders[1]]  # fmt: skip
    for path in files:
        try:
            tree = ast.parse(path.read_text())
        except (SyntaxError, UnicodeDecodeError, ValueError):  # test files of Python's own
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                text = re.sub(r"\s+", " ", ast.get_docstring(node) or "")
                for sentence in re.split(r"(?<=[.!?]) ", text):
                    long = 8 <= len(re.findall(r"\w+|[^\w\s]+", sentence)) <= 30
                    if long and re.fullmatch(r"[A-Z][A-Za-z ,;:'()-]+\.", sentence):
                        yield sentence


def written(path: Path) -> Path:
    if not path.is_file():
        kept = list(dict.fromkeys(sentences()))
        picks = torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))[:SENTENCES].tolist()
        runs.text(path, "\n".join(kept[k] for k in picks) + "\n")
    return path


def plan() -> Iterator[Job]:
    """shape, batch, σ, frozen, attack and batch of every job, the cheap ones first."""
    counts = {("rows", 1): 5, ("rows", 4): 5, ("rows", 16): 3, ("span", 1): 5, ("span", 4): 3, ("lamp", 1): 3,
              ("tag", 1): 3, ("span", 16): 1, ("lamp", 4): 1, ("tag", 4): 1, ("posterior", 1): 1, ("lamp", 16): 1,
              ("tag", 16): 1, ("posterior", 4): 1, ("posterior", 16): 1}  # fmt: skip
    for (name, size), count in counts.items():
        for shape in ("bert", "gpt2"):
            for sigma in (CLEAN, NOISY):
                for frozen in (0, 1):
                    lean = size > 1 and (name in ("lamp", "tag", "posterior") or (name, size) == ("span", 16))
                    only = NOISY if name == "posterior" else CLEAN  # a posterior of clean gradients is one sentence
                    if (name == "posterior" and sigma != only) or (lean and (sigma != only or frozen)):
                        continue
                    yield from ((shape, size, sigma, frozen, name, k) for k in range(count))


def batch_of(path: Path, shape: str, size: int, sigma: float, frozen: int, k: int) -> Observation:
    network = Named(shape, {"width": WIDTHS[size], "frozen": bool(frozen)})
    return observe(
        Scenario(
            str(path), index=size * k, batch_size=size, seed=k, dtype="float64", network=network,
            protection=Protection(channel=Named("gaussian", {"sigma": sigma})),
        )
    )  # fmt: skip


SET: dict[str, tuple[str, dict[str, Any]]] = {
    "span": ("dager", {}),
    "lamp": ("lamp", {"steps": 200, "every": 40}),
    "tag": ("lamp", {"steps": 200, "every": 40, "matching": "tag", "moves": 0, "norm": 0.0}),
    "posterior": ("isir", {"chains": 4, "islands": 2, "draws": 20}),
}


def within(path: Path, limit: float, end: float, job: Job) -> dict[str, Any] | None:
    """The row of a job; None where the time of all, which ends at `end`, ends it before its own limit does."""
    left = end - time.time()  # the clock that processes share
    if left <= 0:
        return None
    try:
        row = measure(path, min(limit, left), *job)
    except Exception as error:  # a mistake of ours: it is said, and costs no other job
        print(f"{job}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return None
    return None if row["why"].startswith(CUT) and left < limit else row


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise OutOfTime, wherever the block then is."""

    def ring(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def measure(
    path: Path, limit: float, shape: str, size: int, sigma: float, frozen: int, name: str, k: int
) -> dict[str, Any]:
    observed = batch_of(path, shape, size, sigma, frozen, k)
    vocabulary, begun, why = observed.client.vocabulary, time.perf_counter(), ""
    assert vocabulary is not None and observed.truth is not None
    truth = observed.truth.long().cpu().numpy()
    estimate, exact = np.zeros_like(truth), None
    if name == "rows":
        found = embedding_rows.named(observed)
        if found is None:
            why = f"{REFUSED}the table is not shared"
        else:
            exact = float({int(i) for i in truth.flatten() if i >= len(SPECIAL)} == set(found.tokens))
            estimate = np.broadcast_to(np.array(found.tokens, dtype=int), (size, len(found.tokens)))
    else:
        inference, settings = SET[name]
        clock = Clock(limit)
        try:
            with alarm(limit + GRACE):
                made = attack(observed, inference=inference, settings=settings, seed=k, progress=clock)
            estimate = tokens.tokens(made, vocabulary).estimate
            why = "; ".join(made.doubts)
            why = f"{CUT} after {limit:g} s; {why}" if clock.fired else why
        except BadInput as error:
            why = f"{REFUSED}{error}"
        except KeyboardInterrupt as stop:
            if not (clock.fired or isinstance(stop, OutOfTime)):
                raise
            why = f"{CUT} after {limit:g} s, before it had anything"
    if exact is None:
        exact = 0.0 if estimate.shape != truth.shape else float((estimate == truth).all(1).mean())
    return {
        "shape": shape, "batch": size, "sigma": sigma, "frozen": frozen, "attack": name, "index": k, "exact": exact,
        "rouge_l": float(np.mean(tokens.rouge(vocabulary, estimate, truth)["rougeL"])), "why": why[:200],
        "seconds": time.perf_counter() - begun,
    }  # fmt: skip


def pooled(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Batches of one shape, size, noise and attack in one row."""
    score = np.array([r["rouge_l"] for r in rows])
    return {
        **{n: rows[0][n] for n in ("shape", "batch", "sigma", "frozen", "attack")}, "batches": len(rows),
        "exact_rate": float(np.mean([r["exact"] for r in rows])), "rouge_l": float(score.mean()),
        "se": float(score.std(ddof=1) / math.sqrt(len(rows))) if len(rows) > 1 else None,
        **{n: sum(r["why"].startswith(word) for r in rows) for n, word in (("refused", REFUSED), ("cut", CUT))},
        "seconds": float(np.mean([r["seconds"] for r in rows])),
    }  # fmt: skip


def again(row: dict[str, Any], limit: float) -> bool:
    """Whether a row was cut short after less time than there is now."""
    cut = re.match(rf"{CUT} after ([\d.e+]+) s", row["why"])
    return cut is not None and float(cut[1]) < limit


def main(args: Settings) -> None:
    torch.set_num_threads(1)
    end, path = time.time() + 60 * args.minutes, written(args.text)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    runs.settle(args.csv.with_suffix(".json"), {"sentences": digest}, "rows of the text")
    kept = runs.Rows(args.csv.with_name(f"{args.csv.stem}_batches.csv"), EACH, KEY)
    done = {kept.about(r) for r in kept.read() if not again(r, args.limit)}
    jobs = [job for job in plan() if job not in done]
    left = len(jobs)
    try:
        with runs.workers(args.workers) as executor:
            for row in runs.spread(functools.partial(within, path, args.limit, end), jobs, executor):
                if row is not None:
                    kept.add([row])
                    left -= 1
    except KeyboardInterrupt:
        print("interrupted: finished attacks are kept", file=sys.stderr)
    except runs.WorkerLost as error:
        print(error, file=sys.stderr)
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in kept.read():
        groups.setdefault(tuple(row[n] for n in KEY[:-1]), []).append(row)
    order = {job[:-1]: k for k, job in enumerate(plan())}
    rows = [pooled(groups[g]) for g in sorted(groups, key=lambda g: order.get(g, len(order)))]
    runs.table(args.csv, rows, list(COLUMNS))
    for r in rows:
        error = "" if r["se"] is None else f" ± {r['se']:.3f}"
        frozen = ", frozen" if r["frozen"] else ""
        ended = "".join(f", {r[n]} {word}" for n, word in (("refused", "refused"), ("cut", CUT)) if r[n])
        print(f"{r['shape']}, batch {r['batch']}, σ {r['sigma']:g}{frozen}, {r['attack']}: exact "
              f"{r['exact_rate']:.0%}, ROUGE-L {r['rouge_l']:.3f}{error}; "
              f"{r['batches']} batches{ended}, {r['seconds']:.1f} s")  # fmt: skip
    print(f"{left} attacks are left: run it again" if left else "complete")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
