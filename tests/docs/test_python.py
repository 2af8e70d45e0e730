"""Python on the pages: it parses, and the names and arguments of ds2deploy in it exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

import ds2deploy
from tests.docs.pages import Page, pages
from tests.docs.python_names import Checker
from tests.docs.python_types import Instance, Thing, Value
from tests.docs.test_commands import HISTORY

SPAN = re.compile(r"(?:ds2deploy|[A-Z]\w+)(?:\.[A-Za-z_]\w*)+(?:\(.*\))?")
"""Code in the prose that names something of the library, such as `Recognizer.stream()`."""

FILE = re.compile(r"\.(?:service|json|toml|txt|onnx|sock|socket|md|py|log|conf|wav)$", re.I)


def faults(page: Page) -> Iterator[str]:
    """Find Python of a page that cannot be right: where, and what to write."""
    names = conventional()
    for block in page.blocks:
        if block.language != "python":
            continue
        try:
            tree = ast.parse(block.text)
        except SyntaxError as error:
            line = block.line + (error.lineno or 1)
            yield page.at(line, f"not Python ({error.msg}); correct it, or write ```text")
            continue
        checker = Checker(names)
        checker.visit(tree)
        names = checker.names
        for line, message in checker.faults:
            yield page.at(block.line + line, message)
    for line, text in page.spans():
        for message in _span(text):
            yield page.at(line, f"`{text}`: {message}")
    for line, name in page.directives():
        for message in _span(name):
            yield page.at(line, f"::: {name}: {message}")


def conventional() -> dict[str, Value]:
    """Bind the names that pages use without defining them in every block."""
    return {
        "ds2deploy": Thing(ds2deploy),
        "recognizer": Instance(ds2deploy.Recognizer),
        "stream": Instance(ds2deploy.Stream),
    }


def _span(text: str) -> Iterator[str]:
    """Check a name, or a call that leaves out arguments."""
    if not SPAN.fullmatch(text) or FILE.search(text):
        return
    names = {name: Thing(getattr(ds2deploy, name)) for name in ds2deploy.__all__}
    checker = Checker({**names, "ds2deploy": Thing(ds2deploy)}, strict=False)
    try:
        checker.visit(ast.parse(text, mode="eval"))
    except SyntaxError:
        yield "not Python; correct it"
    yield from (message for _, message in checker.faults)


def test_python_on_the_pages_names_what_exists() -> None:
    found = [message for page in pages() if page.path not in HISTORY for message in faults(page)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(("text", "message"), [
    ("print(", "not Python"),
    ("import ds2deploy.runtime", "no module ds2deploy.runtime"),
    ("from ds2deploy import loud", "has no loud"),
    ("from ds2deploy.runtimes.recognizer import Recogniser", "has no Recogniser"),
    ("from examples.triton_client import conect", "no conect"),
    ("ds2deploy.lod('a.onnx')", "has no lod"),
    ("ds2deploy.load()", "missing a required argument"),
    ("ds2deploy.load('a.onnx', decode=None)", "'decode'"),
    ("ds2deploy.DecoderConfig(language_model='a')", "language_model"),
    ("r = ds2deploy.load('a')\nr.transcribes('b')", "has no transcribes"),
    ("print(recognizer.transcribe('b', hotwords={}))", "'hotwords'"),
    ("t = recognizer.transcribe('b')\nprint(t.txt)", "has no txt"),
    ("for word in recognizer.transcribe('b').words:\n    word.begin", "has no begin"),
    ("[word.begin for word in recognizer.transcribe('b').words]", "has no begin"),
    ("with recognizer.stream() as s:\n    s.acept(1)", "has no acept"),
    ("with recognizer.stream() as s:\n    print(s.accept(1).texts)", "has no texts"),
    ("with recognizer.pool() as pool:\n    for s, update in pool.tick():\n        s.nam", "nam"),
    ("def f(r: ds2deploy.Recognizer):\n    r.transcribes('b')", "has no transcribes"),
])  # fmt: skip
def test_names_that_do_not_exist_are_found(text: str, message: str) -> None:
    found = list(faults(Page("docs/a.md", f"```python\n{text}\n```")))
    assert len(found) == 1, found
    assert re.match(r"docs/a.md:[2-4]: ", found[0])
    assert message in found[0]


@pytest.mark.parametrize("text", [
    "`ds2deploy.lod`", "`Recognizer.streams()`", "`ds2deploy.load(..., decode=...)`",
    "::: ds2deploy.loading.lod",
])  # fmt: skip
def test_names_in_the_prose_are_checked(text: str) -> None:
    assert len(list(faults(Page("docs/a.md", f"# A\n\n{text}\n")))) == 1


@pytest.mark.parametrize("text", [
    "`Recognizer.stream()` `ds2deploy.load(..., decoder=...)` `ds2deploy.service` `OpenAI.x()`",
    "::: ds2deploy.loading.load",
    "```python\nimport ds2deploy.runtimes.features as f\nf.FeatureConfig(sample_rate=8000)\n```",
    "```python\nargs = {}\nds2deploy.load('a', **args).transcribe('b').text.lower()\n```",
])  # fmt: skip
def test_names_that_exist_pass(text: str) -> None:
    assert list(faults(Page("docs/a.md", text))) == []
