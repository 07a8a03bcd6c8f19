"""Cache of captions that any experiment may use again, found by all that made them.

`CACHE/<first two digits>/<digest>.json` holds `{"key": ..., "raw": ..., "model": ...}`; the digest
is that of the key, so that an entry can be checked against its name. `model` is what answered, in a
server's words, or null. Only answers are kept, never failures.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.contracts import Section, SliceRecord
from pipeline.files import read_entry, write_text
from stages.components.captioning.captioner import CaptionIdentity, Paid, Reply, Usage


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

        An entry that is damaged, or not one of this key, counts as none.
        """
        key = self.key(item, image_path)
        return read_entry(self.path(key), partial(_read_reply, key))

    def write(
        self, item: SliceRecord, image_path: Path, raw: str, model: str | None = None
    ) -> None:
        """Keep an answer; a reader sees all of it or nothing."""
        key = self.key(item, image_path)
        write_text(self.path(key), _canonical({"key": key, "raw": raw, "model": model}))


def _read_reply(key: Mapping[str, Any], path: Path) -> Reply:
    entry = json.loads(path.read_text(encoding="utf-8"))
    raw, model = entry["raw"], entry.get("model")
    if _canonical(entry["key"]) != _canonical(key) or not isinstance(raw, str):
        raise ValueError("it holds the caption of something else")
    return raw if model is None else Paid(raw, Usage(), model)


def find_cache(
    plugin: ModuleType, settings: Section, name: str, cache_dir: Path
) -> CaptionCache | None:
    """Open the captions that all experiments share, if the captioner can name what decides them."""
    if not hasattr(plugin, "cache_identity"):
        return None
    return CaptionCache(
        cache_dir / "captions", name, lambda item: plugin.cache_identity(settings, item)
    )


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
