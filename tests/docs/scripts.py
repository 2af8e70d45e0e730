"""Targets of make, and scripts of the repository with their options."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import PurePath

from tests.docs.pages import ROOT, nearest


def make_faults(words: Sequence[str]) -> Iterator[str]:
    """Check the targets and variables that make is given."""
    text = (ROOT / "Makefile").read_text("utf-8")
    targets = re.findall(r"^(\w[\w-]*):(?!=)", text, re.MULTILINE)
    for word in words:
        variable, equals, _ = word.partition("=")
        if equals:
            if not re.search(rf"\$\({re.escape(variable)}\)", text):
                yield f"the Makefile has no variable {variable}"
        elif not word.startswith("-") and word not in targets and word != "TARGET":
            yield f"the Makefile has no target {word}; write one of {nearest(word, targets)}"


def script_faults(words: Sequence[str]) -> Iterator[str]:
    """Check a script of the repository and the options that it is given."""
    while words and words[0] in ("-u", "-euo", "pipefail"):
        words = words[1:]
    if not words or words[0].startswith("-") or "/" not in words[0] or words[0][0] in "/~":
        return
    path, *rest = words
    if not (ROOT / path).is_file():
        yield f"there is no {path}; write the path from the top of the repository"
    elif path.endswith(".py"):
        known = script_options(path)
        for word in rest:
            option = word.partition("=")[0]
            if option.startswith("--") and option not in known:
                yield f"{path} has no option {option}; write one of {nearest(option, known)}"


@cache
def script_options(path: str) -> set[str]:
    """List the options that a script gives to argparse, also through functions beside it."""
    tree = _parsed(path)
    found = _added(tree) | {"--help"}
    for node in tree.body:
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        beside = str(PurePath(path).with_name(f"{node.module.rpartition('.')[2]}.py"))
        if (ROOT / beside).is_file():
            names = {alias.name for alias in node.names}
            for other in _parsed(beside).body:
                if isinstance(other, ast.FunctionDef) and other.name in names:
                    found |= _added(other)
    return found


@cache
def _parsed(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text("utf-8"))


def _added(tree: ast.AST) -> set[str]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    added = [call for call in calls if getattr(call.func, "attr", "") == "add_argument"]
    values = [item.value for call in added for item in call.args if isinstance(item, ast.Constant)]
    return {str(value) for value in values if str(value).startswith("-")}
