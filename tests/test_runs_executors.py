"""Work runs wherever it is sent, comes back as it was, and ends with whoever asked for it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from command_line import killed_while

from pplleak import runs
from pplleak.errors import BadInput


class ByHand:
    """The least that an executor can be: it collects, and works when it is told to."""

    def __init__(self) -> None:
        self.futures: list[Future[Any]] = []

    def submit(self, function: Callable[[Any], Any], task: Any, /) -> Future[Any]:
        future: Future[Any] = Future()
        self.futures.append(future)
        if len(self.futures) == 3:  # the second comes first
            for k, waiting in enumerate(reversed(self.futures)):
                waiting.set_result(function(task - k))
        return future


ABOUT = (  # a process, in words that it can read without importing this file
    "__import__('time').sleep(0.3), __import__('os').getpid(), __import__('torch').get_num_threads(), "
    "__import__('signal').getsignal(2).name"
)


@pytest.fixture(scope="module")
def two() -> Iterator[runs.Executor]:
    with runs.workers(2) as executor:
        yield executor


@pytest.mark.slow
def test_work_is_spread_over_processes_of_one_thread_that_leave_ctrl_c_to_their_parent(two: runs.Executor) -> None:
    assert sorted(runs.spread(abs, [-1, -2, -3], two)) == [1, 2, 3]
    told = list(runs.spread(eval, [ABOUT] * 4, two))
    pids = {pid for _, pid, _, _ in told}
    assert os.getpid() not in pids and len(pids) == 2
    assert {(threads, handler) for _, _, threads, handler in told} == {(1, "SIG_IGN")}


def test_what_the_work_raises_comes_out_where_its_result_would(two: runs.Executor) -> None:
    with runs.serial() as here:
        for executor in (here, two):
            with pytest.raises(ZeroDivisionError):
                list(runs.spread(eval, ["1 / 1", "1 / 0"], executor))


def test_this_process_does_a_task_when_its_result_is_asked_for() -> None:
    begun: list[int] = []
    with runs.workers(1) as executor:
        results = runs.spread(lambda k: begun.append(k) or -k, [3, 1, 2], executor)
        assert next(results) == -3 and begun == [3]
        assert list(results) == [-1, -2]
    with pytest.raises(BadInput, match="workers must be at least 1, not 0"):
        runs.workers(0)


def test_whatever_has_a_submit_is_an_executor() -> None:
    assert list(runs.spread(lambda x: x * 10, [1, 2, 3], ByHand())) == [20, 10, 30]
    with ThreadPoolExecutor(2) as threads:
        assert sorted(runs.spread(abs, [-1, -2, -3], threads)) == [1, 2, 3]


def test_who_stops_listening_cancels_what_has_not_begun() -> None:
    done: list[int] = []
    with ThreadPoolExecutor(1) as threads:
        results = runs.spread(lambda k: time.sleep(0.05) or done.append(k), range(1000), threads)
        next(results)
        results.close()
    assert 1 <= len(done) < 10


@pytest.mark.slow
def test_leaving_the_block_ends_the_processes_in_the_middle_of_their_work_and_a_worker_s_death_is_told() -> None:
    code = (
        "import os, time\nfrom pplleak import runs\nfrom pplleak.errors import BadInput\n"
        "try:\n"
        "    with runs.processes(1) as executor:\n"
        "        signals = '[os.kill(os.getpid(), n) for n in (2, 15)]'  # are left to the parent\n"
        "        code = f'(os := __import__(\"os\")) and {signals} and os.getpid()'\n"
        "        print(next(runs.spread(eval, [code], executor)))\n"
        "        executor.submit(time.sleep, 600)\n"
        "        raise KeyboardInterrupt\n"
        "except KeyboardInterrupt: pass\n"
        "try:\n"
        "    with runs.processes(1) as executor: list(runs.spread(os._exit, [9, 0], executor))\n"
        "except BadInput as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    pid, told = done.stdout.splitlines()
    assert told.startswith("a worker process was killed") and not alive(int(pid)) and done.stderr == ""


KILLED_ONCE = (  # by a task that does not find its mark; the mark says who did what
    "(os := __import__('os')) and (open('{0}', 'a').write(f'{{os.getpid()}} ') and 0) or "
    "(os.kill(os.getpid(), 9) if len(open('{0}').read().split()) == 1 else {1})"
)


@pytest.mark.slow
def test_what_a_killed_worker_had_begun_is_done_by_another_once_and_the_others_do_not_notice(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    slow = "__import__('time').sleep(1) or __import__('os').getpid()"
    with runs.workers(2) as executor:
        tasks = [slow, KILLED_ONCE.format(mark, "'again'"), "1 + 1", "2 + 1"]
        done = list(runs.spread(eval, tasks, executor))
    assert len(done) == 4 and {"again", 2, 3} < set(done)
    assert len(mark.read_text().split()) == 2  # begun twice, and its result came once


@pytest.mark.slow
def test_a_task_that_kills_every_worker_is_told_when_the_others_have_ended() -> None:
    seen: list[int] = []
    with runs.workers(2) as executor, pytest.raises(BadInput, match="a worker process was killed"):
        for result in runs.spread(eval, ["__import__('os')._exit(9)", *map(str, range(5))], executor):
            seen.append(result)
    assert sorted(seen) == [0, 1, 2, 3, 4]


def test_what_cannot_travel_is_told_where_its_result_would_be(two: runs.Executor) -> None:
    with pytest.raises((AttributeError, TypeError), match=r"pickle|local object"):
        list(runs.spread(lambda task: task, [1], two))
    with pytest.raises(Exception, match=r"pickle|local object"):
        list(runs.spread(eval, ["lambda: 1"], two))
    assert list(runs.spread(abs, [-1], two)) == [1]


def test_tasks_may_be_taken_when_a_worker_is_free_and_not_before() -> None:
    taken: list[int] = []
    with ThreadPoolExecutor(2) as threads:
        results = runs.spread(abs, (taken.append(k) or -k for k in range(9)), threads, ahead=2)
        next(results)
        assert len(taken) == 2
        assert len(list(results)) == 8


def test_shards_are_parts_of_the_work() -> None:
    parts = [runs.shard(range(10), f"{i}/3") for i in (1, 2, 3)]
    assert parts[0] == [0, 3, 6, 9] and sorted(k for part in parts for k in part) == list(range(10))
    assert runs.shard(range(10), "") == list(range(10))
    for wrong in ("0/3", "4/3", "1", "a/b", "-1/3", "1/3/4"):
        with pytest.raises(BadInput, match="a shard is i/n"):
            runs.shard([], wrong)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks processes up in /proc")
def test_processes_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, time\nfrom pplleak import runs\n"
        "if __name__ == '__main__':\n"
        "    with runs.processes(1) as executor:\n"
        "        pid = next(runs.spread(eval, ['__import__(\"os\").getpid()'], executor))\n"
        "        executor.submit(time.sleep, 600)\n"
        "        open('part', 'w').write(str(pid)); os.rename('part', 'pid'); time.sleep(600)\n"
    )
    (tmp_path / "parent.py").write_text(code)
    killed_while("exec(open('parent.py').read())", tmp_path, (tmp_path / "pid").exists)
    pid, deadline = int((tmp_path / "pid").read_text()), time.monotonic() + 30
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)
