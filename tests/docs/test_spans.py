"""Names on the pages: options, recipe keys, files, extras and environment variables exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import msgspec
import pytest

from ds2deploy.config import Recipe
from tests.docs.pages import ROOT, Page, nearest, pages
from tests.docs.scripts import script_options
from tests.docs.test_commands import (
    HISTORY,
    commands_of_ds2deploy,
    options_of,
)

FOLDERS = ("ds2deploy", "export", "runtimes", "tests", "docs", "examples", "benchmarks", "docker")

PATH = re.compile(r"\.?[a-z][\w.-]*(?:/[\w.-]+)+/?")
EXTRAS = re.compile(r"\bds2deploy(?:-[\w.-]+\.whl)?\[([a-z, -]+)\]")
VARIABLE = re.compile(r"\bDS2DEPLOY_[A-Z0-9_]*[A-Z0-9]\b")
PLACEHOLDER = re.compile(r"\b[A-Z]{2,}\b(?!\.md)")
SECTIONS = [name for name, value in msgspec.structs.asdict(Recipe()).items() if name != "labels"]
KEY = re.compile(rf"(?:--set )?({'|'.join(SECTIONS)})\.(\w+)(?: ?=.*)?")
FILES_OF_MODELS = ("onnx", "engine", "plan", "ckpt", "json")
"""Endings of files whose name begins like the section `model`."""


def faults(page: Page) -> Iterator[str]:
    """Find the code of a page that names what does not exist: where, and what to write."""
    for line, text in page.spans():
        for check in (_option, _key, _file):
            if message := check(text):
                yield page.at(line, f"`{text}`: {message}")
    for line, text in enumerate(page.text.split("\n"), 1):
        for extra in ",".join(EXTRAS.findall(text)).replace(" ", "").split(","):
            if extra and extra not in known_extras():
                known = nearest(extra, known_extras())
                yield page.at(line, f"ds2deploy[{extra}]: no such extra; write one of {known}")
        for variable in VARIABLE.findall(text):
            if variable not in _known_variables():
                known = nearest(variable, _known_variables())
                yield page.at(line, f"{variable}: no code reads it; write one of {known}")


@cache
def known_extras() -> set[str]:
    project = msgspec.toml.decode((ROOT / "pyproject.toml").read_bytes())["project"]
    return set(project["optional-dependencies"])


@cache
def _known_variables() -> set[str]:
    """List the variables that the code reads."""
    folders = ("ds2deploy", "export", "runtimes", "tests", "docker", "examples")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    kinds = (".py", ".sh", ".yaml", ".service", "")
    read = [path for path in files if path.suffix in kinds and path.parent != Path(__file__).parent]
    return {name for path in read for name in VARIABLE.findall(path.read_text("utf-8", "ignore"))}


@cache
def _known_options() -> set[str]:
    """List the options of all commands and examples."""
    examples = (path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").glob("*.py"))
    found = {"--version"}.union(*map(options_of, commands_of_ds2deploy()))
    return found.union(*map(script_options, examples))


def _option(text: str) -> str | None:
    found = re.match(r"--[a-z][\w-]*", text)
    if found and found[0] not in _known_options():
        return (
            f"ds2deploy has no option {found[0]}; write one of "
            f"{nearest(found[0], _known_options())}; or name its program: `docker run {found[0]}`"
        )
    return None


def _key(text: str) -> str | None:
    found = KEY.fullmatch(text)
    if not found or (found[1] == "model" and found[2] in FILES_OF_MODELS):
        return None
    known = getattr(Recipe(), found[1]).__struct_fields__
    if found[2] not in known:
        return f"no such key in [{found[1]}]; write one of {nearest(found[2], known)}"
    return None


def _file(text: str) -> str | None:
    if not PATH.fullmatch(text) or text.split("/")[0] not in FOLDERS or PLACEHOLDER.search(text):
        return None
    if not (ROOT / text).exists():
        return "no such file in the repository; write its path from the top"
    return None


def test_code_in_the_prose_names_what_exists() -> None:
    found = [message for page in pages() if page.path not in HISTORY for message in faults(page)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(("text", "message"), [
    ("--presicion fp16", "has no option --presicion"),
    ("training.epoch", "no such key in [training]; write one of epochs"),
    ("--set data.batchsize=8", "no such key in [data]; write one of batch_size"),
    ("model.hiden = 512", "no such key in [model]"),
    ("runtimes/openvin.py", "no such file"),
    ("ds2deploy/data/corporas/", "no such file"),
])  # fmt: skip
def test_names_that_do_not_exist_are_found(text: str, message: str) -> None:
    found = list(faults(Page("docs/a.md", f"# A\n\nb\n`{text}`\n")))
    assert len(found) == 1, found
    assert found[0].startswith("docs/a.md:4: ")
    assert message in found[0]


@pytest.mark.parametrize("text", [
    "pip install 'ds2deploy[cpus,serve]'", "pip install './ds2deploy-1.0.0-py3-none-any.whl[ras]'",
    "DS2DEPLOY_API_KEYS=... ds2deploy serve model.onnx",
])  # fmt: skip
def test_extras_and_variables_that_do_not_exist_are_found(text: str) -> None:
    found = list(faults(Page("docs/a.md", f"# A\n\n```text\n{text}\n```\n")))
    assert len(found) == 1, found
    assert found[0].startswith("docs/a.md:4: ")


@pytest.mark.parametrize("text", [
    "--precision fp32,fp16", "--no-onnx", "docker run --gpus all", "training.epochs=3",
    "model.onnx", "runtimes/openvino.py", "ds2deploy/data/corpora/NAME.py", "docs/", "data/mine",
    "--help", "--microphone",
])  # fmt: skip
def test_names_that_exist_pass(text: str) -> None:
    assert list(faults(Page("docs/a.md", f"`{text}`"))) == []
