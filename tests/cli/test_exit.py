"""How the process of a command ends: at once, with its exit code, and with nothing that was printed lost."""

from __future__ import annotations

import subprocess
import sys

import pytest

# what a command registers for the exit (Ray's workers, for one) is called before the process ends
COMMAND = "import atexit; from pplleak import cli; from pplleak.__main__ import main; was = cli.main\n" \
          "def run(argv):\n    atexit.register(lambda: print('at exit'))\n    was(argv)\n" \
          "cli.main = run; main()"  # fmt: skip


def ended(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", COMMAND, *words], capture_output=True, text=True)


@pytest.mark.process
def test_exit_code_output_and_what_is_registered_for_the_exit_are_kept() -> None:
    listed, refused = ended("ls"), ended("nope")
    assert listed.returncode == 0 and "models (--model)" in listed.stdout
    assert listed.stdout.endswith("at exit\n") and refused.stdout == "at exit\n"
    assert refused.returncode == 2 and refused.stderr.startswith("pplleak: unknown command")


@pytest.mark.process
def test_a_reader_that_has_seen_enough_gets_no_traceback() -> None:
    shell = f"{sys.executable} -m pplleak ls | head -n 1; {sys.executable} -m pplleak attack --help | head -n 1"
    found = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert len(found.stdout.splitlines()) == 2 and not found.stderr
