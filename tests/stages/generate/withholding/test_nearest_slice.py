from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import registry
from pipeline.contracts import Artifact, SliceRecord, write_records
from pipeline.errors import SampleSizeError
from stages.components.imaging import pixels

RULE = registry.find(registry.WITHHOLDING, "nearest_slice")
SIZE = 64


def head(seed: int) -> Any:
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    texture = ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE)), SIZE / 16)
    return np.clip(110 + 60 * texture / texture.std(), 5, 250).astype(np.uint8)


def artifact(root: Path, **counts: int) -> Artifact[SliceRecord]:
    root.mkdir()
    rows, seed = [], 0
    for split, count in counts.items():
        for _ in range(count):
            seed += 1
            pixels.save_png(root / f"{seed}.png", head(seed))
            rows.append(
                SliceRecord(
                    slice_id=f"s{seed}",
                    subject_id=None,
                    group_id=f"g{seed}",
                    source="test",
                    split=split,  # type: ignore[arg-type]
                    label="glioma",
                    image_path=f"{seed}.png",
                    original=f"{seed}",
                    original_width_px=SIZE,
                    original_height_px=SIZE,
                )
            )
    write_records(root / "records.jsonl", rows)
    return Artifact(root, "digest", SliceRecord, {})


def build(slices: Artifact[SliceRecord], cache_dir: Path, said: list[str]) -> Any:
    return RULE.build(
        RULE.Settings(), slices, device="cpu", cache_dir=cache_dir, progress=said.append
    )


def test_training_slices_are_copies_and_other_images_are_not(tmp_path: Path) -> None:
    said: list[str] = []
    watch = build(artifact(tmp_path / "a", train=12, val=8, test=4), tmp_path, said)
    train, test = (np.stack([pixels.to_rgb(head(s)) for s in r]) for r in ([3, 9], [21, 22, 50]))
    assert watch.find_copies(train).tolist() == [True, True]
    mirrored = np.ascontiguousarray(train[:, :, ::-1])
    assert watch.find_copies(mirrored).tolist() == [True, True]
    assert watch.find_copies(test).tolist() == [False] * 3  # the test split is not looked at
    mixed = watch.find_copies(np.concatenate([test[:1], train[:1]]))
    assert mixed.tolist() == [False, True]
    assert said == ["generate: copies are told by 8 validation slices, fewer than 50, so roughly"]


@pytest.mark.parametrize(("train", "val"), [(0, 5), (5, 1)])
def test_too_few_slices_are_refused(tmp_path: Path, train: int, val: int) -> None:
    with pytest.raises(SampleSizeError, match=f"found {train} and {val} in .*val_fraction"):
        build(artifact(tmp_path / "a", train=train, val=val), tmp_path, [])
