"""Links between the pages lead to files and headings that exist."""

from __future__ import annotations

import importlib.util
import posixpath
import re
from collections.abc import Iterator
from functools import cache
from urllib.parse import unquote

import pytest

from tests.docs.pages import GENERATED, ROOT, Page, nearest, pages

SITE = "docs/"
"""Folder of the site; its pages cannot link to files outside it."""


@cache
def page_at(path: str) -> Page:
    """Read a page, or generate the one that is not in the repository."""
    if path != GENERATED:
        return Page(path, (ROOT / path).read_text("utf-8"))
    script = ROOT / "docs" / "scripts" / "command_line.py"
    spec = importlib.util.spec_from_file_location("command_line", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Page(path, module.reference())


def faults(page: Page) -> Iterator[str]:
    """Find the links of a page that lead nowhere."""
    for line, link in page.links():
        if "://" in link or link.startswith(("mailto:", "data:")):
            continue
        if message := _fault(page, unquote(link)):
            yield page.at(line, f"({link}): {message}")


def _fault(page: Page, link: str) -> str | None:
    name, _, anchor = link.partition("#")
    if name.startswith("/"):
        return "write the path from the folder of this page"
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page.path), name))
    path = path if name else page.path
    if path.startswith(".."):
        return "this is outside the repository"
    if page.path.startswith(SITE) and not path.startswith(SITE):
        return "the site has no files outside docs/; name the file in backticks instead"
    if name and path != GENERATED and not (ROOT / path).exists():
        return f"there is no {path}"
    if not anchor or not path.endswith(".md"):
        return None
    target = page if path == page.path else page_at(path)
    known = target.anchors()
    shown = [identifier for _, identifier in target.directives()]
    if anchor in known or any(f"{anchor}.".startswith(f"{one}.") for one in shown):
        return None
    return f"{path} has no heading #{anchor}; write one of {nearest(anchor, known)}"


def test_links_on_the_pages_lead_somewhere() -> None:
    found = [message for page in pages() for message in faults(page)]
    assert not found, "\n" + "\n".join(found)


def test_pages_of_the_site_are_in_its_navigation() -> None:
    listed = re.findall(r"^ +- (?:.+: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.M)
    named = {page.path.removeprefix(SITE) for page in pages() if page.path.startswith(SITE)}
    missing = named - set(listed)
    assert not missing, f"mkdocs.yml: add to nav: {', '.join(sorted(missing))}"
    assert len(listed) == len(set(listed)), "mkdocs.yml: nav has a page twice"


@pytest.mark.parametrize(("path", "text", "message"), [
    ("README.md", "[a](docs/instal.md)", "no docs/instal.md"),
    ("README.md", "![a](docs/images/none.png)", "no docs/images/none.png"),
    ("README.md", "[a](docs/export.md#intt8)", "no heading #intt8"),
    ("README.md", "[a](docs/reference/command-line.md#trian)", "write one of train"),
    ("README.md", "# Try it\n\n[a](#try_it)", "write one of try-it"),
    ("README.md", "[a][b]\n\n[b]: docs/instal.md", "no docs/instal.md"),
    ("README.md", '<img src="docs/images/none.png">', "no docs/images/none.png"),
    ("docs/a.md", "[a](../README.md)", "in backticks"),
    ("docs/a.md", "[`load`](reference/api.md#ds2deploy.loading.loads)", "no heading"),
    ("docs/a.md", "[a](/docs/export.md)", "from the folder of this page"),
    ("README.md", "[a](../b.md)", "outside the repository"),
])  # fmt: skip
def test_links_that_lead_nowhere_are_found(path: str, text: str, message: str) -> None:
    found = list(faults(Page(path, text)))
    assert len(found) == 1, found
    assert message in found[0]


@pytest.mark.parametrize(("path", "text"), [
    ("README.md", "[a](docs/install.md) [b](docs/) [c](https://a.b/c.md#d) `[d](e.md)`"),
    ("README.md", "## A *b* & `c`\n\n[x](#a-b--c)\n\n## A *b* & `c`\n\n[y](#a-b--c-1)"),
    ("docs/a.md", "## A *b* & `c`\n\n[x](#a-b-c)\n\n## A *b* & `c`\n\n[y](#a-b-c_1)"),
    ("docs/a.md", "## Train it {: #training }\n\n[x](#training)"),
    ("docs/a.md", "[x](reference/command-line.md#train) [y](reference/command-line.md)"),
    ("docs/a.md", "[x](reference/api.md#ds2deploy.runtimes.recognizer.Recognizer.stream)"),
    ("docs/a.md", "```text\n[a](none.md)\n```"),
])  # fmt: skip
def test_links_that_lead_somewhere_pass(path: str, text: str) -> None:
    assert list(faults(Page(path, text))) == []
