"""Entries of a caption, by field: JSON, cut or broken JSON, tables, `key: value` lines.

Keys are read in every published spelling ("general description", "general_description",
"Tumor present", "signal-intensity"), and stand for the fields of `FIELDS`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.components.tumor_report._tokens import Token, tokenize
from stages.components.tumor_report._values import clean, find_key, find_keys, find_values

FIELDS = ("tumor", "location", "side", "size", "shape", "intensity", "orientation", "description")

_JSON_PAIR = re.compile(
    r"""["'](?P<key>[\w -]+)["']\s*:\s*"""
    r"""(?:"(?P<text>(?:[^"\\]|\\.)*)(?P<end>"?)|'(?P<single>[^']*)'|(?P<bare>[A-Za-z]+))""",
    re.DOTALL,
)
_BREAKS = (";", "\n")
_STOPS = (",", ".", ":")  # a key that follows them begins an entry
_SEPARATORS = (":", "=", "：")
_DECORATION = frozenset("*_#>•·`-–—|")  # may stand around a key
_DASHES = ("-", "–", "—")


@dataclass
class _Part:
    gap: int  # where the break before it begins
    start: int
    end: int
    field: str | None = None
    value: int = 0  # where its value begins


def read_fields(text: str) -> dict[str, Any] | None:
    """Return the value of each field that `text` names, by `FIELDS`; None where it is prose.

    JSON may also give `location_text`; JSON that is cut off or broken gives what is whole. JSON
    without a field gives an empty dictionary: it is a schema or a list, and no prose.

    >>> read_fields("tumor: yes; size: small")
    {'tumor': ' yes', 'size': ' small'}
    >>> read_fields('{"tumor": false, "general_description": "Axial bra')
    {'tumor': 'false', 'description': 'Axial bra'}
    """
    try:
        parsed = _parse_json(text)
        values = _find_fields(parsed or {})
    except RecursionError:  # nested by the thousand
        return {}
    if values:
        return values
    if values := _read_table(text) or _read_entries(text) or _read_broken_json(text):
        return values
    return None if parsed is None else {}


def _parse_json(text: str) -> dict[str, Any] | None:
    """Return the JSON object that stands in `text`."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        return None
    try:
        parsed = json.loads(text[start : end + 1])
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None


def _find_fields(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an object, or of the first object within it that has any."""
    values: dict[str, Any] = {}
    for key, value in entries.items():
        field = "location_text" if key == "location_text" else find_key(key)
        if field and not isinstance(value, dict):
            values[field] = value
    inner = (value for value in entries.values() if isinstance(value, dict))
    return values or next(filter(None, map(_find_fields, inner)), {})


def _read_broken_json(text: str) -> dict[str, Any]:
    """Read `"key": value` pairs where the whole is no JSON: cut off, or with other quotes.

    Taken as prose, `{"tumor": false, ...` would assert a tumor. A string without its end counts
    for the description only: half a word of a closed list may be another word.
    """
    values: dict[str, Any] = {}
    for pair in _JSON_PAIR.finditer(text):
        field = find_key(pair["key"])
        is_cut = pair["text"] is not None and not pair["end"]
        if field is None or (is_cut and field != "description"):
            continue
        value = next(pair[name] for name in ("text", "single", "bare") if pair[name] is not None)
        values.setdefault(field, value.replace('\\"', '"').replace("\\n", " "))
    return values


def _read_table(text: str) -> dict[str, Any]:
    """Read a Markdown table: a key and its value a row, or a row of keys over a row of values."""
    rows = [line.strip().strip("|").split("|") for line in text.splitlines() if "|" in line]
    rows = [row for row in rows if any(cell.strip(" -:") for cell in row)]
    keys = [[find_key(clean(cell)) for cell in row] for row in rows]
    pairs = [(key[0], row[1]) for key, row in zip(keys, rows, strict=True) if len(row) > 1]
    if len(rows) > 1 and len(keys[0]) > 1 and all(keys[0]):
        pairs = list(zip(keys[0], rows[1], strict=False))
    return {key: value for key, value in pairs if key}


def _read_entries(text: str) -> dict[str, Any]:
    """Read `key: value` entries, with the faults of the published ones.

    A key may lack its colon or its value, a value its key ("size: medium; irregular; mixed"), and
    the description its key. The description goes on to the end, unless a new key follows.
    """
    values: dict[str, str] = {}
    rest: list[str] = []  # of the description
    pending: str | None = None  # a key seen without a value
    for part in _cut(text):
        words = text[part.start : part.end]
        if part.field and part.field not in values:
            values[part.field], pending = text[part.value : part.end], None
            if not clean(values[part.field]):
                pending = part.field
                del values[part.field]
        elif "description" in values:
            rest.append(text[part.gap : part.end])
        elif bare := find_key(clean(words)):
            pending = bare
        elif len(words.split()) >= 5:
            values["description"] = words
        elif words.strip():
            values.setdefault(_owner(words, values) or pending or "description", words)
    if rest:
        values["description"] += "".join(rest)
    return values


def _cut(text: str) -> list[_Part]:
    """Cut a text at its breaks, from the first entry on.

    Entries begin a line or a sentence, or the text after some words ("Here it is: tumor: ..."); in
    the midst of prose they are an example ("the format would be tumor: ...").
    """
    tokens = tokenize(text)
    keys = find_keys(tokens)
    parts = [_Part(0, 0, len(text))]
    for index, token in enumerate(tokens):
        if token.word in _BREAKS:
            if not text[parts[-1].start : token.start].strip():
                parts[-1].start = token.end
            else:
                parts[-1].end = token.start
                parts.append(_Part(token.start, token.end, len(text)))
        if index not in keys:
            continue
        field, last = keys[index]
        first = _skip_back(tokens, index)
        before = tokens[first - 1].word if first else "\n"
        value = _find_value(tokens, last, is_line=before == "\n")
        if value is None or not (before in _BREAKS + _STOPS or tokens[index - 1].word == "*"):
            continue
        if before not in _BREAKS:  # "yes, location: ...", "**Tumor:** yes **Location:** ..."
            start = tokens[first].start
            parts[-1].end = tokens[first - 1].start if before in _STOPS else start
            parts.append(_Part(parts[-1].end, start, len(text)))
        parts[-1].field, parts[-1].value = field, value
    sentence = text.find(". ") % (len(text) + 2)  # the end of the first one, or of the text
    for number, part in enumerate(parts):
        is_first = (
            text[part.gap : part.start].strip(" ") in ("", ".")
            or "\n" in text[part.gap : part.start]
        )
        if part.field and (is_first or part.start <= sentence):
            return parts[number:]
    return []


def _skip_back(tokens: list[Token], index: int) -> int:
    """Return where the marks and numbers of a list begin that stand before a token."""
    while index and tokens[index - 1].word in _DECORATION:
        index -= 1
    words = [token.word for token in tokens[max(index - 3, 0) : index]]
    if words[-2:] in (["if", "yes"], ["if", "no"]):
        return index - 2
    if len(words) > 1 and words[-2].isdigit() and words[-1] in (".", ")"):
        return index - 2 if words[:-2] in ([], ["\n"]) else index
    return index


def _find_value(tokens: list[Token], index: int, *, is_line: bool) -> int | None:
    """Return where the value of a key begins; None where no mark parts the two."""
    while index < len(tokens) and tokens[index].word in "*_`":
        index += 1
    if index == len(tokens) or tokens[index].word == "\n":  # a heading, and its value below
        return tokens[index - 1].end if is_line and index < len(tokens) else None
    word, start, end = tokens[index]
    if word in _SEPARATORS or (is_line and word in _DASHES and start > tokens[index - 1].end):
        return end
    return None


def _owner(words: str, values: Mapping[str, str]) -> str | None:
    """Return the first field without a value whose closed list knows the words."""
    fields = ("shape", "intensity", "size", "orientation")
    return next((name for name in fields if name not in values and find_values(name, words)), None)
