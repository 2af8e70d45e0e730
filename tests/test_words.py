"""Prose that is read once: no fragments at the start of a docstring or a help text, no coinages."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("ds2deploy", "export", "runtimes", "benchmarks")

OPENINGS = frozenset(
    re.findall(
        r"\w+",
        """
        of what how whether that which where when who whose whoever whatever if as for with
        without from in on at by to until since because and or but not nor beside than so while
        into about after before between under over among like then once why it they them such
        other only
        """,
    )
)
"""First words of fragments: prepositions, conjunctions, relative words and pronouns."""

ARGUMENT = re.compile(r"^    (\w+): (.+)", re.MULTILINE)
"""Line of a docstring that describes an argument, attribute or error."""

ARGUMENT_OPENINGS = frozenset(("of", "what", "how", "whether", "that", "who", "where", "which"))
"""First words of descriptions that cannot be read without their neighbours."""

TEST_OPENINGS = (ARGUMENT_OPENINGS - {"that"}) | {"when", "other", "such"}
"""First words of names of tests that do not say what happens."""

COINAGES = {
    r"\b(?:go(?:es|ne)?|going|went) on with\b": "resume, continue, skip",
    r"\btold from\b": "distinguished from, detected",
    r"(?:^|[.!?:] )(?:What|Who) (?:is|was|has|runs|looks|goes|went|comes|came|belongs)\b":
        "a noun: Recordings longer than, Users of",
    r"\bno number\b": "not finite, NaN",
    r"\bin one go\b": "at once",
}  # fmt: skip
"""Phrases of our own, as regular expressions, each with the words to use."""

HELP_ENDINGS = re.compile(r", at (?:least|most)\.?$")
"""Endings of help texts that leave out what is limited."""


def openings(source: str) -> Iterator[tuple[int, str]]:
    """Find docstrings and help texts that open with a fragment: line, and text."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text and _first_word(text) in OPENINGS:
                yield getattr(node, "lineno", 1), text.splitlines()[0]
            for name, meaning in ARGUMENT.findall(text or ""):
                if _first_word(meaning) in ARGUMENT_OPENINGS:
                    yield getattr(node, "lineno", 1), f"{name}: {meaning}"
        elif isinstance(node, ast.keyword) and node.arg == "help":
            value = node.value
            text = value.value if isinstance(value, ast.Constant) else ""
            if _first_word(text) in OPENINGS or HELP_ENDINGS.search(text):
                yield value.lineno, text


def _first_word(text: str) -> str:
    words = text.split()
    return re.sub(r"\W", "", words[0]).lower() if words else ""


def prose(source: str) -> Iterator[tuple[int, str]]:
    """Find the comments and strings of a source, with their lines."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            yield token.start[0], token.string.strip("#\"' ")


def coinages(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Find phrases of our own: line, and the phrase with what to write instead."""
    for number, text in lines:
        for pattern, instead in COINAGES.items():
            for found in re.finditer(pattern, text, re.MULTILINE):
                yield number, f"{found[0]!r}: write {instead}"


def sources() -> list[Path]:
    """List the Python files of the project."""
    return sorted(path for name in SOURCES for path in (ROOT / name).rglob("*.py"))


def test_docstrings_and_help_texts_open_with_a_verb_or_a_name() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text!r}: begin with a verb and its object, or a noun"
        for path in sources()
        for line, text in openings(path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


def test_names_of_tests_state_a_behaviour() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        if name.split("_")[1] in TEST_OPENINGS
    ]
    assert not found, "\n".join(found)


def test_prose_has_no_coinages() -> None:
    found = []
    for path in sources():
        for line, words in coinages(prose(path.read_text(encoding="utf-8"))):
            found.append(f"{path.relative_to(ROOT)}:{line}: {words}")
    for path in [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        found += [f"{path.relative_to(ROOT)}:{line}: {words}" for line, words in coinages(lines)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("source", [
    '"""Of each utterance, one or several."""',
    'def f():\n    """What to say of audio that is too long."""',
    'class A:\n    """Whether it fits."""',
    'Option(help="Seconds of audio, at least.")',
    'Option(help="For each utterance.")',
    'def f(a):\n    """Read a file.\n\n    Args:\n        a: what to read.\n    """',
])  # fmt: skip
def test_fragments_are_found(source: str) -> None:
    assert len(list(openings(source))) == 1


@pytest.mark.parametrize("source", [
    '# Training goes on with the next epoch.', 'x = "a. What is longer is cut"',
    '"""Reads all.\n\nWho runs it finds nothing."""',
])  # fmt: skip
def test_coinages_are_found(source: str) -> None:
    assert len(list(coinages(prose(source)))) == 1


def test_plain_prose_passes() -> None:
    source = '"""Read a file."""\nOption(help="Reject recordings shorter than this (s).")  # noqa'
    assert list(openings(source)) == list(coinages(prose(source))) == []
