"""The page of errors names every public error class, with its bases and exit code."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from ds2deploy.cli.errors import BAD_INPUT, BAD_RESULT
from ds2deploy.runtimes import errors

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "errors.md"
ROW = re.compile(
    r"^\| `(?P<name>\w+)` \| (?P<bases>[^|]+) \| [^|]+ \| (?P<exit>[^|]*)\|$", re.MULTILINE
)
RESULT_ERRORS = {"ParityError", "TrainingError"}


def public_errors() -> dict[str, type[BaseException]]:
    """Find the public exceptions and warnings of `runtimes/errors.py`."""
    return {
        name: found
        for name, found in inspect.getmembers(errors, inspect.isclass)
        if issubclass(found, BaseException) and found.__module__ == errors.__name__
    }


@pytest.fixture(scope="module")
def rows() -> dict[str, re.Match[str]]:
    section = (
        PAGE.read_text(encoding="utf-8").partition("## Error classes")[2].partition("\n## ")[0]
    )
    return {row["name"]: row for row in ROW.finditer(section)}


def test_every_error_class_has_a_row_and_every_row_a_class(rows: dict[str, re.Match[str]]) -> None:
    assert rows.keys() == public_errors().keys()


@pytest.mark.parametrize("name", sorted(public_errors()))
def test_row_states_the_bases(name: str, rows: dict[str, re.Match[str]]) -> None:
    bases = [base.__name__ for base in public_errors()[name].__bases__]
    assert re.findall(r"`(\w+)`", rows[name]["bases"]) == bases


@pytest.mark.parametrize("name", sorted(public_errors().keys() - {"Ds2Error", "AudioWarning"}))
def test_row_states_the_exit_code(name: str, rows: dict[str, re.Match[str]]) -> None:
    expected = {"StoppedError": "128 + signal"} | dict.fromkeys(RESULT_ERRORS, str(BAD_RESULT))
    assert rows[name]["exit"].strip() == expected.get(name, str(BAD_INPUT))
