import pytest
from PIL import Image

from pipeline.errors import DataError
from stages.preprocess.sources import image_folder
from stages.preprocess.sources.image_folder import Settings


def put(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(path)
    return Settings(root=root)


def read(settings, tmp_path):
    return list(image_folder.iter_scans(settings, seed=0, cache_dir=tmp_path))


def test_kaggle_layout_keeps_the_published_split(tmp_path):
    settings = put(
        tmp_path,
        "Training/glioma/Tr-gl_0010.jpg",
        "Training/notumor/Tr-no_0001.jpg",
        "Testing/pituitary/Te-pi_0002.jpg",
    )
    scans = read(settings, tmp_path)
    assert [(s.label, s.published_split, s.original) for s in scans] == [
        ("pituitary", "test", "Testing/pituitary/Te-pi_0002.jpg"),
        ("glioma", "train", "Training/glioma/Tr-gl_0010.jpg"),
        ("notumor", "train", "Training/notumor/Tr-no_0001.jpg"),
    ]
    assert scans[1].scan_id == "Training-glioma-Tr-gl_0010"
    assert all(s.subject_id is None and s.mask_path is None for s in scans)


@pytest.mark.parametrize(
    ("folder", "label"),
    [
        ("no_tumor", "notumor"),
        ("NoTumour", "notumor"),
        ("no", "notumor"),
        ("Normal", "notumor"),
        ("glioma_tumor", "glioma"),
        ("Meningioma", "meningioma"),
        ("pituitary tumor", "pituitary"),
    ],
)
def test_class_folders_are_known_by_their_usual_names(tmp_path, folder, label):
    scans = read(put(tmp_path, f"{folder}/a.PNG"), tmp_path)
    assert [(s.label, s.published_split) for s in scans] == [(label, None)]


def test_further_names_can_be_mapped(tmp_path):
    put(tmp_path, "HGG/a.jpg")
    settings = Settings(root=tmp_path, class_names={"hgg": "glioma"})
    assert read(settings, tmp_path)[0].label == "glioma"


def test_scan_ids_are_file_names_and_unique(tmp_path):
    settings = put(tmp_path, "no/a 1.jpg", "no/a 1.png", "no/é.jpg", "no/ü.jpg")
    names = [s.scan_id for s in read(settings, tmp_path)]
    assert len(set(names)) == 4 and all(name.isascii() and "/" not in name for name in names)


def test_other_files_and_hidden_folders_are_left_out(tmp_path):
    put(tmp_path, "no/a.jpg", ".git/b.jpg", "__MACOSX/c.jpg", "no/._a.jpg")
    (tmp_path / "no" / "notes.txt").write_text("x")
    assert len(read(Settings(root=tmp_path), tmp_path)) == 1


def test_an_unknown_class_lists_what_was_found(tmp_path):
    settings = put(tmp_path, "Training/glioma/a.jpg", "Training/schwannoma/b.jpg")
    with pytest.raises(DataError, match=r"'schwannoma'.*found \['glioma', 'schwannoma'\]"):
        read(settings, tmp_path)
    assert "'schwannoma'" in image_folder.check(settings)[0]


def test_splits_and_classes_side_by_side_are_refused(tmp_path):
    settings = put(tmp_path, "Training/glioma/a.jpg", "glioma/b.jpg")
    with pytest.raises(DataError, match=r"also \['glioma'\]"):
        read(settings, tmp_path)


def test_a_missing_or_empty_root_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"no folder '.*absent'; put the images there"):
        read(Settings(root=tmp_path / "absent"), tmp_path)
    with pytest.raises(DataError, match="no images under"):
        read(Settings(root=tmp_path), tmp_path)
    assert "no folder" in image_folder.check(Settings(root=tmp_path / "absent"))[0]


def test_tiny_is_a_kaggle_folder(tmp_path):
    settings = image_folder.tiny(tmp_path)
    assert image_folder.check(settings) == []
    assert len(read(settings, tmp_path)) == 24


def test_input_digest_follows_the_files(tmp_path):
    settings = image_folder.tiny(tmp_path)
    first = image_folder.input_digest(settings)
    assert image_folder.input_digest(settings) == first
    added = tmp_path / "Training" / "glioma" / "another.png"
    Image.new("L", (8, 8)).save(added)
    second = image_folder.input_digest(settings)
    Image.new("RGB", (80, 80), "red").save(added)
    third = image_folder.input_digest(settings)
    assert len({first, second, third}) == 3
    added.unlink()
    assert image_folder.input_digest(settings) == first
