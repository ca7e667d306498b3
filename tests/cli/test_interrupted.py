"""Ctrl-C, SIGTERM, a full disk and a second process: one line each, and nothing that was finished is lost."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Killed, one_line, run, shell, tiny
from matplotlib.figure import Figure
from safetensors import safe_open

from pplleak import __main__ as entry
from pplleak import cli, runs
from pplleak.cli import prior as prior_command
from pplleak.runs import locks

COMPARE = ["compare", "--network.widths", "4", "--inference", "map", *tiny("map", "map"), "--count", "2"]
TRAIN = ["train", "--network.widths", "4", "--steps", "4", "--checkpoints", "0", "2", "4"]
CALIBRATE = ["calibrate", "--network.widths", "4", "--inference", "laplace", *tiny("laplace"), "--draws", "3"]
FIT = ["prior", "fit", "flow", "--prior.epochs", "4", "--prior.hidden", "8", "--prior.rank", "3", "--prior.batch", "64"]
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.fixture(autouse=True)
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of its own, and the handlers of signals as they were before."""
    monkeypatch.chdir(tmp_path)
    before = {which: signal.getsignal(which) for which in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    yield
    for which, handler in before.items():
        signal.signal(which, handler)


def ends(argv: list[str]) -> int:
    """The exit code of a command line as the process's."""
    with pytest.raises(SystemExit) as end:
        entry.main(argv)
    return int(end.value.code or 0)


def sending(which: signal.Signals, after: int) -> Callable[[str, int], Iterator[int]]:
    """A progress bar that is interrupted after so many items."""

    def bar(label: str, total: int) -> Iterator[int]:
        for k in range(total):
            if k == after:
                os.kill(os.getpid(), which)
            yield k

    return bar


def files(folder: str) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize(("which", "code"), SIGNALS.items())
def test_a_signal_keeps_what_is_finished_and_says_how_to_go_on(
    which: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pplleak.cli._where.bar", sending(which, after=1))
    assert ends(COMPARE) == code
    assert "interrupted: 1 attacks kept, the same command goes on" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setattr("pplleak.cli._where.bar", sending(which, after=9))
    assert ends(COMPARE) == 0


@pytest.mark.parametrize(("which", "code"), SIGNALS.items())
def test_a_signal_before_the_work_is_one_line(
    which: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "main", lambda argv: os.kill(os.getpid(), which))
    assert ends(["attack"]) == code
    assert capsys.readouterr().err == "pplleak: interrupted before anything could be kept\n"


@pytest.mark.slow
@pytest.mark.parametrize(("which", "code"), SIGNALS.items())
def test_a_signal_while_the_figure_is_drawn_does_not_say_that_nothing_was_kept(
    which: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Figure, "savefig", lambda *a, **k: os.kill(os.getpid(), which))
    assert ends([*COMPARE, "--count", "1"]) == code
    said = capsys.readouterr().err
    assert said == "pplleak: interrupted: what was finished is kept in compare/, the same command goes on\n"
    attack = ["attack", "--network.widths", "4", "--inference", "map", *tiny("map")]
    assert ends(attack) == code
    assert "attack/posterior.nc is kept" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("argv", [COMPARE, TRAIN, CALIBRATE, FIT], ids=lambda argv: argv[0])
def test_a_full_disk_is_one_line_and_the_same_command_ends_as_if_there_had_been_room(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)
    monkeypatch.setattr("time.process_time", lambda: 0.0)
    out = (lambda f: [*argv, "--out", f"{f}/p.safetensors"]) if argv is FIT else (lambda f: [*argv, "--out", f])
    room, real = [2], os.replace

    def replace(part: Any, target: Any) -> None:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= 1
        real(part, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        one_line(out("a"), capsys, "No space left on device; make room, what was finished before is kept")
    assert len([p for p in files("a") if not p.endswith(".json")]) in (1, 2)
    assert run(out("a")) == run(out("b")) == 0
    assert list(files("a").values()) == list(files("b").values())


def test_two_processes_do_not_write_one_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.0)
    with runs.claim("a"), runs.claim("p", "p.safetensors"):
        for argv in (COMPARE, TRAIN, CALIBRATE):
            one_line([*argv, "--out", "a"], capsys, f"a is being written by process {os.getpid()} since")
        one_line([*FIT, "--out", "p/p.safetensors"], capsys, "p/p.safetensors is being written by process")


@pytest.mark.slow
def test_a_fit_that_was_killed_goes_on_and_ends_bit_for_bit_as_one_that_was_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[int] = []

    def bar(label: str, total: int) -> Iterator[int]:
        for k in range(total):
            begun.append(4 - total + k)
            if len(begun) == 3:
                raise Killed
            yield k

    def tensors(path: str) -> dict[str, bytes]:
        with safe_open(path, "np") as f:
            return {n: f.get_tensor(n).tobytes() for n in f.keys()}  # noqa: SIM118 (not a dict)

    assert run([*FIT, "--out", "whole/p.safetensors"]) == 0
    monkeypatch.setattr(prior_command, "bar", bar)
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)  # the state is then kept after every epoch
    with pytest.raises(Killed):
        run([*FIT, "--out", "a/p.safetensors"])
    assert {p.name for p in Path("a").iterdir()} == {".p.flow.fit"}
    state = Path("a/.p.flow.fit").read_bytes()
    assert run([*FIT, "--out", "a/p.safetensors"]) == 0
    assert begun == [0, 1, 2, 2, 3] and tensors("a/p.safetensors") == tensors("whole/p.safetensors")
    assert {p.name for p in Path("a").iterdir()} == {"p.safetensors", "p.png"}
    begun[:] = [9] * 4
    Path("a/.p.flow.fit").write_bytes(state)
    assert run([*FIT, "--seed", "1", "--out", "a/p.safetensors"]) == 0  # another fit does not go on from it
    assert begun[4:] == [0, 1, 2, 3] and tensors("a/p.safetensors") != tensors("whole/p.safetensors")
    for broken in (state[:1000], state.replace(b'"done"', b'"dome"')):
        Path("a/.p.flow.fit").write_bytes(broken)
        one_line([*FIT, "--out", "a/p.safetensors"], capsys, "cannot go on with the fit that a/.p.flow.fit holds")


def test_quick_does_not_override_what_is_said_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    one_line(["defend", "--quick", "True", "--count", "0"], capsys, "count must be a positive number, not 0")


@pytest.mark.process
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
@pytest.mark.parametrize("word", ["--help", "ls"])  # less than what is gathered before it is written, and more
def test_what_cannot_be_printed_is_one_line(word: str, tmp_path: Path) -> None:
    ended = shell(["sh", "-c", f"'{sys.executable}' -m pplleak {word} > /dev/full"], tmp_path)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("pplleak: cannot ") and "No space left on device" in ended.stderr
