"""Reader of ARPA files of KenLM, SRILM and IRSTLM.

The format is described by D. Jurafsky and J. Martin, and in `ngram-format(5)` of SRILM. Numbers are
log10, and columns are separated by spaces or tabs. The prefix of an n-gram (all words but the last)
must be an n-gram, too; its suffixes may be missing, as in pruned models of SRILM.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from itertools import islice

import numpy as np
import numpy.typing as npt

from ds2deploy.language_models.ngrams import NGrams, Order
from ds2deploy.language_models.source_file import ARPA_BEGINS, SourceFile
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.decoding.language_model_file import END, SPACE, START, UNKNOWN
from ds2deploy.runtimes.errors import AlphabetError, ModelFileError

COUNT = re.compile(rb"ngram\s+(\d{1,9})\s*=\s*(\d{1,18})")

CHUNK = 50_000
"""Number of lines that are parsed together."""

NO_UNKNOWN = -100.0
"""log10 of the probability of unknown words in a model that has no `<unk>`, as in KenLM."""

LARGEST = 1e30
"""Maximum of numbers; larger ones do not fit float32 as natural logarithms."""

SPACE_NAMES = ("|", "<space>")
"""Names of the space in character models of other programs."""

Keys = npt.NDArray[np.int64]


class ArpaReader:
    """Reader of one ARPA file.

    Args:
        source: open file.
        alphabet: labels of the acoustic model.
        is_characters: True if the n-grams consist of characters.

    Attributes:
        unspellable: words with characters that have no label; they are never recognised.
    """

    def __init__(self, source: SourceFile, alphabet: Alphabet, is_characters: bool) -> None:
        self._name, self._file = source.name, source.lines
        self._alphabet, self._is_characters = alphabet, is_characters
        self._line = 0
        self._index: dict[bytes, int] = {}
        self._words: list[str] = []
        self.unspellable: list[str] = []

    def read(self) -> NGrams:
        """Read the n-grams.

        Raises:
            ModelFileError: the file is damaged; the message names the line.
            AlphabetError: its words use other labels.
        """
        while self._next().removeprefix(codecs.BOM_UTF8) != ARPA_BEGINS:
            pass
        counts, line = self._counts()
        orders: list[Order] = []
        keys: list[Keys] = []
        for n, count in enumerate(counts, 1):
            if line != b"\\%d-grams:" % n:
                raise self._damage(
                    f"expected \\{n}-grams: after {counts[n - 2] if n > 1 else 0} n-grams"
                )
            order = self._unigrams(count) if n == 1 else self._longer(n, count, keys)
            orders.append(order)
            keys.append(order.prefix.astype(np.int64) * len(self._words) + order.word)
            line = self._next()
        if line != b"\\end\\":
            raise self._damage(f"expected \\end\\ after {counts[-1]} n-grams")
        return NGrams(self._words, orders)

    def _next(self) -> bytes:
        """Read the next non-empty line."""
        for line in self._file:
            self._line += 1
            if stripped := line.strip():
                return stripped
        raise self._damage("the file ends here")

    def _counts(self) -> tuple[list[int], bytes]:
        """Read the numbers of n-grams, and the line after them."""
        counts: list[int] = []
        while found := COUNT.fullmatch(line := self._next()):
            if int(found[1]) != len(counts) + 1:
                raise self._damage(f"expected ngram {len(counts) + 1}=")
            counts.append(int(found[2]))
        if not counts:
            raise self._damage("expected ngram 1=")
        return counts, line

    def _rows(
        self, n: int, count: int
    ) -> Iterator[tuple[list[list[bytes]], npt.NDArray[np.float64]]]:
        """Yield the columns of a section's lines, and their numbers, in chunks.

        While a chunk is processed, `_line` is the number of the line before it.
        """
        done = 0
        while done < count:
            rows = [line.split() for line in islice(self._file, min(CHUNK, count - done))]
            lengths = [len(row) for row in rows]
            if not {n + 1, n + 2}.issuperset(lengths):
                i = next(i for i, columns in enumerate(lengths) if not n < columns < n + 3)
                if not rows[i] or rows[i][0].startswith(b"\\"):
                    raise self._damage(f"{done + i} {n}-grams, but the header announces {count}", i)
                raise self._damage(f"{lengths[i]} columns, expected {n + 1} or {n + 2}", i)
            if not rows:
                raise self._damage(f"the file ends after {done} of {count} {n}-grams")
            yield rows, self._numbers(rows, n)
            done += len(rows)
            self._line += len(rows)

    def _numbers(self, rows: list[list[bytes]], n: int) -> npt.NDArray[np.float64]:
        """Parse probabilities and back-off weights: (2, rows)."""
        try:
            numbers = np.array(
                [
                    [float(row[0]) for row in rows],
                    [float(row[n + 1]) if len(row) > n + 1 else 0.0 for row in rows],
                ]
            )
        except ValueError:
            bad = next(i for i, row in enumerate(rows) if not _is_number(row, n))
            raise self._damage("a column is not a number", bad) from None
        wrong = ~(np.abs(numbers) < LARGEST).all(0)
        if wrong.any():
            raise self._damage("NaN, or an infinite number", int(wrong.argmax()))
        positive = numbers[0] > 0
        if positive.any():
            raise self._damage(
                "a probability above 1: its logarithm is positive", int(positive.argmax())
            )
        return numbers

    def _unigrams(self, count: int) -> Order:
        names: dict[bytes, int] = {}
        numbers = []
        for rows, values in self._rows(1, count):
            numbers.append(values)
            for i, row in enumerate(rows):
                name = UNKNOWN.encode() if row[1] == b"<UNK>" else row[1]
                if name in names:
                    raise self._damage(f"{name.decode(errors='replace')!r} is listed twice", i)
                names[name] = len(names)
        for special in (START, END):
            if special.encode() not in names:
                raise self._damage(f"the 1-grams lack {special}")
        if UNKNOWN.encode() not in names:
            names[UNKNOWN.encode()] = len(names)
            numbers.append(np.array([[NO_UNKNOWN], [0.0]]))
        spelled = self._spell(names)
        by_word = sorted(range(len(spelled)), key=spelled.__getitem__)
        self._words = [spelled[i] for i in by_word]
        rank = np.argsort(by_word).tolist()
        self._index = {name: rank[i] for name, i in names.items()}
        score, backoff = np.concatenate(numbers, 1)[:, by_word]
        vocabulary = np.arange(len(by_word), dtype=np.int32)
        return Order(np.zeros_like(vocabulary), vocabulary, score, backoff)

    def _longer(self, n: int, count: int, keys: list[Keys]) -> Order:
        """Read the n-grams of an order above 1.

        Args:
            n: order of the n-grams.
            count: number of n-grams.
            keys: for each lower order, prefix times the size of the vocabulary plus word, sorted.
        """
        first, size = self._line, len(self._words)
        index = {**self._index, b"<UNK>": self._index[UNKNOWN.encode()]}
        found, numbers = [np.zeros(0, np.int64)], [np.zeros((2, 0))]
        for rows, values in self._rows(n, count):
            columns = [[index.get(row[j], -1) for row in rows] for j in range(1, n + 1)]
            ids = np.array(columns, np.int64).T
            if (lacking := ids.min(1) < 0).any():
                raise self._damage("a word is not a 1-gram", int(lacking.argmax()))
            at = ids[:, 0]
            for j in range(1, n - 1):
                wanted = at * size + ids[:, j]
                at = keys[j].searchsorted(wanted)
                lacking = (at == len(keys[j])) | (keys[j][at - (at == len(keys[j]))] != wanted)
                if lacking.any():
                    raise self._damage(
                        f"the n-gram of its first {j + 1} words is missing", int(lacking.argmax())
                    )
            found.append(at * size + ids[:, -1])
            numbers.append(values)
        unsorted = np.concatenate(found)
        by_key = np.argsort(unsorted, kind="stable")
        sorted_keys = unsorted[by_key]
        if (twice := sorted_keys[1:] == sorted_keys[:-1]).any():
            self._line = first
            raise self._damage("an n-gram is listed twice", int(by_key[1:][twice].min()))
        prefix, word = np.divmod(sorted_keys, size)
        score, backoff = np.concatenate(numbers, 1)[:, by_key]
        return Order(prefix.astype(np.int32), word.astype(np.int32), score, backoff)

    def _spell(self, names: dict[bytes, int]) -> list[str]:
        """Convert words to the labels, and collect those that have characters without a label."""
        labels = self._alphabet.labels
        spelled: dict[str, str] = {}
        for name in names:
            try:
                text = name.decode()
            except UnicodeDecodeError:
                raise self._damage(f"the 1-gram {name!r} is not UTF-8") from None
            word = text
            if text not in (UNKNOWN, START, END):
                word = self._alphabet.normalize(text)
                if self._is_characters and text in SPACE_NAMES and text not in labels:
                    word = SPACE if " " in labels else text
                elif self._alphabet.unknown(word) or (self._is_characters and len(word) != 1):
                    self.unspellable.append(text)
            if (other := spelled.setdefault(word, text)) != text:
                raise AlphabetError(
                    f"{self._name}: {other!r} and {text!r} are the same word with the labels "
                    f"{labels[1:]!r}; make the model from its text: ds2deploy lm TEXT"
                )
        if 2 * len(self.unspellable) > len(names) - 3:
            raise AlphabetError(
                f"{self._name}: the labels {labels[1:]!r} cannot spell {len(self.unspellable)} of "
                f"{len(names)} {'characters' if self._is_characters else 'words'}, such as "
                f"{self.unspellable[0]!r}; give the acoustic model with --labels, and add "
                "--characters if this is a character model"
            )
        return list(spelled)

    def _damage(self, reason: str, row: int = -1) -> ModelFileError:
        """Make the error of a damaged file; `row` counts lines after the current one."""
        return ModelFileError(
            f"{self._name}: line {self._line + row + 1}: damaged ARPA file: {reason}; copy it "
            "again, or make a model from text: ds2deploy lm TEXT"
        )


def _is_number(row: list[bytes], n: int) -> bool:
    try:
        float(row[0]), float(row[n + 1] if len(row) > n + 1 else 0)
    except ValueError:
        return False
    return True
