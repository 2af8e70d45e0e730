"""The page of recipe keys is that of the code."""

from __future__ import annotations

import importlib.util
from functools import cache
from types import ModuleType

import msgspec

from ds2deploy.config import Recipe
from tests.docs.pages import ROOT

PAGE = ROOT / "docs" / "reference" / "recipe.md"


@cache
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recipe", ROOT / "docs" / "scripts" / "recipe.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_recipe_keys_is_current() -> None:
    remedy = "run `python docs/scripts/recipe.py docs/reference/recipe.md`"
    assert PAGE.read_text("utf-8") == script().reference(), remedy


def test_the_page_has_every_key_with_its_meaning() -> None:
    page = script().reference()
    for section, values in msgspec.to_builtins(Recipe()).items():
        for key in values if isinstance(values, dict) else [section]:
            (row,) = (
                line
                for part in page.split("\n## ")[1:]
                if part.startswith((f"[{section}]", "Above") if key == section else f"[{section}]")
                for line in part.splitlines()
                if line.startswith(f"| `{key}` |")
            )
            assert all(cell.strip() for cell in row.strip("|").split(" | ")), row
