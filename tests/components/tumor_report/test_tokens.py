import pytest

from stages.components.tumor_report._table import CUES, TRANSLATIONS, WORDS
from stages.components.tumor_report._tokens import Lexicon, fold, tokenize


def words(text: str) -> list[str]:
    return [token.word for token in tokenize(text)]


def test_tokens_stand_where_they_were() -> None:
    text = "L\u00f3bulo, it isn\u2019t T2-weighted\u2014no."
    assert words(text) == ["lobulo", ",", "it", "is", "not", "t2", "weighted", "\u2014", "no", "."]
    spans = [text[token.start : token.end] for token in tokenize(text)]
    assert spans[:5] == ["L\u00f3bulo", ",", "it", "is", "n\u2019t"]


def test_the_longest_phrase_of_a_kind_counts() -> None:
    lexicon = Lexicon({"a": {"axial": "axial", "": "extra axial"}, "b": {"tumor": "*glioma, tum*"}})
    found = lexicon.find(words("extra-axial oligodendroglioma, axial tumour"))
    assert [(hit.kind, hit.value, hit.first) for hit in found] == [
        ("a", "", 0),
        ("b", "tumor", 2),
        ("a", "axial", 4),
        ("b", "tumor", 5),
    ]


@pytest.mark.parametrize("table", [WORDS, TRANSLATIONS, CUES])
def test_phrases_are_written_as_texts_are_folded(table: dict[str, dict[str, str]]) -> None:
    """A phrase with an accent, a capital or a hyphen would never be found."""
    phrases = [
        phrase
        for values in table.values()
        for text in values.values()
        for phrase in text.split(",")
    ]
    assert len(phrases) > 100
    for phrase in phrases:
        assert phrase.split(), table
        for word in phrase.split():
            stem = word.strip("*")
            assert [fold(stem)] == [stem] == words(stem)
            assert word.count("*") == 0 or (len(stem) >= 3 and word.count("*") == 1)
