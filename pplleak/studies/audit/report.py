"""The report: one HTML file that opens from disk, asks no network for anything, and can be read by anyone."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pplleak import reading, runs
from pplleak.errors import BadInput, printable
from pplleak.federation.protection import Protection
from pplleak.posterior import Posterior
from pplleak.posterior.summary import colour, verdict
from pplleak.studies.attack import listed, pages
from pplleak.studies.attack.attributes import versions
from pplleak.studies.audit import audit, counted, curves, figures, frontier, pictures, utility, words

FILE, TEMPLATE = "report.html", "report.html"
NC, ATTACK = "posterior.nc", "attack"  # of a folder that `pplleak attack` wrote
Row = dict[str, Any]
YES, NO, OPEN = "yes", "no", "not known"
NOTHING = "no protection"
FEWEST = 4  # private examples: a share of fewer says nothing


def write(folder: Path, posterior: Posterior | None = None) -> list[str]:
    """Write report.html into the folder of an attack or an audit, and give its first sentences.

    Args:
        posterior: what the folder of an attack holds, if it is at hand.

    Raises:
        BadInput: the folder holds neither.
    """
    if (folder / audit.TABLE).is_file():
        recorded, tried = (t.read() for t in audit.tables(folder))
        of, anew = list(audit.results(folder, recorded)), tried
        settings = _settings(folder / audit.SETTINGS)
    elif (folder / NC).is_file():
        posterior = Posterior.load(folder / NC) if posterior is None else posterior
        if (alone := listed.page(posterior, folder)) is not None:
            return alone
        of, settings, anew = [(folder.resolve().name, [({}, folder / NC)])], {}, []
    else:
        raise BadInput(f"{printable(folder)} holds no result of `pplleak attack` or `pplleak audit`: name its folder")
    opened = {} if posterior is None else {folder / NC: posterior}
    sections = [section(k, name, found, settings.get("files", {}), opened) for k, (name, found) in enumerate(of, 1)]
    accuracy, plain, steps = utility.accuracies(folder) if anew else ({}, "", 0)
    tradeoff = frontier.points([r for _, rows in of for r, _ in rows if r], anew, accuracy, plain) if anew else []
    said = words.first_screen(sections, frontier.sentences(tradeoff) if anew else [])
    whole = _whole(sections, anew, curves.read(folder), tradeoff) | {"steps": steps}
    runs.text(folder / FILE, render(sections, said, settings, whole))
    return [*said["gives"], *said["sure"], *(said["protect"][:2] if anew else [])]


def _whole(
    sections: Sequence[Row], anew: Sequence[Row], guessed: curves.Guess | None, tradeoff: Sequence[frontier.Point]
) -> Row:
    """What the page says of all updates together: curves, their drawings and the numbers behind them."""
    recorded = [r for s in sections for r in s["curves"]]
    tried = [r | {"near": [float(v) for v in r["each"].split()], "protected": f"{_protected(r)}, shared anew"}
             for r in anew]  # fmt: skip
    noisy = [r for r in tried if curves.noise_of(r["protection"])]
    found, private = ([g for g in curves.groups(rows) if len(g.errors) >= FEWEST] for rows in (recorded, noisy))
    table = [
        {"group": g.name, "attack": g.attack, "delta": d, "realised": g.realised(d),
         "guess": None if guessed is None else guessed.at(g.known)[k][0],
         "limit": None if guessed is None else g.limit(guessed.at(g.known)[k][1])}
        for g in found for k, d in enumerate(curves.DELTAS)
    ]  # fmt: skip
    return {
        "risk": Markup(figures.risk(found, guessed)), "said": curves.sentences([*found, *private], guessed),
        "privacy": Markup(figures.privacy([*found, *private], guessed)), "curves": table,
        "images": 0 if guessed is None else guessed.images,
        "frontier": Markup(figures.tradeoff(tradeoff)), "points": tradeoff, "named": any(p.named for p in tradeoff),
        "things": words.things({"unit": next((p.unit for p in tradeoff if p.unit), "")}),
    }  # fmt: skip


@functools.cache
def _template() -> Any:
    return pages.template("audit", TEMPLATE, finalize=_plain)


def render(
    sections: Sequence[Mapping[str, Any]], said: Mapping[str, list[str]], settings: Mapping[str, Any], whole: Row
) -> str:
    """The page. Everything that stands in it is escaped: names come from files."""
    shown = {n: v for n, v in settings.items() if n != "files" and v not in (None, "", [], {})}
    return _template().render(
        sections=sections, said=said, whole=whole, settings=shown, levels=words.LEVELS, versions=versions()
    )


def _plain(value: Any) -> Any:
    """Words without the letters that a terminal or a browser would obey; the page's own pictures as they are."""
    ours = isinstance(value, Markup) or (isinstance(value, str) and value.startswith(pictures.DATA))
    return value if ours or not isinstance(value, str) else printable(value, 2000)


def section(
    number: int,
    name: str,
    found: Sequence[tuple[Row, Path | None]],
    digests: Mapping[str, str],
    opened: Mapping[Path, Posterior],
) -> Row:
    """All that the page says of one update. opened: the results that need not be read."""
    posteriors: dict[str, Posterior] = {}
    rows = []
    for row, path in found:
        posterior = None if path is None else opened.get(path) or Posterior.load(path)
        row = row if row or posterior is None else _row(name, posterior)
        if posterior is not None:
            posteriors[row["attack"]] = posterior
        rows.append(row)
    finding = words.finding(rows)
    near = {a: audit.near(p) for a, p in posteriors.items()}
    chosen = _chosen(finding, rows, posteriors)
    told = next((r for r in rows if r["protection"]), rows[0])  # one that was declined unseen does not say it
    base: Row = {
        "number": number, "name": printable(name), "level": finding.level, "measured": finding.measured,
        "words": words.LEVELS[finding.level],
        "why": finding.why, "attacks": [_shown(r) for r in rows], "answers": [], "pictures": [], "features": [],
        "verdict": "", "colour": "open", "assumptions": [], "provenance": [], "trusted": None, "local": False,
        "examples": max((r["examples"] for r in rows), default=0), "more": 0,
        **{n: next((r[n] for r in rows if r[n] is not None), None) for n in ("guess_psnr", "replay", "epsilon")},
        "best_psnr": max((r["best_psnr"] for r in rows if r["best_psnr"] is not None), default=None),
        "counted": counted.worst(rows), "records": [], "sentences": [], "rows": "", "known": False, "sure": False,
        **{n: next((r[n] for r in rows if r[n] is not None), None) for n in ("named", "named_right")},
        "protected": _in_words(str(told["protection"])), "protection": _protected(told),
        "curves": [{**{n: r[n] for n in ("attack", "labels", "examples")}, "name": name,
                    "protection": told["protection"], "protected": _in_words(str(told["protection"])),
                    "near": near.get(r["attack"], [])}
                   for r in rows] if any(near.values()) else [],
    }  # fmt: skip
    if chosen is None:
        return base
    posterior, row = posteriors[chosen], next(r for r in rows if r["attack"] == chosen)
    summary = posterior.summary
    counts = counted.counts(posterior)
    pictured = [] if counts else pictures.rows(posterior, summary["prior_sd"])
    return base | {
        "verdict": verdict(summary), "colour": colour(summary), "trusted": summary["trusted"],
        "answers": _answers(summary), "pictures": pictured, "features": [] if counts else pictures.features(posterior),
        "more": len(posterior.mode) - len(pictured) if pictured else 0, "local": bool(posterior.attrs.get("local")),
        "assumptions": _assumptions(posterior, row), "provenance": _provenance(posterior, row, found, digests),
        "shown": row["attack"], **listed.parts(posterior, summary),
    }  # fmt: skip


def _row(name: str, posterior: Posterior) -> Row:
    """The row that an audit would have of the result of an attack."""
    attrs = posterior.attrs
    return dict.fromkeys(audit.COLUMNS) | {
        "name": name, "attack": Path(str(attrs.get("inference", ATTACK))).stem, "status": audit.DONE, "why": "",
        "seconds": float(attrs.get("seconds") or 0.0), "examples": len(posterior.mode), "assumed": "",
        "labels": attrs.get("labels_are", ""), "protection": str(attrs.get("protection", "")),
        **audit.scores(posterior),
    }  # fmt: skip


def _chosen(finding: words.Finding, rows: Sequence[Row], posteriors: Mapping[str, Posterior]) -> str | None:
    """The attack that is shown: the last whose result can be believed; else the one that the finding rests on; else
    any."""
    trusted = [r["attack"] for r in rows if r["attack"] in posteriors and r["trusted"]]
    rested = [] if finding.row is None else [finding.row["attack"]]
    return next(iter([*reversed(trusted), *(a for a in rested if a in posteriors), *posteriors]), None)


def _protected(row: Row) -> str:
    name = _in_words(str(row["protection"]))
    return f"{name}, ε = {_round(row['epsilon'])}" if row["epsilon"] is not None and name != NOTHING else name


def _round(epsilon: float) -> str:
    return f"{epsilon:.3g}" if epsilon < 100 else f"{epsilon:,.0f}"


@functools.cache
def _in_words(name: str) -> str:
    """A protection as the page names it."""
    if not name or name.startswith(("none", "gaussian:sigma=infer")):
        return NOTHING
    if name.startswith("gaussian:sigma=") and _tiny(name.removeprefix("gaussian:sigma=")):
        return NOTHING  # σ of the rounding of numbers
    try:
        parts = Protection.parse(name)
    except BadInput:
        return name  # of another version, or of no name at all
    channel = parts.channel
    if channel is None or channel.name != "dpsgd" or parts.defence is not None:
        return name
    z, clip = (channel.settings.get(n, "?") for n in ("noise_multiplier", "clip"))
    return f"DP-SGD (noise {z}, clip {clip})"


def _tiny(text: str) -> bool:
    try:
        return float(text) < 1e-4
    except ValueError:
        return False


def _shown(row: Row) -> Row:
    number = {n: "–" if row[n] is None else f"{row[n]:.1f}" for n in ("psnr", "best_psnr", "worst_psnr")}
    ratio = "–" if row["sd_ratio"] is None else f"{row['sd_ratio']:.0%}"
    bits = "–" if row["bits"] is None or not math.isfinite(row["bits"]) else f"{row['bits']:.0f}"
    trusted = {True: YES, False: NO, None: "–"}[row["trusted"]]
    units = {n: "–" if row[n] is None else f"{row[n]}" for n in ("right", "units", "whole")}
    units["claimed"] = "–" if row["claimed"] is None else f"{row['claimed']:.0%}"
    return {"attack": row["attack"], "status": row["status"], "why": row["why"], "seconds": f"{row['seconds']:.1f}",
            **number, **units, "sd_ratio": ratio, "bits": bits, "trusted": trusted}  # fmt: skip


def _answers(summary: Mapping[str, Any]) -> list[Row]:
    """The verdict's three answers, in the order in which they are asked."""
    fit = list(summary["doubts_of_fit"])
    ended = [d for d in summary["doubts"] if d not in fit]
    ratio = summary["sd_ratio"]
    says = None if ratio is None or summary["kind"] == "point" else ratio < words.LITTLE
    things = words.things(summary)
    asked = (
        ("Fit", "Does the model of the client explain what was shared?", summary["fits"], fit),
        ("Convergence", "Did the computation end where it should?", summary["converged"], ended),
        ("Signal", f"Does the update say more than public {things} do?", says,
         [] if ratio is None else [f"{ratio:.0%} of the prior's uncertainty is left"]),
    )  # fmt: skip
    state = {True: YES, False: NO, None: OPEN}
    return [{"name": n, "question": q, "answer": state[a], "because": b} for n, q, a, b in asked]


def _assumptions(posterior: Posterior, row: Row) -> list[tuple[str, str]]:
    attrs, sigma = posterior.attrs, posterior.attrs.get("sigma")
    local = attrs.get("local")
    trained = "; ".join(f"{n} {v['name'] if isinstance(v, dict) else v}" for n, v in local.items()) if local else ""
    said = [
        ("who attacks", "a server that is honest but curious: it runs the protocol, and computes with what it gets"),
        ("weights", "the server sent them, and knows them and the network's buffers"),
        ("network", f"{attrs.get('network', '?')} {_settings_of(attrs.get('network_settings'))}".strip()),
        ("loss", str(attrs.get("loss") or "cross_entropy")),
        ("what the client does", f"local training, known to the server: {trained}" if trained else "one gradient"),
        ("labels", row["labels"] or "as the result says"),
        ("protection", str(attrs.get("protection") or "none")),
        ("noise σ", f"{sigma:.3g}{', inferred' if 'log_sigma' in posterior.latents else ''}" if sigma else "not known"),
        ("knowledge of the data", f"{_prior(attrs)}; fitted to public {words.things(attrs)}"),
        *(("beside that", part) for part in row["assumed"].split("; ") if part),
    ]  # fmt: skip
    if row["epsilon"] is not None:
        said.append(("ε of DP-SGD", f"{row['epsilon']:.4g}, of all steps up to this one"))
    return [(n, printable(v, 400)) for n, v in said]


def _prior(attrs: Mapping[str, Any]) -> str:
    beliefs = attrs.get("beliefs")
    return str((beliefs if isinstance(beliefs, dict) else {}).get("prior", "the prior of the model"))


def _settings_of(settings: Any) -> str:
    return ", ".join(f"{n} = {v}" for n, v in settings.items()) if isinstance(settings, dict) else ""


def _provenance(
    posterior: Posterior, row: Row, found: Sequence[tuple[Row, Path | None]], digests: Mapping[str, str]
) -> list[tuple[str, str]]:
    attrs = posterior.attrs
    path = next(p for r, p in found if p is not None and (not r or r["attack"] == row["attack"]))
    observed = str(attrs.get("observed") or attrs.get("data") or "")
    made = [
        ("observation", observed),
        ("its SHA-256", next((d for f, d in digests.items() if f == observed), "")),
        ("result", path.name),
        ("its SHA-256", hashlib.sha256(path.read_bytes()).hexdigest()),
        ("model × inference", f"{attrs.get('model')} × {attrs.get('inference')}"),
        ("settings", _settings_of(attrs.get("settings"))),
        ("seed", str(attrs.get("seed"))),
        ("command", str(attrs.get("command", ""))),
        ("seconds", f"{row['seconds']:.1f}"),
        ("versions", _settings_of(attrs.get("versions"))),
    ]
    return [(n, printable(v, 600)) for n, v in made if v]


def _settings(path: Path) -> Row:
    if not path.is_file():
        return {}
    read: Row = reading.decoded(reading.contents(path), dict[str, Any], printable(path))
    files = read.get("files", {})
    return {**{n: printable(v, 600) for n, v in read.items() if n != "files"},
            "files": files if isinstance(files, dict) else {}}  # fmt: skip
