"""Commands in the code blocks and code spans of the documentation."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from tests.docs.pages import Page

LANGUAGES = ("bash", "text")
"""Languages of the blocks that may hold commands."""

PROGRAM = re.compile(
    r"^(?:\$ |\w+=\S* )*\S*\b(?:ds2deploy|make|python3?|bash|cd|cp|docker)\s|\bds2deploy \w"
)
"""Lines that are commands of this project, in blocks that may also hold pictures and output."""

OPERATORS = frozenset("();<>|&")
ASSIGNMENT = re.compile(r"^\w+=")
PREFIXES = {"$", "sudo", "time", "exec", "nohup", "env", "do", "then", "if", "while", "!"}


@dataclass(frozen=True)
class Command:
    """Words of one command; `whole` if it stands in a block and could be run as it is."""

    line: int
    words: tuple[str, ...]
    whole: bool


def commands(page: Page) -> Iterator[Command]:
    """Find the commands of a page.

    Raises:
        ValueError: a quotation is not closed; the message has the place.
    """
    for block in page.blocks:
        if block.language not in LANGUAGES:
            continue
        for line, text in _joined(block.lines()):
            if (found := PROGRAM.search(text)) is None:
                continue
            try:
                yield from (Command(line, words, True) for words in list(split(text)))
            except ValueError:
                if found.start() == 0:
                    raise ValueError(page.at(line, "close the quotation on this line")) from None
                yield from _remedy(line, text[found.start() :])
    for line, text in page.spans():
        if re.match(r"(?:\w+=\S+ )*(?:ds2deploy|make|python3?|bash) \S", text):
            try:
                yield from (Command(line, words, False) for words in split(text))
            except ValueError:
                raise ValueError(page.at(line, "close the quotation in this code")) from None


def _remedy(line: int, text: str) -> Iterator[Command]:
    """Find the command at the end of a message, whose apostrophes are no quotation."""
    try:
        yield from (Command(line, words, False) for words in list(split(text)))
    except ValueError:
        return


def split(text: str) -> Iterator[tuple[str, ...]]:
    """Split a line into its commands, without assignments, comments and redirections."""
    text = re.sub(r"(?<=\s)\d(?=[<>])", "", text)
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    redirected = False
    for word in lexer:
        if set(word) <= OPERATORS:
            redirected = "<" in word or ">" in word
            if not redirected:
                yield from _command(words)
                words = []
        elif redirected:
            redirected = False
        else:
            words.append(word)
    yield from _command(words)


def _command(words: list[str]) -> Iterator[tuple[str, ...]]:
    while words and (words[0] in PREFIXES or ASSIGNMENT.match(words[0])):
        words = words[1:]
    if words:
        yield tuple(words)


def _joined(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Join lines that end with a backslash to the next; the number is that of the first."""
    first, text = 0, ""
    for number, line in lines:
        first = first or number
        if line.endswith("\\"):
            text += line[:-1] + " "
            continue
        yield first, text + line
        first, text = 0, ""
    if text:
        yield first, text
