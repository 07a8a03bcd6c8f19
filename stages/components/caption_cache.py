"""Captions that any experiment may use again, found by all that made them.

`CACHE/<first two digits>/<digest>.json` holds `{"key": ..., "raw": ..., "model": ...}`; the digest
is that of the key, so that an entry can be checked against its name. `model` is what answered, in a
server's words, or null. Only answers are kept, never failures.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.contracts import SliceRecord
from pipeline.errors import ArtifactError
from stages.components.captioning import CaptionIdentity, Paid, Reply, Usage


class CaptionCache:
    """The captions of one captioner, in a folder that several processes may use at once."""

    def __init__(
        self, folder: Path, captioner: str, identify: Callable[[SliceRecord], CaptionIdentity]
    ) -> None:
        self.folder = folder
        self.captioner = captioner
        self.identify = identify

    def key(self, item: SliceRecord, image_path: Path) -> dict[str, Any]:
        """Name everything that decides a caption: pixels, captioner and its identity."""
        image = hashlib.sha256(image_path.read_bytes()).hexdigest()
        return {"image": image, "captioner": self.captioner, **asdict(self.identify(item))}

    def path(self, key: Mapping[str, Any]) -> Path:
        """Return where the caption of a key is, or would be."""
        digest = hashlib.sha256(_canonical(key).encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest}.json"

    def read(self, item: SliceRecord, image_path: Path) -> Reply | None:
        """Return the captioner's words about a slice, at no cost; None if nobody asked yet.

        Raises:
            ArtifactError: The entry is damaged, or not one of this key.
        """
        key = self.key(item, image_path)
        path = self.path(key)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        try:
            entry = json.loads(text)
            found, raw, model = _canonical(entry["key"]), entry["raw"], entry.get("model")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"{path}: not a cached caption ({error!r}); delete the file"
            ) from error
        if found != _canonical(key) or not isinstance(raw, str):
            raise ArtifactError(f"{path}: holds the caption of something else; delete the file")
        return raw if model is None else Paid(raw, Usage(), model)

    def write(
        self, item: SliceRecord, image_path: Path, raw: str, model: str | None = None
    ) -> None:
        """Keep an answer; a reader sees all of it or nothing."""
        key = self.key(item, image_path)
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".partial")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(_canonical({"key": key, "raw": raw, "model": model}))
        os.replace(name, path)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
