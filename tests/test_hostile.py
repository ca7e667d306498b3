"""Broken and forged files: a reader refuses in one line, quickly and in little memory, or what it accepts is valid."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import hostile
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pplleak import reading
from pplleak.errors import BadInput
from pplleak.priors import _store

SECONDS, MIB = 5.0, 1024
FIXED = settings(
    derandomize=True, database=None, deadline=timedelta(seconds=SECONDS), max_examples=36,
    suppress_health_check=list(HealthCheck), print_blob=False,
)  # fmt: skip
SEEDS = st.integers(0, 2**32)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("good")
    made = {}
    for kind, content in hostile.good(folder).items():
        made[kind] = folder / f"{kind.partition('.')[0]}-good.{kind.rpartition('.')[2]}"
        made[kind].write_bytes(content)
    return made


@pytest.fixture()
def little() -> Iterator[None]:
    """The test takes no more than 1 GiB over what the process had before."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists() or not reset.exists():
        yield
        return

    def peak() -> int:
        return next(int(line.split()[1]) // 1024 for line in status.read_text().splitlines() if "VmHWM" in line)

    reset.write_text("5")
    before = peak()
    yield
    assert peak() - before < MIB


def told(read: Callable[[Path], None], path: Path) -> str:
    """What a reader says of a file: "" where it accepts it. Any other error than a refusal comes out."""
    start = time.perf_counter()
    try:
        read(path)
        said = ""
    except BadInput as error:
        said = str(error)
        assert said and said.isprintable() and len(said) < 2000
    assert time.perf_counter() - start < SECONDS
    return said


@pytest.mark.parametrize("kind", hostile.READERS)
def test_good_files_are_read(kind: str, sources: dict[str, Path]) -> None:
    said = told(hostile.READERS[kind], sources[kind])
    assert (said == "") is (kind != "pfm")  # whose range a file does not say


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # h5netcdf closes what it did not open
@pytest.mark.parametrize("kind", hostile.READERS)
def test_edited_bytes_are_refused_in_one_line_or_valid(
    kind: str, sources: dict[str, Path], tmp_path: Path, little: None
) -> None:
    content, path = sources[kind].read_bytes(), tmp_path / sources[kind].name
    said = set()

    @FIXED
    @given(seed=SEEDS)
    def fuzz(seed: int) -> None:
        path.write_bytes(hostile.edited(content, seed))
        said.add(told(hostile.READERS[kind], path))

    fuzz()
    assert len(said) > 1  # the edits reach more than one way to be wrong


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow) if k == "observation" else k for k in hostile.METADATA]
)
def test_forged_metadata_and_tensors_are_refused_in_one_line_or_valid(
    kind: str, sources: dict[str, Path], tmp_path: Path, little: None
) -> None:
    @FIXED
    @given(seed=SEEDS)
    def fuzz(seed: int) -> None:
        hostile.mistold(sources[kind], tmp_path / "f.safetensors", seed)
        told(hostile.READERS[kind], tmp_path / "f.safetensors")

    fuzz()


@pytest.mark.parametrize("value", hostile.HOSTILE)
def test_a_hostile_value_of_an_earlier_runs_settings_is_refused(value: str, tmp_path: Path, little: None) -> None:
    path = tmp_path / "s.json"
    path.write_bytes(f'{{"settings": {value}}}'.encode(errors="surrogatepass"))
    assert told(hostile.READERS["settings"], path)


def _careless(text: str | bytes, kind: object, what: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"{what}: {error}") from error


def _unchecked(value: object, kind: object, what: str) -> object:
    return value


BROKEN: dict[str, tuple[object, str, object, str]] = {
    "JSON whose errors are caught too narrowly": (reading, "decoded", _careless, "observation"),
    "metadata without a schema": (reading, "typed", _unchecked, "vae"),
    "priors that need not draw images": (_store, "_require_images", lambda prior, shape: None, "vae"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_reader_is_seen(
    broken: str, sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, name, careless, kind = BROKEN[broken]
    monkeypatch.setattr(room, name, careless)
    with pytest.raises(Exception) as seen:  # of whatever kind: what is careless fails as it likes
        for seed in range(200):
            hostile.mistold(sources[kind], tmp_path / "f.safetensors", seed)
            told(hostile.READERS[kind], tmp_path / "f.safetensors")
    assert not isinstance(seen.value, BadInput)
