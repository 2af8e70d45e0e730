"""Code blocks: the pages whose commands CI runs, and JSON and TOML that parse."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache

import msgspec
import pytest

from ds2deploy.config import Recipe
from tests.docs.pages import ROOT, Block, Page, pages

LANGUAGES = {
    "bash": "commands that CI runs",
    "text": "commands that CI does not run, output and drawings",
    "python": "Python", "json": "JSON", "toml": "recipes", "yaml": "YAML", "ini": "unit files",
    "dockerfile": "Dockerfiles", "nginx": "nginx's settings", "protobuf": "Triton's settings",
    "javascript": "JavaScript", "html": "HTML", "cpp": "C++", "c": "C", "sql": "SQL",
    "mermaid": "drawings", "diff": "changes",
}  # fmt: skip
SHELLS = ("sh", "shell", "console", "zsh", "shell-session")

ABRIDGED = re.compile(r"\.\.\.|…|<\w+>")
"""Marks of JSON that is shown in part, or with a name in place of a value."""

EXPLANATION = "CONTRIBUTING.md"
"""Page that explains which blocks CI runs."""


@cache
def run_by_ci() -> tuple[str, ...]:
    """List the pages whose `bash` blocks `.ci/run` runs, in their order."""
    found = re.search(r"^cat ((?:\S+\.md )+)\|", (ROOT / ".ci" / "run").read_text("utf-8"), re.M)
    assert found, "a line of .ci/run reads the pages: cat README.md ... |"
    return tuple(found[1].split())


def faults(page: Page) -> Iterator[str]:
    """Find the blocks of a page that are marked wrongly or do not parse."""
    for block in page.blocks:
        for message in (_mark(page.path, block), _content(block)):
            if message:
                yield page.at(block.line, message)


def _mark(path: str, block: Block) -> str | None:
    if not block.closed:
        return "this block is not closed; write ``` at its end"
    language = block.language
    pages_run = " and ".join(run_by_ci())
    if not language:
        return "write a language after the backticks: ```text for commands and output"
    if language in SHELLS or (language == "bash" and path not in run_by_ci()):
        return (
            f"write ```text instead of ```{language}: CI runs the `bash` blocks of {pages_run} "
            f"only, and `bash` marks what it runs (see {EXPLANATION})"
        )
    if language == "bash" and block.info != "bash":
        return "write ```bash alone: .ci/run finds no other spelling"
    if language not in LANGUAGES:
        return f"unknown language {language}; write one of {', '.join(LANGUAGES)}"
    return None


def _content(block: Block) -> str | None:
    if block.language == "json" and not ABRIDGED.search(block.text):
        try:
            _read_json(block.text)
        except ValueError as error:
            return f"not JSON ({error}); correct it, or write ... for what is left out"
    if block.language == "toml":
        try:
            document = msgspec.toml.decode(block.text)
            if set(document) <= set(Recipe.__struct_fields__):
                msgspec.convert(document, Recipe)
        except ValueError as error:  # msgspec's errors are ValueErrors
            return f"not a recipe ({error}); correct the key or the value"
    return None


def _read_json(text: str) -> None:
    """Read one document, or one on each line."""
    try:
        json.loads(text)
    except ValueError:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 2 or not all(line.startswith(("{", "[")) for line in lines):
            raise
        for line in lines:
            json.loads(line)


def test_blocks_on_the_pages_are_marked_and_parse() -> None:
    found = [message for page in pages() for message in faults(page)]
    assert not found, "\n" + "\n".join(found)


def test_pages_that_ci_runs_have_commands() -> None:
    texts = {page.path: page for page in pages()}
    for path in run_by_ci():
        assert any(block.language == "bash" for block in texts[path].blocks), path


def test_explanation_names_the_pages_that_ci_runs() -> None:
    text = (ROOT / EXPLANATION).read_text("utf-8")
    for word in ("`bash`", "`text`", *run_by_ci()):
        assert word in text, f"{EXPLANATION}: say which blocks CI runs; {word} is not mentioned"


@pytest.mark.parametrize(("path", "text", "message"), [
    ("docs/a.md", "```bash\nls\n```", "write ```text instead of ```bash"),
    ("docs/a.md", "```sh\nls\n```", "write ```text instead of ```sh"),
    ("README.md", "```console\n$ ls\n```", "write ```text instead of ```console"),
    ("README.md", '```bash title="Try it"\nls\n```', "write ```bash alone"),
    ("docs/a.md", "1. Run\n\n    ```\n    ls\n    ```", "write a language"),
    ("docs/a.md", "```text\nls", "not closed"),
    ("docs/a.md", "```pyhton\nx\n```", "unknown language pyhton"),
    ("docs/a.md", '```json\n{"text": "a",}\n```', "not JSON"),
    ("docs/a.md", '```json\n{"a": 1}\n{"b": }\n```', "not JSON"),
    ("docs/a.md", "```toml\n[training]\nepoch = 3\n```", "epoch"),
    ("docs/a.md", "```toml\n[training]\nepochs = three\n```", "not a recipe"),
    ("docs/a.md", '```toml\n[augment]\nspeed = [1.1, 0.9]\n```', "augment.speed"),
])  # fmt: skip
def test_wrong_blocks_are_found(path: str, text: str, message: str) -> None:
    found = list(faults(Page(path, text)))
    assert len(found) == 1, found
    assert re.match(rf"{path}:[13]: ", found[0])
    assert message in found[0]


@pytest.mark.parametrize(("path", "text"), [
    ("README.md", "```bash\nls\n```"),
    ("docs/a.md", '```json\n{"a": 1}\n{"b": 2}\n```\n\n```json\n{"a": 1, ...}\n```'),
    ("docs/a.md", "```toml\n[training]\nepochs = 3\n```\n\n```toml\n[project]\nname = 'a'\n```"),
])  # fmt: skip
def test_right_blocks_pass(path: str, text: str) -> None:
    assert list(faults(Page(path, text))) == []
