"""Pages of the documentation as code blocks, code spans, links and headings, with their lines."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PATTERNS = (
    "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/**/*.md", "examples/**/*.md",
    "models/*.md", "tests/**/*.md", "docker/**/*.md", "benchmarks/**/*.md",
)  # fmt: skip
GENERATED = "docs/reference/command-line.md"
"""Page that `make docs` writes; it is not in the repository."""

FENCE = re.compile(r"^( *)(`{3,}|~{3,})(.*)$")
SPAN = re.compile(r"(?<!`)(`+)(?!`)((?:(?!\n\s*\n).)+?)(?<!`)\1(?!`)", re.DOTALL)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
DEFINITION = re.compile(r"^ {0,3}\[[^\]]+\]:\s+<?(\S+?)>?(?:\s|$)", re.MULTILINE)
HTML_LINK = re.compile(r"<\w+[^>]*\s(?:href|src)=\"([^\"]+)\"")
HTML_ID = re.compile(r"<\w+[^>]*\s(?:id|name)=\"([^\"]+)\"")
HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.+?)\s*#*\s*$", re.MULTILINE)
HEADING_ID = re.compile(r"\s*\{[^}]*#([\w-]+)[^}]*\}$")
DIRECTIVE = re.compile(r"^::: ([\w.]+)", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """Fenced code block: line of its fence, everything after the backticks, and content."""

    line: int
    info: str
    text: str
    closed: bool = True

    @property
    def language(self) -> str:
        return self.info.partition(" ")[0]

    def lines(self) -> Iterator[tuple[int, str]]:
        """Number the lines of the content as lines of the page."""
        yield from enumerate(self.text.split("\n"), self.line + 1)


@dataclass(frozen=True)
class Page:
    """Markdown file: its path from the top of the repository, and its text."""

    path: str
    text: str

    def at(self, line: int, message: str) -> str:
        """Begin a message with the place that it is about."""
        return f"{self.path}:{line}: {message}"

    @cached_property
    def _parts(self) -> tuple[list[Block], str]:
        """Separate the fenced blocks from the prose, whose lines keep their numbers."""
        blocks, prose, content = [], [], []
        opened: tuple[int, str, str, int] | None = None
        for number, line in enumerate(self.text.split("\n"), 1):
            fence = FENCE.match(line)
            if opened is None and fence:
                opened, content = (number, fence[2], fence[3].strip(), len(fence[1])), []
            elif opened is not None and fence and fence[2].startswith(opened[1]) and not fence[3]:
                blocks.append(Block(opened[0], opened[2], "\n".join(content)))
                opened = None
            elif opened is not None:
                content.append(line[min(opened[3], len(line) - len(line.lstrip())) :])
            else:
                prose.append(line)
                continue
            prose.append("")
        if opened is not None:
            blocks.append(Block(opened[0], opened[2], "\n".join(content), closed=False))
        return blocks, "\n".join(prose)

    @property
    def blocks(self) -> list[Block]:
        return self._parts[0]

    def spans(self) -> Iterator[tuple[int, str]]:
        """Find the code between backticks in the prose."""
        prose = self._parts[1]
        for found in SPAN.finditer(prose):
            yield _line(prose, found.start()), " ".join(found[2].split())

    def links(self) -> Iterator[tuple[int, str]]:
        """Find the targets of links and pictures."""
        prose = SPAN.sub(lambda found: re.sub(r"[^\n]", "x", found[0]), self._parts[1])
        for pattern in (LINK, DEFINITION, HTML_LINK):
            for found in pattern.finditer(prose):
                yield _line(prose, found.start(1)), found[1]

    def anchors(self) -> set[str]:
        """List what a link to this page may have after its `#`."""
        prose = self._parts[1]
        used: dict[str, int] = {}
        site = self.path.startswith("docs/")
        found = set(HTML_ID.findall(prose))
        for title in HEADING.findall(prose):
            if site and (given := HEADING_ID.search(title)):
                found.add(given[1])
                continue
            slug = _site_slug(title) if site else _github_slug(title)
            count = used[slug] = used.get(slug, -1) + 1
            found.add(f"{slug}{'_' if site else '-'}{count}" if count else slug)
        return found

    def directives(self) -> list[tuple[int, str]]:
        """Find the names whose docstrings the site shows on this page."""
        prose = self._parts[1]
        return [(_line(prose, found.start()), found[1]) for found in DIRECTIVE.finditer(prose)]


def pages() -> list[Page]:
    """Read all pages that are in the repository."""
    paths = sorted({path for pattern in PATTERNS for path in ROOT.glob(pattern)})
    names = [
        path.relative_to(ROOT).as_posix() for path in paths if "node_modules" not in path.parts
    ]
    return [Page(name, (ROOT / name).read_text("utf-8")) for name in names if name != GENERATED]


def nearest(name: str, known: Iterable[str]) -> str:
    """List known names in a message: all of a few, or those that are most like a wrong one."""
    names = sorted(known)
    if len(names) > 8:
        names = difflib.get_close_matches(name, names, 4, 0)
    return ", ".join(names)


def _line(text: str, offset: int) -> int:
    return text.count("\n", 0, offset) + 1


def _plain(title: str) -> str:
    """Remove the marks of code, emphasis and links from a heading."""
    title = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", title)
    return re.sub(r"[`*]", "", title)


def _site_slug(title: str) -> str:
    """Make the anchor of a heading as Python-Markdown does."""
    plain = unicodedata.normalize("NFKD", _plain(title)).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def _github_slug(title: str) -> str:
    """Make the anchor of a heading as GitHub does."""
    return re.sub(r"[^\w\- ]", "", _plain(title).strip().lower()).replace(" ", "-")
