"""The same work on a real Ray cluster of two workers: results, errors, killed workers, a command."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import one_line, run, tiny
from conftest import rows

from pplleak import runs
from pplleak.errors import BadInput

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def two() -> Iterator[runs.Workers]:
    with runs.workers(2, "local") as executor:
        yield executor


@pytest.mark.slow
def test_work_errors_and_killed_workers_are_as_in_processes(two: runs.Workers, tmp_path: Path) -> None:
    assert two.count == 2 and sorted(runs.spread(abs, [-1, -2, -3], two)) == [1, 2, 3]
    with pytest.raises(ZeroDivisionError) as told:
        list(runs.spread(eval, ["1 / 0"], two))
    assert type(told.value) is ZeroDivisionError  # not Ray's wrapping of it
    mark = tmp_path / "mark"
    dies_once = (
        f"(os := __import__('os')) and (open('{mark}', 'a').write('x') and 0) or "
        f"(os.kill(os.getpid(), 9) if len(open('{mark}').read()) == 1 else 'again')"
    )
    assert set(runs.spread(eval, ["1 + 1", dies_once, "2 + 1"], two)) == {2, "again", 3}
    assert mark.read_text() == "xx"


@pytest.mark.slow
def test_a_command_makes_the_same_rows_there(two: runs.Workers, tmp_path: Path) -> None:
    argv = ["compare", "--inference", "map", *tiny("map", "map"), "--count", "1"]
    assert run([*argv, "--out", str(tmp_path / "here")]) == 0
    assert run([*argv, "--out", str(tmp_path / "ray"), "--ray", "local"]) == 0  # takes the cluster that is connected
    here, there = (rows(tmp_path / d / "compare.csv") for d in ("here", "ray"))
    assert [{**r, "seconds": ""} for r in here] == [{**r, "seconds": ""} for r in there]


def test_a_cluster_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="the workers that it has"), runs.workers(2, "auto"):
        pass
    one_line(["compare", "--workers", "2", "--ray", "auto", "--out", str(tmp_path)], capsys, "the workers that it has")


@pytest.mark.parametrize(
    ("address", "said"),
    [("localhost:1", "no Ray cluster answers"), ("ray://nowhere.invalid:10001", "no Ray cluster answers"),
     ("elsewhere", "HOST:PORT"), ("localhost:99999", "HOST:PORT"), ("localhost:", "HOST:PORT")],
)  # fmt: skip
def test_an_address_where_nobody_listens_is_told_at_once(address: str, said: str) -> None:
    with pytest.raises(BadInput, match=said), runs.workers(cluster=address):
        pass
