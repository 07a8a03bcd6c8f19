"""Questions for a VLM: prompt, the schema that bounds its answer, and what of that is taken.

Every captioner that shows pixels to a model asks in these words, local or served, so that two VLMs
differ by the model alone.

- `blind` (default): the class is hidden; the prompt is the same for every slice.
- `poster`: the class stands in the prompt, as in the reproduced study. Such captions say nothing
  about whether the VLM can see a tumour.

Schema: every string has a longest length and every other value a closed list. A JSON schema cannot
forbid white space *between* tokens, on which a constrained model can burn its whole budget: compile
it without (`xgrammar.GrammarCompiler.compile_json_schema(..., any_whitespace=False,
separators=(",", ":"))`; vLLM: `--structured-outputs-config.disable_any_whitespace`).
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal, assert_never

from pipeline.contracts import SliceRecord
from stages.components.captioning.captioner import Failure
from stages.components.tumor_report.rendering import LABEL_WORDS
from stages.components.tumor_report.schema import json_schema
from stages.components.tumor_report.words import (
    INTENSITIES,
    ORIENTATIONS,
    REGIONS,
    SHAPES,
    SIDES,
    SIZES,
    shorten,
)

PromptStyle = Literal["poster", "blind"]
PROMPT_VERSION = "2"  # part of every cache key: raise it when words or `read_answer` change
# The longest answer that the schema allows is about 560 characters; plain English takes 160 tokens.
MAX_ANSWER_TOKENS = 512

_FIELDS = f"""Answer with one JSON object and nothing else:
- tumor: true or false
- location: one of {", ".join(REGIONS)}
- side: the side of the image, one of {", ".join(SIDES)}
- size: one of {", ".join(SIZES)}
- shape: one of {", ".join(SHAPES)}
- intensity: compared with the tissue around it, one of {", ".join(INTENSITIES)}
- orientation: the plane of the slice, one of {", ".join(ORIENTATIONS)}
- general_description: one sentence of at most 25 words
Use null for what cannot be seen; without a tumor, location, side, size, shape and intensity are \
null."""
_PROMPTS: dict[PromptStyle, str] = {
    "blind": f"This is one slice of a brain MRI. It may or may not show a tumor.\n{_FIELDS}",
    "poster": f"This is one slice of a brain MRI with the diagnosis: {{label}}.\n{_FIELDS}",
}


def prompt_for(style: PromptStyle, slice_record: SliceRecord) -> str:
    """Word the question about one slice.

    Args:
        style: "blind" looks at nothing of the record; "poster" at its `label`, and no more.
        slice_record: the slice; ids, file names and ground truth never reach a prompt.
    """
    match style:
        case "blind":
            return _PROMPTS["blind"]
        case "poster":
            return _PROMPTS["poster"].format(label=LABEL_WORDS[slice_record.label])
    assert_never(style)


def bounded_schema() -> dict[str, Any]:
    """Return the JSON schema of an answer: typed, closed lists, strings of bounded length."""
    schema = json_schema()
    properties: dict[str, Any] = {
        name: {"type": ["string", "null"], **rule} if "enum" in rule else rule
        for name, rule in schema["properties"].items()
    }
    return {**schema, "properties": properties, "required": list(properties)}


@dataclass(frozen=True)
class Answer:
    """One answer: what the stage may get of it, and whether asking again could give better."""

    taken: str | Failure
    fits: bool  # the schema: no reason to ask again


def read_answer(text: str) -> Answer:
    """Judge what a model wrote.

    What fits the schema is taken; keys beside the schema's are dropped. Prose, and JSON with known
    keys but other values, is left to the caption parser, which reads what it states. Refused are:
    nothing at all, JSON of something else, and broken JSON, in which `"tumor": false` would read
    as the mention of a tumour.

    Args:
        text: the model's words; thoughts before them (`<think>...</think>`) and a code fence around
            the JSON do no harm.
    """
    text = _without_thoughts(text)
    if not text.strip():
        return Answer(Failure("empty answer"), fits=False)
    start, end = text.find("{"), text.rfind("}")
    if start < 0:
        return Answer(_as_utf8(text.strip()), fits=False)
    try:
        parsed = json.loads(text[start : end + 1])
    except (ValueError, RecursionError):
        return Answer(Failure("broken JSON"), fits=False)
    rules = bounded_schema()["properties"]
    known = {name: value for name, value in parsed.items() if name in rules}
    if not known:
        names = shorten(", ".join(re.sub(r"\W+", "_", name) for name in sorted(parsed)), 80)
        return Answer(Failure(f"keys outside the schema: {names or 'none'}"), fits=False)
    fits = all(name in known and _obeys(known[name], rule) for name, rule in rules.items())
    return Answer(_as_utf8(json.dumps(known, ensure_ascii=False)), fits)


def _without_thoughts(text: str) -> str:
    """Cut off what a reasoning model thinks aloud; templates may have opened the tag themselves.

    >>> _without_thoughts("<think>Left? No.</think> Right."), _without_thoughts("<think>Left?")
    (' Right.', '')
    """
    _, closed, after = text.rpartition("</think>")
    return after if closed else text.partition("<think>")[0]


def _as_utf8(text: str) -> str:
    """Put a question mark for half a surrogate pair, which JSON may escape and no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _obeys(value: object, rule: dict[str, Any]) -> bool:
    if "enum" in rule:
        return value in rule["enum"]
    if rule["type"] == "boolean":
        return isinstance(value, bool)
    return isinstance(value, str) and len(value) <= rule["maxLength"]
