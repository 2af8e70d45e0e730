"""Lines of text files."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ds2deploy.text_files import text_lines

LINES = st.lists(st.text(st.characters(exclude_characters="\r\n")), min_size=1)


@given(LINES)
def test_lines_of_any_other_characters_come_back(lines: list[str]):
    for end in ("\n", "\r\n", "\r"):
        assert text_lines(end.join(lines)) == lines


def test_a_carriage_return_among_line_feeds_ends_no_line():
    assert text_lines("one\rtwo\nthree\r\n") == ["one\rtwo", "three", ""]
