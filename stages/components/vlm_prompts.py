"""What a VLM is asked, the schema that bounds its answer, and what of an answer may be taken.

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
from stages.components.captioning import Failure
from stages.components.report_words import shorten
from stages.components.tumor_report import (
    INTENSITIES,
    LABEL_WORDS,
    ORIENTATIONS,
    REGIONS,
    SHAPES,
    SIDES,
    SIZES,
    json_schema,
)

__all__ = [
    "MAX_ANSWER_TOKENS",
    "PROMPT_VERSION",
    "Answer",
    "PromptStyle",
    "bounded_schema",
    "prompt_for",
    "read_answer",
    "with_image_id",
]

PromptStyle = Literal["poster", "blind"]
PROMPT_VERSION = "1"  # part of every cache key: raise it when words or `read_answer` change
# The longest answer that the schema allows is about 560 characters; plain English takes 160 tokens.
MAX_ANSWER_TOKENS = 512
IMAGE_ID = "image_id"

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


def bounded_schema(image_id: str | None = None) -> dict[str, Any]:
    """Return the JSON schema of an answer: typed, closed lists, strings of bounded length.

    Args:
        image_id: where answers come over a wire, the id that one must repeat (`with_image_id`).
    """
    schema = json_schema()
    properties: dict[str, Any] = {
        name: {"type": ["string", "null"], **rule} if "enum" in rule else rule
        for name, rule in schema["properties"].items()
    }
    if image_id is not None:
        properties = {IMAGE_ID: {"type": "string", "enum": [image_id]}, **properties}
    return {**schema, "properties": properties, "required": list(properties)}


def with_image_id(prompt: str, image_id: str) -> str:
    """Ask for the image's id too, so that an answer to another question is known as one."""
    return f'{prompt}\nBegin the object with "{IMAGE_ID}": "{image_id}".'


@dataclass(frozen=True)
class Answer:
    """One answer: what the stage may get of it, and whether asking again could give better."""

    taken: str | Failure
    fits: bool  # the schema: no reason to ask again


def read_answer(text: str, image_id: str | None = None) -> Answer:
    """Judge what a model wrote.

    What fits the schema is taken, without its id. Prose, and JSON with known keys but other values,
    is left to the caption parser, which reads what it states. Refused are: nothing at all, another
    image's id or none, unknown keys, and broken JSON, in which `"tumor": false` would read as the
    mention of a tumour.

    Args:
        text: the model's words; a code fence around the JSON does no harm.
        image_id: the id that was asked for, if one was.
    """
    if not text.strip():
        return Answer(Failure("empty answer"), fits=False)
    start, end = text.find("{"), text.rfind("}")
    if start < 0:
        said = re.search(rf"{IMAGE_ID}\W+(\w+)", text)
        if image_id is not None and said and said[1] != image_id:
            return Answer(Failure("answer for another image"), fits=False)
        return Answer(_as_utf8(text.strip()), fits=False)
    try:
        found = json.loads(text[start : end + 1])
    except ValueError:
        return Answer(Failure("broken JSON"), fits=False)
    schema = bounded_schema(image_id)
    if unknown := sorted(found.keys() - schema["properties"].keys()):
        names = shorten(", ".join(re.sub(r"\W+", "_", name) for name in unknown), 80)
        return Answer(Failure(f"keys outside the schema: {names}"), fits=False)
    if image_id is not None and found.pop(IMAGE_ID, None) != image_id:
        return Answer(Failure("answer for another image"), fits=False)
    rules = {name: rule for name, rule in schema["properties"].items() if name != IMAGE_ID}
    fits = all(name in found and _obeys(found[name], rule) for name, rule in rules.items())
    return Answer(_as_utf8(json.dumps(found, ensure_ascii=False)), fits)


def _as_utf8(text: str) -> str:
    """Put a question mark for half a surrogate pair, which JSON may escape and no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _obeys(value: object, rule: dict[str, Any]) -> bool:
    if "enum" in rule:
        return value in rule["enum"]
    if rule["type"] == "boolean":
        return isinstance(value, bool)
    return isinstance(value, str) and len(value) <= rule["maxLength"]
