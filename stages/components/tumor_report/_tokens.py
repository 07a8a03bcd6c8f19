"""Tokens of a text, and the phrases of a table among them."""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from stages.components.tumor_report._table import Table

_TOKEN = re.compile(
    r"(?P<joint>(?<=[^\W_])[-_\u2010-\u2013](?=[^\W_]))|[^\W_]+(?:['\u2019][^\W_]+)?|\n|\S"
)


class Token(NamedTuple):
    """A word in lower case without accents, a mark or a line break, and where it stands."""

    word: str
    start: int
    end: int


class Hit(NamedTuple):
    """A phrase found in tokens `first` up to, and without, `last`."""

    kind: str
    value: str
    first: int
    last: int


@lru_cache(maxsize=4096)
def fold(word: str) -> str:
    """Return a word in lower case, without accents and genitive s.

    >>> fold("Größe"), fold("tumor’s")
    ('grosse', 'tumor')
    """
    word = word.casefold()
    if not word.isascii():
        parts = unicodedata.normalize("NFKD", word.replace("’", "'"))
        word = "".join(part for part in parts if not unicodedata.combining(part))
    return word.removesuffix("'s")


def tokenize(text: str) -> list[Token]:
    """Cut a text into words, marks and line breaks; hyphens within words part them unseen.

    >>> [token.word for token in tokenize("Extra-axial, it isn't.")]
    ['extra', 'axial', ',', 'it', 'is', 'not', '.']
    """
    tokens: list[Token] = []
    for match in _TOKEN.finditer(text):
        if match.lastgroup == "joint":
            continue
        word, start, end = fold(match[0]), match.start(), match.end()
        if word.endswith("n't"):
            tokens.append(Token(word[:-3], start, end - 3))
            word, start = "not", end - 3
        tokens.append(Token(word, start, end))
    return tokens


class Lexicon:
    """Phrases by the ends of their first words, so that a text is read in one pass.

    Args:
        tables: by kind and value, phrases parted by commas, as in `_table.WORDS`.
    """

    def __init__(self, *tables: Table) -> None:
        self._phrases: dict[str, list[tuple[str, str, list[str]]]] = {}
        for kind, values in (entry for table in tables for entry in table.items()):
            for value, phrases in values.items():
                for phrase in phrases.split(","):
                    words = phrase.split()
                    self._phrases.setdefault(_key(words[0]), []).append((kind, value, words))

    def find(self, words: Sequence[str]) -> list[Hit]:
        """Return the longest phrase of each kind at each place, none within another of its kind."""
        hits: list[Hit] = []
        taken: dict[str, int] = {}
        for index, word in enumerate(words):
            longest: dict[str, Hit] = {}
            for key in (word, f"{word[:3]}*", f"*{word[-3:]}"):
                for kind, value, phrase in self._phrases.get(key, ()):
                    last = index + len(phrase)
                    if taken.get(kind, 0) <= index and _fits(phrase, words[index:last]):
                        best = longest.get(kind)
                        if best is None or last > best.last:
                            longest[kind] = Hit(kind, value, index, last)
            if longest:
                taken.update((kind, hit.last) for kind, hit in longest.items())
                hits += longest.values()
        return hits


def _key(pattern: str) -> str:
    if "*" not in pattern:
        return pattern
    return f"*{pattern[-3:]}" if pattern[0] == "*" else f"{pattern[:3]}*"


def _fits(phrase: Sequence[str], words: Sequence[str]) -> bool:
    return len(words) == len(phrase) and all(map(_is_word, phrase, words))


def _is_word(pattern: str, word: str) -> bool:
    if pattern[-1] == "*":
        return word.startswith(pattern[:-1])
    return word.endswith(pattern[1:]) if pattern[0] == "*" else word == pattern
