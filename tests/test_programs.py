"""One loader for names and paths; what a file can be set to is read off its signature."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from conftest import observe, tiny
from scenes import known
from torch import Tensor

from pplleak import blame, programs
from pplleak.client import networks
from pplleak.errors import BadInput
from pplleak.studies.attack.attack import attack

KINDS: list[programs.Kind] = ["models", "inference"]
every_file = pytest.mark.parametrize(("kind", "name"), [(k, n) for k in KINDS for n in programs.names(k)])


def one_line(error: pytest.ExceptionInfo[BadInput]) -> str:
    said = str(error.value)
    assert "\n" not in said
    return said


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_the_files_of_the_folder_with_their_first_lines(kind: programs.Kind) -> None:
    files = {p.stem for p in programs.folder(kind).glob("*.py") if not p.name.startswith("_")}
    found = programs.names(kind)
    assert set(found) == files
    assert all(line and "\n" not in line for line in found.values())


@every_file
def test_a_name_and_a_path_load_the_same_program(kind: programs.Kind, name: str, tmp_path: Path) -> None:
    by_name = programs.load(kind, name)
    assert programs.load(kind, str(programs.folder(kind) / f"{name}.py")) is by_name
    copied = programs.load(kind, str(shutil.copy(programs.folder(kind) / f"{name}.py", tmp_path)))
    assert copied is not by_name
    assert inspect.getsource(copied) == inspect.getsource(by_name)
    assert [s.name for s in programs.settings(copied)] == [s.name for s in programs.settings(by_name)]


@pytest.mark.parametrize(
    ("kind", "wrong", "near"),
    [
        ("models", "gausian", "gaussian"),
        ("models", "dgl", "dlg"),
        ("inference", "hcm", "hmc"),
        ("inference", "laplase", "laplace"),
    ],
)
def test_an_unknown_name_suggests_the_near_ones(kind: programs.Kind, wrong: str, near: str) -> None:
    with pytest.raises(BadInput, match=f"'{wrong}'.*did you mean.*{near}") as error:
        programs.load(kind, wrong)
    one_line(error)


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_near_to_nothing_lists_them_all(kind: programs.Kind) -> None:
    with pytest.raises(BadInput) as error:
        programs.load(kind, "zzzzzz")
    assert all(name in one_line(error) for name in programs.names(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_to_nothing_and_a_name_of_the_other_folder_are_refused(kind: programs.Kind, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no file"):
        programs.load(kind, str(tmp_path / "mine.py"))
    with pytest.raises(BadInput, match="unknown"):
        programs.load(kind, "hmc" if kind == "models" else "dlg")


BROKEN = {
    "raises at import": ("import math\n\nmath.sqrt('two')\n", "TypeError.*line 3"),
    "syntax error": ("def model(:\n", "SyntaxError"),
    "missing import": ("import no_such_package_anywhere\n", "no_such_package_anywhere"),
    "no function": ("x = 1\n", "no function 'model'"),
    "not a function": ("model = 1\n", "no function 'model'"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_file_is_one_line_that_names_it(how: str, tmp_path: Path) -> None:
    source, said = BROKEN[how]
    path = tmp_path / "mine.py"
    path.write_text(source)
    for _ in range(2):  # the second attempt does not find half a module
        with pytest.raises(BadInput, match=said) as error:
            programs.load("models", str(path))
        assert "mine.py" in one_line(error)


def test_a_model_that_raises_when_it_runs_is_one_line_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def model(client, batch_size=1):\n    return [][batch_size]\n")
    client = tiny()
    target = known(client, observe(client, 0.1))
    with pytest.raises(BadInput, match=r"IndexError.*line 2") as error:
        attack(target, str(path), "map", settings={"steps": 2})
    assert "mine.py" in one_line(error)


def test_an_error_inside_the_library_is_not_blamed_on_a_file_of_the_same_name(tmp_path: Path) -> None:
    """`channels/gaussian.py` is not `models/gaussian.py`: paths are compared, not names."""
    for folder in ("library", "user"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text("def model(client, batch_size=1):\n\n    return [][batch_size]\n")
    library, user = tmp_path / "library" / "mine.py", tmp_path / "user" / "mine.py"
    with pytest.raises(IndexError) as error:
        programs.load("models", str(library))(None)
    assert blame.lines_of(error.value, library) == [3] and blame.lines_of(error.value, user) == []
    assert "line 3" in blame.describe(error.value, library) and "line" not in blame.describe(error.value, user)


def test_two_files_of_one_name_are_two_programs(tmp_path: Path) -> None:
    for k in range(2):
        (tmp_path / str(k)).mkdir()
        (tmp_path / str(k) / "mine.py").write_text(f"def model(client, batch_size=1):\n    return {k}\n")
    first, second = (programs.load("models", str(tmp_path / str(k) / "mine.py")) for k in range(2))
    assert (first(None), second(None)) == (0, 1)


# -- settings ------------------------------------------------------------------------------------------------------


def sample(
    client: Any,
    batch_size: int = 1,
    *,
    seed: int = 0,
    sigma: float = 0.1,
    widths: tuple[int, ...] = (64, 32),
    guide: Literal["a", "b"] = "a",
    reference: str | Tensor = "digits",
    tensor: Tensor = torch.zeros(2),  # noqa: B008
    maybe: int | None = None,
    untyped=3,  # type: ignore[no-untyped-def]
) -> None:
    """A function with settings of every kind.

    Args:
        sigma: the noise,
            said on two lines.
        guide: a family.
    """


def test_settings_are_the_keyword_arguments_that_a_command_line_can_write() -> None:
    found = {s.name: s for s in programs.settings(sample)}
    assert list(found) == ["sigma", "widths", "guide", "reference", "maybe", "untyped"]
    assert (found["sigma"].type, found["sigma"].default) == (float, 0.1)
    assert found["sigma"].help == "the noise, said on two lines."
    assert found["widths"].type == tuple[int, ...]
    assert found["guide"].type == Literal["a", "b"]
    assert found["reference"].type is str
    assert found["maybe"].type == int | None
    assert found["untyped"].type is int
    assert found["untyped"].help == ""


def test_a_setting_without_default_is_refused_by_name() -> None:
    def model(client: Any, *, sigma: float) -> None: ...

    with pytest.raises(BadInput, match=r"'sigma'.*no default"):
        programs.settings(model)


@every_file
def test_every_default_is_of_the_settings_own_type(kind: programs.Kind, name: str) -> None:
    for setting in programs.settings(programs.load(kind, name)):
        if setting.type in (int, float, str, bool):
            assert isinstance(setting.default, (int, float) if setting.type is float else setting.type), setting.name


# -- networks ------------------------------------------------------------------------------------------------------


def test_a_network_of_ones_own_is_a_function_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(
        "from torch import nn\n\n"
        "def build(input_shape, num_classes, *, width: int = 3):\n    return nn.Linear(width, num_classes)\n"
    )
    constructor = networks.load(f"{path}:build")
    assert constructor((3,), 5).out_features == 5
    assert [(s.name, s.default) for s in programs.settings(constructor)] == [("width", 3)]
    with pytest.raises(BadInput, match="no function 'biuld'"):
        networks.load(f"{path}:biuld")
    with pytest.raises(BadInput, match="no file"):
        networks.load(f"{tmp_path}/nothing.py:build")


@pytest.mark.parametrize(("wrong", "near"), [("mpl", "mlp"), ("lennet", "lenet"), ("math", "known|did you mean")])
def test_an_unknown_network_suggests_the_near_ones(wrong: str, near: str) -> None:
    with pytest.raises(BadInput, match=near):
        networks.load(wrong)
