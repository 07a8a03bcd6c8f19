import json
import unicodedata

import pytest

from pipeline.run.escaping import escape, escape_lines

STEERING = "\x00\x07\x08\x0b\x1b\r\x7f\x85\x9b\u061c\u200e\u2028\u202e\u2069\ud800"


@pytest.mark.parametrize("character", STEERING)
def test_what_steers_a_terminal_is_shown(character: str) -> None:
    assert escape(f"a{character}b") == f"a\\u{ord(character):04x}b"


def test_no_control_character_is_left() -> None:
    every = "".join(map(chr, range(0x3000)))
    left = {c for c in escape(every) if unicodedata.category(c) in {"Cc", "Zl", "Zp"}}
    assert left == {"\t"}


def test_words_stay_as_they_are() -> None:
    text = "Größe 5 mm → “t1ce”\t✓ 漢字 🧠"
    assert escape(text) == text


def test_a_newline_forges_no_line() -> None:
    assert escape("failed\n2026-01-01 done") == "failed\\n2026-01-01 done"
    assert escape("2 problems\n  one\n  two") == "2 problems\n  one\n  two"


def test_json_stays_json() -> None:
    value = {"arm": "a\x1b\x7f\x9b\u202eb\n"}
    text = escape_lines(json.dumps(value, indent=2, ensure_ascii=False))
    assert "\x7f" not in text
    assert json.loads(text) == value
