import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DataError, SampleSizeError, SkippedTooManyError
from stages.evaluate.compare import list_images, read_folder


class Means:
    name, num_features, input_size = "means", 1, 8
    digest = "weights"

    def __call__(self, images):
        return images.reshape(len(images), -1).mean(axis=1, keepdims=True).astype(np.float32)


def fill(folder, count):
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        Image.fromarray(np.full((8, 8), k, np.uint8)).save(folder / f"{k:03}.png")


def test_images_are_found_in_subfolders_and_sorted(tmp_path):
    fill(tmp_path / "b", 1)
    fill(tmp_path / "a" / "deep", 2)
    (tmp_path / "notes.txt").write_text("no image")
    found = [str(path.relative_to(tmp_path)) for path in list_images(tmp_path)]
    assert found == ["a/deep/000.png", "a/deep/001.png", "b/000.png"]


def test_no_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="absent' is no folder"):
        list_images(tmp_path / "absent")


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"holds no image \(\.bmp, "):
        list_images(tmp_path)


def test_features_come_in_sorted_order(tmp_path):
    fill(tmp_path, 5)
    paths, found = read_folder(tmp_path, Means(), least=2, progress=lambda line: None)
    assert [path.name for path in paths] == [f"{k:03}.png" for k in range(5)]
    assert found["means"][:, 0].tolist() == [0, 1, 2, 3, 4]


def test_a_few_unreadable_images_are_counted(tmp_path):
    fill(tmp_path, 60)
    (tmp_path / "007.png").write_bytes(b"damaged")
    lines = []
    paths, found = read_folder(tmp_path, Means(), least=2, progress=lines.append)
    assert len(paths) == len(found["means"]) == 59
    assert "1 of 60 images" in lines[-1]
    assert "007.png" in lines[-1]


def test_many_unreadable_images_are_refused(tmp_path):
    fill(tmp_path, 10)
    (tmp_path / "007.png").write_bytes(b"damaged")
    with pytest.raises(SkippedTooManyError, match=r"1 of 10 images in .* more than 2%.*007\.png"):
        read_folder(tmp_path, Means(), least=2, progress=lambda line: None)


def test_too_few_images_are_refused(tmp_path):
    fill(tmp_path, 3)
    with pytest.raises(SampleSizeError, match="found 3 images, expected at least 4"):
        read_folder(tmp_path, Means(), least=4, progress=lambda line: None)
