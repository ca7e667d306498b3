"""How the process of a command ends: at once, with its exit code, and with nothing that was printed lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

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


@pytest.mark.slow
@pytest.mark.process
def test_a_reader_that_has_seen_enough_gets_no_traceback() -> None:
    shell = f"{sys.executable} -m pplleak ls | head -n 1; {sys.executable} -m pplleak attack --help | head -n 1"
    found = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert len(found.stdout.splitlines()) == 2 and not found.stderr


SWALLOWS = """
import time
try:
    print("importing", flush=True)
    time.sleep(1)
except:
    pass
"""


LOUD = "lambda *_: signal.default_int_handler(*_)"


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(
    ("handler", "sent", "code"),
    [("signal.default_int_handler", signal.SIGINT, 130), (LOUD, signal.SIGINT, 0), (LOUD, signal.SIGTERM, 143)],
)
def test_a_signal_while_a_package_is_imported_that_catches_everything_is_not_lost(
    tmp_path: Path, handler: str, sent: signal.Signals, code: int
) -> None:
    """A handler of somebody else is left as it is, and loses it there: the twin."""
    (tmp_path / "swallows.py").write_text(SWALLOWS)
    words = (
        f"import signal; signal.signal(signal.SIGINT, {handler})\n"
        "import time; from pplleak import cli; from pplleak.__main__ import main\n"
        "def run(argv):\n    import swallows\n    time.sleep(3)\n    print('done')\n"
        "cli.main = run; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "importing\n"
    time.sleep(0.2)
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    if code:
        assert (process.returncode, out, err) == (code, "", "pplleak: interrupted before anything could be kept\n")
    else:
        assert (process.returncode, out, err) == (0, "done\n", "")
