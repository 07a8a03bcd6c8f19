import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.contracts import SliceRecord
from stages.components.captioning.cache import CaptionCache
from stages.components.captioning.captioner import CaptionIdentity

IDENTITY = CaptionIdentity("model", "1", "What is it?", {"temperature": 0.0, "places": ("a", "b")})
SLICE = SliceRecord(
    slice_id="s1",
    subject_id=None,
    group_id="g1",
    source="phantom",
    split="train",
    label="glioma",
    image_path="s1.png",
    original="s1.nii",
    original_width_px=1,
    original_height_px=1,
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "s1.png"
    path.write_bytes(b"pixels")
    return path


def open_cache(
    tmp_path: Path, name: str = "vlm", identity: CaptionIdentity = IDENTITY
) -> CaptionCache:
    return CaptionCache(tmp_path / "cache", name, lambda item: identity)


def test_words_come_back(tmp_path: Path, image: Path) -> None:
    cache = open_cache(tmp_path)
    assert cache.read(SLICE, image) is None
    cache.write(SLICE, image, "tumor: yes; größer\n")
    cache.write(SLICE, image, "tumor: yes; größer\n")
    assert open_cache(tmp_path).read(SLICE, image) == "tumor: yes; größer\n"
    (file,) = [path for path in cache.folder.rglob("*") if path.is_file()]
    assert file.parent.name == file.stem[:2]


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"revision": None},
        {"prompt": "What is it, if not a glioma?"},
        {"decoding": {"temperature": 0.5}},
    ],
    ids=str,
)
def test_whatever_decides_a_caption_is_in_its_key(
    tmp_path: Path, image: Path, change: dict[str, object]
) -> None:
    open_cache(tmp_path).write(SLICE, image, "words")
    assert open_cache(tmp_path, identity=replace(IDENTITY, **change)).read(SLICE, image) is None
    assert open_cache(tmp_path, name="other").read(SLICE, image) is None


def test_the_image_counts_and_the_slice_does_not(tmp_path: Path, image: Path) -> None:
    cache = open_cache(tmp_path)
    cache.write(SLICE, image, "words")
    renamed = SLICE.model_copy(update={"slice_id": "t9", "split": "val"})
    assert cache.read(renamed, image) == "words"
    image.write_bytes(b"other pixels")
    assert cache.read(SLICE, image) is None


@pytest.mark.parametrize(
    "text",
    ["", '{"key": ', "{}", "[]", "\0" * 9, json.dumps({"key": {"image": "other"}, "raw": "x"})],
)
def test_a_damaged_entry_is_a_miss_and_rewritten(
    tmp_path: Path, image: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = open_cache(tmp_path)
    cache.write(SLICE, image, "words")
    path = cache.path(cache.key(SLICE, image))
    path.write_text(text)
    assert cache.read(SLICE, image) is None
    assert cache.read(SLICE, image) is None
    (said,) = caplog.messages
    assert said.startswith(f"{path}: a damaged entry of a cache, made again")
    cache.write(SLICE, image, "words")
    assert cache.read(SLICE, image) == "words"
