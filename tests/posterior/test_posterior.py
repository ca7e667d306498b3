"""The result: what goes into the file comes out of it, decisions are the optimal ones, and doubts are said."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import arviz_base
import numpy as np
import pytest
import xarray

from pplleak.errors import BadInput
from pplleak.posterior import Posterior


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def made(
    shape: tuple[int, ...] = (1, 3, 2), dtype: Any = np.float32, chains: int = 3, draws: int = 8, **changes: Any
) -> Posterior:
    """A posterior with every field filled: batch 2."""
    r = rng()
    x = r.random((chains, draws, 2, *shape)).astype(dtype)
    full = Posterior(
        x=x,
        y=r.integers(0, 10, (chains, draws, 2)),
        mode=x[0, 0],
        kind="sampler",
        stats={"lp": r.normal(size=(chains, draws)), "diverging": r.random((chains, draws)) < 0.1},
        curves={"elbo": r.normal(size=11), "log_density": r.normal(size=(5, 4))},
        log_weights=r.normal(size=chains * draws),
        reasons=("the network has kinks (relu)", 'said "twice"'),
        attrs={"model": "dlg", "seed": 3, "sigma": 0.1, "labels": None, "settings": {"a": [1, 2.5]}, "index": 7},
        truth=r.random((2, *shape)).astype(dtype),
        g=r.normal(size=17).astype(dtype),
    )
    return full.with_(**changes)


def assert_same(a: Posterior, b: Posterior) -> None:
    for field in dataclasses.fields(Posterior):
        one, two = getattr(a, field.name), getattr(b, field.name)
        if field.name in ("stats", "curves"):
            assert set(one) == set(two)
            pairs = [(one[n], two[n]) for n in one]
        else:
            pairs = [(one, two)]
        for p, q in pairs:
            if isinstance(p, np.ndarray):
                assert isinstance(q, np.ndarray)
                assert p.dtype == q.dtype, field.name
                assert p.shape == q.shape, field.name
                assert p.tobytes() == q.tobytes(), field.name
            else:
                assert p == q, field.name
                assert type(p) is type(q), field.name


ROUNDS: dict[str, Callable[[Posterior, Path], Posterior]] = {
    "ArviZ": lambda p, _: Posterior.from_arviz(p.to_arviz()),
    "NetCDF": lambda p, folder: (p.save(folder / "p.nc"), Posterior.load(folder / "p.nc"))[1],
}
CONTENTS: dict[str, Callable[[], Posterior]] = {
    "everything": made,
    "float64": lambda: made(dtype=np.float64),
    "colour": lambda: made((3, 4, 5)),
    "a table": lambda: made((5,)),
    "no truth": lambda: made(truth=None, g=None, log_weights=None),
    "point": lambda: made(chains=1, draws=1, kind="point", stats={}, curves={}, log_weights=None, reasons=()),
    "approximation": lambda: made(kind="approximation"),
    "NaN in a statistic": lambda: made(
        stats={"lp": np.array([[np.nan, np.inf], [-np.inf, -0.0]]).repeat(4, 1)}, chains=2
    ),
}


@pytest.mark.parametrize("by", ROUNDS)
@pytest.mark.parametrize("content", CONTENTS)
def test_everything_comes_back_bitwise(by: str, content: str, tmp_path: Path) -> None:
    posterior = CONTENTS[content]()
    once = ROUNDS[by](posterior, tmp_path)
    assert_same(posterior, once)
    if content == "everything":  # and what came back is written as it was
        assert_same(posterior, ROUNDS[by](once, tmp_path))


ATTRIBUTES = ["dlg", "7", "1e5", "true", "null", "[1]", "a b", "", 3, 0.5, None, [1, 2], {"a": None}, True]


@pytest.mark.parametrize("by", ROUNDS)
def test_attributes_come_back_as_they_were(by: str, tmp_path: Path) -> None:
    """All in one file, since a file each costs more than the look."""
    said = {repr(value): value for value in ATTRIBUTES}
    back = ROUNDS[by](made(attrs=said), tmp_path).attrs
    assert back == said
    assert {n: type(v) for n, v in back.items()} == {n: type(v) for n, v in said.items()}


def test_the_tree_has_arvizs_groups_and_names_its_dimensions(tmp_path: Path) -> None:
    made().save(tmp_path / "p.nc")
    with xarray.open_datatree(tmp_path / "p.nc", engine="h5netcdf") as tree:
        assert set(tree.children) == {"posterior", "sample_stats", "observed_data", "constant_data", "curves"}
        assert tree["posterior"]["x"].dims == ("chain", "draw", "example", "channel", "row", "col")
        assert tree["posterior"]["x"].shape == (3, 8, 2, 1, 3, 2)
        assert tree["posterior"]["y"].dims == ("chain", "draw", "example")
        assert tree["sample_stats"]["lp"].dims == ("chain", "draw")
        assert (
            tree["constant_data"]["truth"].dims
            == tree["constant_data"]["mode"].dims
            == ("example", "channel", "row", "col")
        )
        assert tree.attrs["model"] == "dlg"


@pytest.mark.parametrize("content", ["everything", "a table", "NaN in a statistic"])
def test_the_file_is_the_one_that_xarray_writes_of_the_tree(content: str, tmp_path: Path) -> None:
    posterior = CONTENTS[content]()
    tree = posterior.to_arviz()
    posterior.save(tmp_path / "ours.nc")
    packed = {
        f"/{name}": {str(v): {"zlib": True, "complevel": 1} for v in node.data_vars}
        for name, node in tree.children.items()
    }
    tree.to_netcdf(tmp_path / "theirs.nc", engine="h5netcdf", encoding=packed)
    ours, theirs = (xarray.open_datatree(tmp_path / f"{n}.nc", engine="h5netcdf") for n in ("ours", "theirs"))
    with ours, theirs:
        xarray.testing.assert_identical(ours, theirs)
        for name, node in theirs.children.items():
            for variable in node.variables:
                one, two = (
                    {n: v for n, v in t[name][variable].encoding.items() if n != "source"} for t in (ours, theirs)
                )
                np.testing.assert_equal(one, two)  # compression, chunks, fill value, type


def test_stock_arviz_reads_the_file_and_sees_the_same_diagnostics(tmp_path: Path) -> None:
    import arviz

    posterior = made(stats={"lp": rng(1).normal(size=(4, 50))}, chains=4, draws=50)
    posterior.save(tmp_path / "p.nc")
    tree = arviz.from_netcdf(tmp_path / "p.nc")
    summary = arviz.rhat(tree["posterior"].dataset[["x"]])
    worst = max(float(summary["x"].max()), float(arviz.rhat(posterior.stats["lp"])))
    assert posterior.rhat_max == pytest.approx(worst, rel=1e-6)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.nc"
    made().save(path)
    before = path.read_bytes()

    real = Path.write_bytes

    def fail(file: Path, content: bytes) -> None:  # HDF5 itself crashes there: `save` packs in memory
        real(file, bytes(content)[: len(content) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(BadInput, match="disk full"):
        made().save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_unwritable_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot write"):
        made().save(tmp_path / "file" / "p.nc")


def test_its_groups_are_those_that_arviz_makes_of_the_same_arrays() -> None:
    one = made()
    latents = {"log_sigma": one.y[..., 0] / 2, "of its own length": np.stack(3 * [one.y[..., 0]], -1)}
    tree, event = replace(one, latents=latents).to_arviz(), ["example", "channel", "row", "col"]
    every = {"x": one.x, "y": one.y, **latents}
    expected = arviz_base.from_dict({"posterior": every}, dims={"x": event, "y": event[:1]})
    xarray.testing.assert_identical(tree["posterior"].to_dataset(), expected["posterior"].to_dataset().drop_attrs())


def truncated(path: Path) -> None:
    made().save(path)
    path.write_bytes(path.read_bytes()[:2000])


def without(*lost: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        tree = made().to_arviz()
        for name in lost:
            group, _, variable = name.partition("/")
            tree[group] = xarray.DataTree(tree[group].dataset.drop_vars(variable))
        tree.to_netcdf(path, engine="h5netcdf")

    return write


FOREIGN: dict[str, Callable[[Path], None]] = {
    "missing": lambda path: None,
    "text": lambda path: (path.write_text("hello"), None)[1],
    "empty": lambda path: (path.write_bytes(b""), None)[1],
    "truncated": truncated,
    "another netcdf": lambda path: (xarray.Dataset({"a": ("b", [1.0])}).to_netcdf(path, engine="h5netcdf"), None)[1],
    "another posterior": lambda path: (
        xarray.DataTree.from_dict({"posterior": xarray.Dataset({"mu": ("chain", [1.0])})}).to_netcdf(
            path, engine="h5netcdf"
        ),
        None,
    )[1],
    "no x": without("posterior/x"),
    "no y": without("posterior/y"),
    "no mode": without("constant_data/mode"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_foreign_file_is_refused_in_one_line(what: str, tmp_path: Path) -> None:
    path = tmp_path / "p.nc"
    FOREIGN[what](path)
    with pytest.raises(BadInput, match=r"p\.nc|not written by pplleak") as error:
        Posterior.load(path)
    assert "\n" not in str(error.value)


# -- decisions -----------------------------------------------------------------------------------------------------


def expected_loss(posterior: Posterior, decision: np.ndarray, power: int) -> float:
    errors = (posterior.draws.astype(np.float64) - decision).reshape(len(posterior.draws), -1)
    return float((np.linalg.norm(errors, axis=1) ** power).mean())


def test_the_mean_has_the_least_expected_squared_error() -> None:
    posterior = made(dtype=np.float64)
    best = expected_loss(posterior, posterior.mean, 2)
    for seed in range(20):
        step = 0.05 * rng(seed).normal(size=posterior.mean.shape)
        assert expected_loss(posterior, posterior.mean + step, 2) > best
    assert all(expected_loss(posterior, d, 2) > best for d in (posterior.mode, posterior.medoid))


def test_the_medoid_is_the_draw_with_the_least_expected_error() -> None:
    whole = made(dtype=np.float64)
    for b in range(whole.draws.shape[1]):
        posterior = whole.with_(x=whole.x[:, :, b : b + 1])
        losses = [expected_loss(posterior, draw, 1) for draw in posterior.draws]
        np.testing.assert_array_equal(whole.medoid[b], posterior.draws[int(np.argmin(losses)), 0])
        assert np.argmin(losses) != 0


def test_the_medoid_of_many_draws_looks_at_a_thousand_of_them_and_is_one() -> None:
    posterior = made((1, 2, 2), np.float64, chains=3, draws=633)
    posterior = posterior.with_(x=posterior.x[:, :, :1])
    assert any(np.array_equal(posterior.medoid, draw) for draw in posterior.draws)
    losses = np.array([expected_loss(posterior, draw, 1) for draw in posterior.draws[:400]])
    assert expected_loss(posterior, posterior.medoid, 1) < np.quantile(losses, 0.05)


def test_the_medoid_is_not_drawn_to_an_outlier_as_the_mean_is() -> None:
    x = np.concatenate([0.01 * rng().normal(size=(1, 20, 1, 1, 2, 2)), np.full((1, 1, 1, 1, 2, 2), 50.0)], 1)
    posterior = made().with_(x=x)
    assert np.abs(posterior.medoid).max() < 0.1
    assert posterior.mean.min() > 1


def test_decisions_and_spreads_run_over_all_chains() -> None:
    x = np.stack([np.zeros((5, 1, 1, 1, 1)), np.ones((5, 1, 1, 1, 1))])
    posterior = made().with_(x=x)
    assert posterior.mean.item() == posterior.sd.item() == 0.5
    assert posterior.draws.shape == (10, 1, 1, 1, 1)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_the_interval_is_central_and_holds_its_level(level: float) -> None:
    posterior = made(dtype=np.float64, draws=2000)
    low, high = posterior.interval(level)
    inside = ((low <= posterior.draws) & (posterior.draws <= high)).mean(0)
    np.testing.assert_allclose(inside, level, atol=1e-3)
    np.testing.assert_allclose((posterior.draws < low).mean(0), (1 - level) / 2, atol=1e-3)


def test_a_point_has_no_spread_and_no_diagnostics() -> None:
    point = CONTENTS["point"]()
    assert not point.sd.any()
    assert (point.rhat_max, point.ess_min, point.khat, point.divergences) == (None, None, None, None)
    assert point.converged
