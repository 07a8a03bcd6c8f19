"""Schema of a caption, as JSON schema for a VLM: closed lists and bounded strings.

`rendering.render` writes training captions and prompts alike, so that a generator is asked in the
words it was trained on. Its structured form is the poster's, `tumor: yes; location: left frontal
lobe; ...`.
"""

from typing import Any

from stages.components.tumor_report.words import (
    INTENSITIES,
    ORIENTATIONS,
    REGIONS,
    SHAPES,
    SIDES,
    SIZES,
)

MAX_DESCRIPTION_CHARS = 300  # asked of a VLM; about 60 tokens, so that a runaway answer ends


def json_schema() -> dict[str, Any]:
    """Return the JSON schema that a VLM is constrained to: closed lists and bounded strings."""

    def choice(values: tuple[str, ...]) -> dict[str, Any]:
        return {"enum": [*values, None]}

    properties: dict[str, Any] = {
        "tumor": {"type": "boolean"},
        "location": choice(REGIONS),
        "side": choice(SIDES),
        "size": choice(SIZES),
        "shape": choice(SHAPES),
        "intensity": choice(INTENSITIES),
        "orientation": choice(ORIENTATIONS),
        "general_description": {"type": "string", "maxLength": MAX_DESCRIPTION_CHARS},
    }
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
