"""From a caption to the words of its fields: JSON, cut or broken JSON, or `key: value` entries.

Keys are read in every published spelling ("general description", "general_description",
"Tumor present", "signal-intensity"), and stand for the fields of `FIELDS`.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from stages.components.report_words import find_values

FIELDS = ("tumor", "location", "side", "size", "shape", "intensity", "orientation", "description")

_OF_TUMOR = r"(?:tumou?r[ _-])?"
_KEYS = {
    "tumor": r"(?:has[ _-])?tumou?r(?:[ _-]?(?:present|presence))?",
    "location": rf"{_OF_TUMOR}location",
    "side": r"side|laterality",
    "size": rf"{_OF_TUMOR}size",
    "shape": rf"{_OF_TUMOR}shape",
    "intensity": r"(?:signal[ _-])?intensity",
    "orientation": r"orientation|plane",
    "description": r"(?:general[ _-]?)?description",
}
_KEY = "|".join(f"(?P<{field}>{pattern})" for field, pattern in _KEYS.items())
_ANY_KEY = "|".join(_KEYS.values())
_PREFIX = r"[\s*#>•\-–—]*(?:if (?:yes|no)\W*)?[\s*]*"
_ENTRY = re.compile(rf"{_PREFIX}(?:{_KEY})[\s*]*:(?P<value>.*)", re.IGNORECASE | re.DOTALL)
_BARE_KEY = re.compile(rf"{_PREFIX}(?:{_KEY})[\s*]*", re.IGNORECASE)
_FIRST_LINE = re.compile(rf"^{_PREFIX}(?:{_ANY_KEY})[\s*]*:", re.IGNORECASE | re.MULTILINE)
_BREAK = re.compile(rf"(;|\n|[,.](?=\s+(?:{_ANY_KEY})\s*:))", re.IGNORECASE)
_JSON_PAIR = re.compile(
    r"""["'](?P<key>[\w -]+)["']\s*:\s*"""
    r"""(?:"(?P<text>(?:[^"\\]|\\.)*)(?P<end>"?)|'(?P<single>[^']*)'|(?P<bare>[A-Za-z]+))""",
    re.DOTALL,
)


def read_fields(text: str) -> dict[str, Any] | None:
    """Return the value of each field that `text` names, by `FIELDS`; None where it is prose.

    JSON may also give `location_text`; JSON that is cut off or broken gives what is whole.

    >>> read_fields("tumor: yes; size: small")
    {'tumor': ' yes', 'size': ' small'}
    >>> read_fields('{"tumor": false, "general_description": "Axial bra')
    {'tumor': 'false', 'description': 'Axial bra'}
    """
    if (values := _read_json(text)) is not None:
        return values
    if start := _FIRST_LINE.search(text):
        return _read_entries(text[start.start() :])
    return _read_broken_json(text)


def _field_of(key: str) -> str | None:
    match = _BARE_KEY.fullmatch(key)
    return match.lastgroup if match else None


def _read_json(text: str) -> dict[str, Any] | None:
    """Return the JSON object that `text` holds, by field, if it has a key of the schema."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        return None
    try:
        found = json.loads(text[start : end + 1])
    except ValueError:
        return None
    values: dict[str, Any] = {}
    for key, value in found.items():
        if key == "location_text":
            values[key] = value
        elif field := _field_of(key):
            values[field] = value
    return values or None


def _read_broken_json(text: str) -> dict[str, Any] | None:
    """Read `"key": value` pairs where the whole is no JSON: cut off, nested, or with other quotes.

    Taken as prose, `{"tumor": false, ...` would assert a tumor. A string without its end counts
    for the description only: half a word of a closed list may be another word.
    """
    values: dict[str, Any] = {}
    for pair in _JSON_PAIR.finditer(text):
        field = _field_of(pair["key"])
        is_cut = pair["text"] is not None and not pair["end"]
        if field is None or (is_cut and field != "description"):
            continue
        value = next(pair[name] for name in ("text", "single", "bare") if pair[name] is not None)
        values.setdefault(field, value.replace('\\"', '"').replace("\\n", " "))
    return values or None


def _read_entries(text: str) -> dict[str, Any]:
    """Read `key: value` entries, with the faults of the published ones.

    A key may lack its colon or its value, a value its key ("size: medium; irregular; mixed"), and
    the description its key. The description goes on to the end, unless a new key follows.
    """
    values: dict[str, str] = {}
    pending: str | None = None  # a key seen without a value
    parts = _BREAK.split(text)
    for index in range(0, len(parts), 2):
        part, mark = parts[index], parts[index - 1] if index else ""
        entry = _ENTRY.fullmatch(part)
        field = next((name for name in FIELDS if entry and entry[name]), None)
        if entry and field and field not in values:
            values[field], pending = entry["value"], None
        elif "description" in values:
            values["description"] += mark + part
        elif bare := _BARE_KEY.fullmatch(part):
            pending = next(name for name in FIELDS if bare[name])
        elif len(part.split()) >= 5:
            values["description"] = part
        elif part.strip():
            values.setdefault(_owner(part, values) or pending or "description", part)
    return values


def _owner(words: str, values: Mapping[str, str]) -> str | None:
    """Return the first field without a value whose closed list knows the words."""
    fields = ("shape", "intensity", "size", "orientation")
    return next((name for name in fields if name not in values and find_values(name, words)), None)
