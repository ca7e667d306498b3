"""What can be set, read off the source: never by running it, and the same as the function itself says."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from pplleak import channels, programs, signatures
from pplleak.cli import _named as named
from pplleak.client import networks
from pplleak.errors import BadInput
from pplleak.federation import defences
from pplleak.settings import Setting
from pplleak.signatures import UNREAD

PROGRAMS: list[tuple[programs.Kind, str]] = [(k, n) for k in programs.ENTRY for n in programs.names(k)]


# -- the slow, obvious reference: the signature of the function that was run ---------------------------------------


@pytest.mark.parametrize(("kind", "name"), PROGRAMS)
def test_a_program_is_read_as_it_runs(kind: programs.Kind, name: str) -> None:
    assert programs.described(kind, name) == programs.settings(programs.load(kind, name))


@pytest.mark.parametrize("name", networks.names())
def test_a_network_is_read_as_it_runs(name: str) -> None:
    assert named.network_settings(name) == programs.settings(networks.get(name))


@pytest.mark.parametrize("name", channels.names())
def test_a_channel_is_read_as_it_runs(name: str) -> None:
    assert named.channel_settings(name) == programs.settings(channels.settable(name))
    path, entry = named.channels()[name]
    assert signatures.read(path, entry, channels.GIVEN, positional=True) == channels.settings(name)


@pytest.mark.parametrize("name", defences.names())
def test_a_defence_is_read_as_it_runs(name: str) -> None:
    assert named.defence_settings(name) == programs.settings(defences.entry(name))


def test_what_can_be_named_is_what_the_folders_hold() -> None:
    assert set(named.networks()) == set(networks.names())
    assert set(named.channels()) == set(channels.names())
    assert set(named.defences()) == set(defences.names())


# -- one file ------------------------------------------------------------------------------------------------------

FILE = '''
import math
from typing import Literal
from pplleak.channels import Noise
from pplleak import channels

STEPS = 10
Guide = Literal["a", "b"]

class Defaults:
    rate: float = 0.5

def run(
    model,
    *,
    seed: int = 0,
    steps: int = STEPS,
    twice: int = 2 * STEPS,
    rate: float = Defaults.rate,
    far: float = math.inf,
    near: float = -1.5,
    guide: Guide = "a",
    noise: Noise = "gaussian",
    order: channels.Order = "noise_first",
    widths: tuple[int, ...] = (64, STEPS),
    text: "str | None" = None,
    reference: str | Tensor = "digits",
    tensor: Tensor = None,
    made: float = compute(),
    untyped=3,
    hook: Callable[[int], int] = print,
):
    """Run.

    Args:
        steps: of what,
            on two lines.
    """

raise RuntimeError("a file that is read does not run")
'''


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_aliases_constants_and_unions_are_followed_and_nothing_runs(tmp_path: Path) -> None:
    settings = signatures.read(written(tmp_path / "mine.py", FILE), "run", programs.RESERVED)
    assert settings is not None
    assert [(s.name, s.type, s.default) for s in settings] == [
        ("steps", int, 10),
        ("twice", int, 20),
        ("rate", float, 0.5),
        ("far", float, float("inf")),
        ("near", float, -1.5),
        ("guide", Literal["a", "b"], "a"),
        ("noise", channels.Noise, "gaussian"),
        ("order", channels.Order, "noise_first"),
        ("widths", tuple[int, ...], (64, 10)),
        ("text", str | None, None),
        ("reference", str, "digits"),
        ("made", float, UNREAD),
        ("untyped", int, 3),
    ]
    assert settings[0].help == "of what, on two lines."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "no function 'run'"),
        ("run = 1\n", "no function 'run'"),
        ("def run(:\n", "cannot be loaded: SyntaxError.*line 1"),
        ("def run(m, *, sigma: float): ...\n", "'sigma'.*no default"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line_that_names_it(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message) as error:
        signatures.read(written(tmp_path / "mine.py", text), "run")
    assert "mine.py" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["from other import run\n", "from other import *\n", "run = partial(go, x=1)\n"])
def test_what_reading_cannot_tell_is_none_and_no_guess(text: str, tmp_path: Path) -> None:
    assert signatures.read(written(tmp_path / "mine.py", text), "run") is None


def test_a_name_that_means_itself_ends(tmp_path: Path) -> None:
    circle = written(tmp_path / "mine.py", "A = B\nB = A\ndef run(*, x: A = B, y: int = 1): ...\n")
    assert signatures.read(circle, "run") == [Setting("y", int, 1, "")]


def test_a_neighbouring_file_is_followed_where_it_is_imported_by_a_dot(tmp_path: Path) -> None:
    written(tmp_path / "base.py", "STEPS = 7\n")
    mine = written(tmp_path / "mine.py", "from .base import STEPS\ndef run(*, steps: int = STEPS): ...\n")
    assert signatures.read(mine, "run") == [Setting("steps", int, 7, "")]


# -- what a model's file prefers -----------------------------------------------------------------------------------


def test_the_preferred_settings_are_read_where_they_are_literal_and_run_where_not(tmp_path: Path) -> None:
    source = "def model(client, batch_size=1): ...\n"
    literal = written(tmp_path / "one.py", f'raise RuntimeError("ran")\n{source}MAP = {{"steps": 7}}\n')
    assert programs.preferred(str(literal), "map") == {"steps": 7}
    computed = written(tmp_path / "two.py", f"{source}MAP = dict(steps=2 + 5)\n")
    assert programs.preferred(str(computed), "map") == {"steps": 7}
    assert programs.preferred(str(literal), "hmc") == {}
    with pytest.raises(BadInput, match="must be a dictionary"):
        programs.preferred(str(written(tmp_path / "three.py", f"{source}MAP = 3\n")), "map")


def test_what_a_file_offers_is_declared_and_checked(tmp_path: Path) -> None:
    assert programs.model("idlg").labels is not None and programs.model("dlg").labels is None
    assert programs.model("linear_gaussian").exact_posterior is not None
    assert programs.model("dlg").MAP["optimizer"] == "lbfgs" and programs.model("optimal").MAP == {}
    assert programs.inference("refractive").declines is not None and programs.inference("hmc").declines is None
    wrong = written(tmp_path / "mine.py", "def model(client, batch_size=1): ...\nlabels = 3\n")
    with pytest.raises(BadInput, match=r"'labels' of .*mine\.py must be a function, not a int"):
        programs.model(str(wrong))
