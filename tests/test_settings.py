"""A name with settings reads back as it was written, whatever the values."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pplleak.errors import BadInput
from pplleak.federation.protection import QUIET, Protection
from pplleak.settings import Named

NAMES = st.from_regex(r"[a-z_]{1,12}", fullmatch=True)
VALUES = st.one_of(
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.none(),
    st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12),
    st.tuples(st.floats(0, 1), st.integers(0, 9)),
)


@pytest.mark.slow
@settings(max_examples=300, derandomize=True, deadline=None)
@given(NAMES, st.dictionaries(NAMES, VALUES, max_size=4))
@example("_", {"_": "\xa0"})  # white space that is no blank
def test_a_name_with_settings_reads_back_as_it_was_written(name: str, values: dict[str, object]) -> None:
    named = Named(name, values)
    again = Named.parse(str(named))
    assert again == named and hash(again) == hash(named)
    assert {n: type(v) for n, v in again.settings.items()} == {n: type(v) for n, v in values.items()}
    assert pickle.loads(pickle.dumps(named)) == named


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_a_name_or_one_line_of_bad_input(text: str) -> None:
    try:
        Named.parse(text)
    except BadInput as error:
        assert "must read NAME:SETTING=VALUE" in str(error)


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("my_net.py:build", "my_net.py:build", {}),
        ("my_net.py:build:width=3", "my_net.py:build", {"width": 3}),
        ("./mine.py", "./mine.py", {}),
        ("./mine.py:prior=vae", "./mine.py", {"prior": "vae"}),
        ("optimal:prior=vae", "optimal", {"prior": "vae"}),
    ],
)
def test_a_file_of_the_users_own_is_a_name(text: str, name: str, values: dict[str, object]) -> None:
    assert Named.parse(text) == Named(name, values) and str(Named.parse(text)) == text


def test_a_copy_with_other_settings_leaves_the_first_alone() -> None:
    named = Named("topk", {"rate": 0.9})
    assert named.with_(sigma=0.1, rate=None) == Named("topk", {"rate": 0.9, "sigma": 0.1})
    assert named == Named("topk", {"rate": 0.9}) != Named("topk", {"rate": 0.8})


@pytest.mark.parametrize(
    "text",
    [
        "none",
        "gaussian:sigma=0.1",
        "soteria:rate=0.4",
        "soteria:rate=0.4+gaussian:sigma=0.01",
        "ats:policy=3-1-7+43-18-18",
        "ats:policy=3-1-7+43-18-18+laplace",
        "weighted:sigmas=(0.1,0.2)",
    ],
)
def test_a_protection_is_printed_as_it_is_parsed(text: str) -> None:
    protection = Protection.parse(text)
    assert str(protection) == text
    assert Protection.parse(str(protection.filled())) == protection.filled()
    assert Protection.from_json(protection.to_json()) == protection.filled()


def test_what_adds_no_noise_is_quiet_and_what_is_shared_in_full_is_seen_nearly_so() -> None:
    assert Protection.parse("sign").filled().sigma == QUIET and Protection.parse("gaussian").filled().sigma == 0.1
    assert Protection.parse("none").observable().sigma == QUIET and Protection.parse("none").sigma is None
    assert Protection.parse("soteria").strength == "" and Protection.parse("soteria").name == "soteria"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none:sigma=1", "none stands alone"),
        ("none+gaussian", "none stands alone"),
        ("soteria+ats", "two defences"),
        ("gaussian:sigma=-1", "positive"),
        ("gaussian:sigma", "must read"),
        ("gausian", "did you mean gaussian"),
        ("soteria:layers=1", "no setting 'layers'"),
    ],
)
def test_a_protection_that_is_none_is_one_line(text: str, expected: str) -> None:
    with pytest.raises(BadInput, match=expected):
        Protection.parse(text)
