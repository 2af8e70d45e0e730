"""Change bytes so that a reader gets farther than random bytes would."""

from __future__ import annotations

import pickletools
import re
import struct
from collections.abc import Callable, Sequence
from random import Random

NUMBERS = (
    0, 1, -1, 2, 3, 7, 8, 127, 128, 255, 256, 1000, 4096, 32767, 32768, 65535, 65536, 1 << 20,
    (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 53) + 1, (1 << 63) - 1, 1 << 63,
    (1 << 64) - 1, 10**12, 10**40,
)  # fmt: skip
"""Numbers at which counts, sizes and rates break."""

VALUES = (
    *(str(number).encode() for number in NUMBERS),
    b"null", b"true", b"false", b'""', b'"a"', b"[]", b"{}", b"[[]]", b'{"a": 1}', b"0.5", b"-0.5",
    b"1e308", b"-1e308", b"1e-320", b"1e999", b"nan", b"inf", b"-inf", b'"\\u0000"',
    b'"\\ud800"', b'"\xff"', b'"/"', b'"."', b'"/dev/zero"', b'"' + b"a" * 5000 + b'"',
    b"[" * 3000, b'{"a":' * 3000, b"1979-05-27T07:32:00Z", b"07:32:00", b"0x7f", b"'''a'''",
)  # fmt: skip
"""Values of JSON and TOML in the place of others."""

TEXT_VALUE = re.compile(rb'"(?:[^"\\\n]|\\.)*"|-?\d[\d.eE+-]*|true|false|null')

PICKLED = (
    b"N", b"\x88", b"\x89", b"K\x00", b"K\x01", b"J\xff\xff\xff\xff", b"J\xff\xff\xff\x7f",
    b"J\x00\x00\x00\x10", b"\x8a\x09" + bytes(8) + b"\x01", b"\x8a\x05" + bytes(4) + b"\x01",
    b"\x8a\x10" + b"\xff" * 15 + b"\x7f", b"G\x7f\xf0" + bytes(6), b"G\x7f\xf8" + bytes(6),
    b"G\x7f\xef" + b"\xff" * 6, b"G\x00\x00" + bytes(6), b"X\x00\x00\x00\x00",
    b"X\x01\x00\x00\x00a",
    b"]", b"}", b")", b"(t", b"(l", b"(d", b"0", b"2", b".", b"\x85", b"\x86", b"R", b"b", b"s",
    b"u", b"e", b"a", b"Q", b"h\x00", b"h\x01", b"cbuiltins\nlist\n", b"cbuiltins\nbytearray\n",
    b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n", b"cos\nsystem\n",
)  # fmt: skip
"""Opcodes, most of which push a value."""

Mutator = Callable[[Random, bytes, Sequence[bytes]], bytes]


def mutate(
    random: Random, seeds: Sequence[bytes], tokens: Sequence[bytes], kind: str = "binary"
) -> bytes:
    """A changed copy of one of the seeds.

    Args:
        random: decides everything.
        seeds: contents that the reader takes.
        tokens: words of the format, to insert and to overwrite with.
        kind: `binary`, `text` or `pickle`, for the changes that fit it.
    """
    content = random.choice(seeds)
    own = {"text": (value, value, value, line), "pickle": (opcode,) * 6}.get(kind, ())
    several = own + ((flip, drop, insert) if kind == "pickle" else EVERYWHERE)
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 5, 8))):
        content = random.choice(several)(random, content, (*tokens, random.choice(seeds)))
    return content


def flip(random: Random, content: bytes, _: Sequence[bytes]) -> bytes:
    """Change one byte."""
    changed = bytearray(content or b"\0")
    place = _place(random, len(changed) - 1)
    bit = changed[place] ^ (1 << random.randrange(8))
    changed[place] = random.choice((bit, bit, 0, 255, 127, 128, random.randrange(256)))
    return bytes(changed)


def cut(random: Random, content: bytes, _: Sequence[bytes]) -> bytes:
    """Keep the beginning."""
    return content[: _place(random, len(content))]


def drop(random: Random, content: bytes, _: Sequence[bytes]) -> bytes:
    """Take some bytes out."""
    start = _place(random, len(content))
    return content[:start] + content[start + _length(random) :]


def repeat(random: Random, content: bytes, _: Sequence[bytes]) -> bytes:
    """Put a copy of some bytes somewhere else, once or often."""
    start, place = _place(random, len(content)), _place(random, len(content))
    piece = content[start : start + _length(random)] * random.choice((1, 1, 1, 2, 50))
    return content[:place] + piece + content[place:]


def insert(random: Random, content: bytes, tokens: Sequence[bytes]) -> bytes:
    """Insert a word of the format, or random bytes."""
    place = _place(random, len(content))
    piece = random.choice((*tokens[:-1], random.randbytes(_length(random))))
    return content[:place] + piece + content[place:]


def overwrite(random: Random, content: bytes, tokens: Sequence[bytes]) -> bytes:
    """Write a word of the format over what stands there."""
    place, piece = _place(random, len(content)), random.choice(tokens[:-1] or (b"\0\0\0\0",))
    return content[:place] + piece + content[place + len(piece) :]


def number(random: Random, content: bytes, _: Sequence[bytes]) -> bytes:
    """Write a number over what may be a length, a count or a rate."""
    form = random.choice(("<B", "<H", ">H", "<I", "<I", ">I", ">I", "<Q", ">Q"))
    place, size = _place(random, len(content)), struct.calcsize(form)
    what = random.choice(
        (*NUMBERS, len(content), len(content) - place - size, random.getrandbits(32))
    )
    piece = struct.pack(form, what & ((1 << 8 * size) - 1))
    return content[:place] + piece + content[place + size :]


def splice(random: Random, content: bytes, tokens: Sequence[bytes]) -> bytes:
    """Go on with the end of another seed."""
    other = tokens[-1]
    return content[: _place(random, len(content))] + other[_place(random, len(other)) :]


def value(random: Random, content: bytes, tokens: Sequence[bytes]) -> bytes:
    """Put another value in the place of one in JSON or TOML."""
    if not (found := list(TEXT_VALUE.finditer(content))):
        return insert(random, content, tokens)
    match = random.choice(found)
    piece = random.choice((*VALUES, random.choice(found)[0], *tokens[:-1]))
    return content[: match.start()] + piece + content[match.end() :]


def line(random: Random, content: bytes, _: Sequence[bytes]) -> bytes:
    """Repeat a line, drop it, or move it."""
    lines = content.splitlines(keepends=True) or [b"\n"]
    chosen = lines.pop(random.randrange(len(lines)))
    for _ in range(random.choice((0, 1, 2))):
        lines.insert(random.randrange(len(lines) + 1), chosen)
    return b"".join(lines)


def opcode(random: Random, content: bytes, tokens: Sequence[bytes]) -> bytes:
    """Put other opcodes in the place of one, or of a few, in a pickle."""
    starts = []
    try:
        starts += [place for _, _, place in pickletools.genops(content) if place is not None]
    except Exception:  # damaged by an earlier change: what stands before that is known
        if not starts:
            return flip(random, content, tokens)
    first = random.randrange(len(starts))
    bounds = [*starts, len(content)]
    end = min(first + random.choice((0, 1, 1, 1, 1, 2, 4)), len(starts))
    begin = random.randrange(len(starts))
    copied = content[bounds[begin] : bounds[min(begin + random.choice((1, 2, 6)), len(starts))]]
    piece = random.choice((*PICKLED, *PICKLED, copied, copied * 50, b"", *tokens[:-1]))
    return content[: bounds[first]] + piece + content[bounds[end] :]


EVERYWHERE: tuple[Mutator, ...] = (
    flip, flip, cut, drop, repeat, insert, overwrite, number, number, number, splice,
)  # fmt: skip


def _place(random: Random, length: int) -> int:
    """A place in a file: as often in its first 100 bytes as anywhere, for there its header is."""
    return random.randint(0, max(0, min(length, random.choice((64, 128, length, length)))))


def _length(random: Random) -> int:
    return random.choice((1, 1, 2, 4, 8, random.randint(1, 64), random.randint(1, 1024)))
