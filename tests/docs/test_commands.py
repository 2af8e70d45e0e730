"""Commands on the pages: programs, options, values, recipe keys, make targets and scripts exist."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import PurePath
from typing import Any, get_args

import pytest
import typer.main

from ds2deploy.cli.app import app
from ds2deploy.cli.errors import USAGE_ERROR
from ds2deploy.data.corpora.registry import find_layout
from ds2deploy.loading import runtime_names
from ds2deploy.recipes import load_recipe, recipe_names
from ds2deploy.runtimes.artifact import Precision
from ds2deploy.runtimes.errors import Ds2Error
from tests.docs.pages import ROOT, Page, nearest, pages
from tests.docs.scripts import make_faults, script_faults
from tests.docs.shell import Command, commands

HISTORY = ("CHANGELOG.md",)
"""Pages about earlier versions, whose commands need not exist any longer."""

FOLDERS = ("benchmarks", "docker", "docs", "examples", "tests", ".ci")
"""Folders of this repository that no reader has of their own: files in them must exist."""

PLACEHOLDER = re.compile(r"\.\.\.|…|^\[.*\]$")
"""Words that stand for something to fill in."""

OTHER = re.compile(rf"{PLACEHOLDER.pattern}|^--help|^--version|^COMMAND|^\d")
"""First words after `ds2deploy` that are no command; a number is the output of --version."""


def faults(page: Page) -> Iterator[str]:
    """Find the commands of a page that would not run: where, and what to write."""
    try:
        found = list(commands(page))
    except ValueError as error:
        yield str(error)
        return
    for command in found:
        for message in _faults(command):
            yield page.at(command.line, f"`{' '.join(command.words)}`: {message}")


def _faults(command: Command) -> Iterator[str]:
    words = command.words
    program = PurePath(words[0]).name
    start = _start(words)
    if start is not None:
        yield from _ds2deploy(words[start:], command.whole and start == 1)
        yield from _files(words) if command.whole else ()
    elif program == "make":
        yield from make_faults(words[1:])
    elif re.fullmatch(r"python[\d.]*|bash|sh", program) or program.endswith((".py", ".sh")):
        yield from script_faults(words if program.endswith((".py", ".sh")) else words[1:])
    elif command.whole:
        yield from _files(words)


def _files(words: Sequence[str]) -> Iterator[str]:
    """Check that files in folders of the repository exist."""
    for word in words:
        path = word.partition(":")[0]
        if path.split("/")[0] not in FOLDERS or "/" not in path or re.search(r"[*?{$]", path):
            continue
        if not (ROOT / path).exists():
            yield f"there is no {path}; write a path from the top of the repository"


def _start(words: Sequence[str]) -> int | None:
    """Find where the arguments of ds2deploy begin, also after torchrun and docker run."""
    for index, word in enumerate(words):
        if PurePath(word).name != "ds2deploy":
            continue
        following = words[index + 1] if index + 1 < len(words) else ""
        if index == 0 or words[index - 1] == "-m" or following in commands_of_ds2deploy():
            return index + 1
    return None


@cache
def _group() -> tuple[Any, Any]:
    group: Any = typer.main.get_command(app)
    return group, group.make_context("ds2deploy", [], resilient_parsing=True)


@cache
def commands_of_ds2deploy() -> dict[str, Any]:
    """Find the commands of the program, by their names."""
    group, context = _group()
    return {name: group.get_command(context, name) for name in group.list_commands(context)}


def options_of(name: str) -> set[str]:
    """List the spellings of the options of a command."""
    parameters = commands_of_ds2deploy()[name].params
    options = (item for item in parameters if item.param_type_name == "option")
    found = {spelling for item in options for spelling in (*item.opts, *item.secondary_opts)}
    return found | {"--help"}


def _ds2deploy(words: Sequence[str], whole: bool) -> Iterator[str]:
    """Check a command of ds2deploy: all of it, or only names if it is a part of one."""
    if not words or OTHER.search(words[0]):
        return
    name, *rest = words
    if name not in commands_of_ds2deploy():
        yield f"no such command; write one of {', '.join(commands_of_ds2deploy())}"
        return
    known = options_of(name)
    for word in rest:
        option = word.partition("=")[0]
        if option.startswith("--") and option not in known | {"--"}:
            near = nearest(option, known)
            yield f"`ds2deploy {name}` has no option {option}; write one of {near}"
            return
    if whole and "--help" not in rest and not any(map(PLACEHOLDER.search, rest)):
        yield from _parse(name, rest)


def _parse(name: str, words: list[str]) -> Iterator[str]:
    try:
        command = commands_of_ds2deploy()[name]
        given = command.make_context(name, list(words), parent=_group()[1]).params
    except USAGE_ERROR as error:
        yield f"{error.format_message()} Correct it, or write ... for what is left out"
        return
    try:
        _check_values(name, given)
    except Ds2Error as error:
        yield f"{error}; correct the value"


def _check_values(name: str, given: dict[str, Any]) -> None:
    """Check the values that a command reads by itself.

    Raises:
        Ds2Error: a value is not known.
    """
    recipe = given.get("recipe") or "deepspeech2"
    overrides = given.get("set_") or []
    load_recipe(recipe if recipe in recipe_names() or "." not in recipe else "digits", overrides)
    if layout := given.get("layout"):
        find_layout(layout)
    chosen = [("precision", get_args(Precision)), ("runtime", runtime_names())]
    for key, known in chosen:
        values = given.get(key) or ""
        for value in values if isinstance(values, list) else values.split(","):
            if value and value not in known:
                raise Ds2Error(f"--{key} {value}: expected one of {', '.join(known)}")


def test_commands_on_the_pages_exist() -> None:
    found = [message for page in pages() if page.path not in HISTORY for message in faults(page)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(("text", "message"), [
    ("ds2deploy trian digits", "no such command"),
    ("ds2deploy train digits --resumed", "no option --resumed"),
    ("cat a.wav | ds2deploy transcribe m.onnx - --streams", "no option --streams"),
    ("ds2deploy transcribe m.onnx \\\n  a.wav --format xml", "'xml' is not one of"),
    ("ds2deploy verify m.onnx && ls", "Missing argument"),
    ("ds2deploy export m.ckpt", "Missing option '--out'"),
    ("ds2deploy export m.ckpt --out", "requires an argument"),
    ("ds2deploy export m.ckpt --out d --precision fp32,fp8", "fp8"),
    ("ds2deploy transcribe m.onnx a.wav --runtime ort", "ort"),
    ("ds2deploy transcribe m.onnx a.wav --threads two", "valid integer"),
    ("ds2deploy prepare a b --layout librispech", "librispech"),
    ("ds2deploy train digits --set training.epoch=3", "unknown key"),
    ("ds2deploy train digits --set training.epochs=many", "training.epochs"),
    ("ds2deploy train digit", "digit"),
    ("torchrun --nproc-per-node 2 -m ds2deploy train an4 --resumee", "no option --resumee"),
    ("make tests", "no target tests"),
    ("make test ONLY=a", "no variable ONLY"),
    ("python benchmarks/latencies.py", "no benchmarks/latencies.py"),
    ("python benchmarks/latency.py --quickly", "no option --quickly"),
    ("python examples/triton_client.py m a.wav --thread 2", "no option --thread"),
    ("ds2deploy inspect tests/models/digit.ckpt", "no tests/models/digit.ckpt"),
    ("ds2deploy inspect 'm.onnx", "close the quotation"),
    ("a.engine: not this GPU's: ds2deploy export a.onnx --trtt", "no option --trtt"),
    ("for f in *.wav; do ds2deploy transcribe; done", "Missing argument"),
])  # fmt: skip
def test_commands_that_would_not_run_are_found(text: str, message: str) -> None:
    found = list(faults(Page("docs/a.md", f"# A\n\n```text\nls\n{text}\n```\n")))
    assert len(found) == 1, found
    assert found[0].startswith("docs/a.md:5: ")
    assert message in found[0]


@pytest.mark.parametrize("text", [
    "`ds2deploy export --audio FILE`", "`ds2deploy train`", "`make bench`", "`bash .ci/run`",
    "`python benchmarks/latency.py --quick --out results`",
    "```text\nA=1 ds2deploy lm s.txt --out a.lm > log.txt 2>&1  # it's a comment\n```",
    "```text\narecord -r 16000 | ds2deploy transcribe m.onnx - --stream\n```",
    "```text\nds2deploy serve ...\nsay 'what\n```",
    "```text\nds2deploy 1.0.0\nmodel.engine: not this GPU's: ds2deploy export a.onnx --trt\n```",
    '```text\nfor f in *.wav; do ds2deploy transcribe m.onnx "$f"; done\n```',
])  # fmt: skip
def test_commands_that_run_pass(text: str) -> None:
    assert list(faults(Page("docs/a.md", text))) == []


@pytest.mark.parametrize("text", [
    "`ds2deploy export --audi FILE`", "`make benches`", "`bash .ci/ru`",
    "`python benchmarks/latency.py --quickly`",
])  # fmt: skip
def test_parts_of_commands_in_the_prose_are_checked(text: str) -> None:
    assert len(list(faults(Page("docs/a.md", f"# A\n\nRun {text}.\n")))) == 1
