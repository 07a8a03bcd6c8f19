"""Files of captions: JSON Lines that others wrote, matched to slices by name."""

import json
from pathlib import Path

from pipeline.errors import DataError


def read_captions(path: Path) -> dict[str, str]:
    """Read `{"file_name", "text"}` lines into file name -> text; blank lines are passed over.

    Raises:
        DataError: As for `load`.
    """
    captions: dict[str, str] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                name, text = row["file_name"], row["text"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path} line {number}: expected an object with 'file_name' and 'text', "
                    f"found {line.strip()[:80]!r}"
                ) from error
            if not isinstance(name, str) or not isinstance(text, str):
                raise DataError(
                    f"{path} line {number}: 'file_name' and 'text' must be strings, "
                    f"found {name!r} and {text!r}"
                )
            if captions.setdefault(name, text) != text:
                raise DataError(
                    f"{path} line {number}: a second, different caption for {name!r}; keep one"
                )
    return captions
