import json
import multiprocessing
import os
from pathlib import Path

import pytest

from pipeline import files
from pipeline.contracts import SCHEMA_VERSION, Record, write_records
from pipeline.errors import ArtifactError, IncompleteArtifactError
from pipeline.run import manifest


class Row(Record):
    text: str


def content(**changes: object) -> dict[str, object]:
    values: dict[str, object] = {key: kinds[0]() for key, kinds in manifest.KINDS.items()}
    return values | {"schema_version": SCHEMA_VERSION, "digest": "d" * 64} | changes


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    folder = tmp_path / "caption" / "0123.partial"
    (folder / "images").mkdir(parents=True)
    write_records(folder / "records.jsonl", [Row(text="one"), Row(text="zwölf")])
    (folder / "images" / "a.png").write_bytes(b"png")
    return folder


def publish(partial: Path) -> Path:
    final = partial.with_suffix("")
    manifest.publish(partial, final, content(files=manifest.list_files(partial)))
    return final


def test_digest_ignores_the_order_of_keys_and_nothing_else() -> None:
    assert manifest.digest_of({"a": 1, "b": [1, 2]}) == manifest.digest_of({"b": [1, 2], "a": 1})
    assert manifest.digest_of({"b": [2, 1]}) != manifest.digest_of({"b": [1, 2]})
    assert manifest.digest_of({"a": 1}) != manifest.digest_of({"a": "1"})


def test_digest_refuses_nan() -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        manifest.digest_of({"a": float("nan")})


def test_published_folder_opens_as_an_artifact(partial: Path) -> None:
    final = publish(partial)
    assert not partial.exists()
    artifact = manifest.open_artifact(final, Row)
    assert [row.text for row in artifact.records()] == ["one", "zwölf"]
    assert list(artifact.manifest["files"]) == ["images/a.png", "records.jsonl"]
    assert manifest.verify(final, artifact.manifest, is_deep=True) == []


def test_folder_without_manifest_in_the_way_is_replaced(partial: Path) -> None:
    final = partial.with_suffix("")
    final.mkdir()
    (final / "rest").touch()
    publish(partial)
    assert not (final / "rest").exists()


def test_all_is_on_the_disk_before_the_manifest_and_before_the_name(
    partial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power fails at the rename: what has its name by then must be whole."""
    synced: list[str] = []

    def fsync(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)

    monkeypatch.setattr(os, "fsync", fsync)
    final = publish(partial)
    at = next(k for k, name in enumerate(synced) if name.startswith(".manifest.json"))
    assert set(synced[:at]) == {"a.png", "images", "records.jsonl", partial.name}
    assert synced[at + 1 :] == [partial.name, final.parent.name]


def test_no_manifest_is_incomplete(tmp_path: Path) -> None:
    with pytest.raises(IncompleteArtifactError, match=r"has no manifest.json.*Rerun"):
        manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        (
            json.dumps(content(schema_version=99)),
            f"expected schema_version {SCHEMA_VERSION}, found 99",
        ),
        ("[]", rf"expected schema_version {SCHEMA_VERSION}, found \[\]"),
        (json.dumps({"schema_version": SCHEMA_VERSION}), r"lacks \['arm_names', "),
        (json.dumps(content(files=[1])), r"files is \[1\], which no run writes"),
        (json.dumps(content(files={"a": 1})), "files is {'a': 1}, which no run writes"),
        (
            json.dumps(content(files={"a": {"size": True, "sha256": ""}})),
            "files is .*True.*, which no run",
        ),
        (json.dumps(content(arm_names=[["a"]])), r"arm_names is \[\['a'\]\], which no run"),
        (json.dumps(content(seed=True, notes=None)), "seed is True.*; notes is None, which no run"),
        ("[" * 3000 + "]" * 3000, "cannot be read"),
    ],
)
def test_damaged_manifest(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match=message):
        manifest.read(tmp_path)


def test_damage_is_found(partial: Path) -> None:
    final = publish(partial)
    made = manifest.read(final)
    image, rows = final / "images" / "a.png", final / "records.jsonl"

    image.write_bytes(b"gnp")
    assert manifest.verify(final, made) == []
    assert manifest.verify(final, made, is_deep=True) == ["images/a.png has changed"]
    image.write_bytes(b"other")
    assert manifest.verify(final, made) == ["images/a.png has 5 bytes, not 3"]
    image.unlink()
    rows.write_bytes(b"")
    size = made["files"]["records.jsonl"]["size"]
    assert manifest.verify(final, made) == [
        "images/a.png is missing",
        f"records.jsonl has 0 bytes, not {size}",
    ]
    with pytest.raises(
        ArtifactError, match=r"damaged: images/a.png is missing, and 1 more. Rerun caption"
    ):
        manifest.open_artifact(final, Row)


def test_manifest_cannot_name_files_outside(partial: Path) -> None:
    final = publish(partial)
    (final.parent / "other").touch()
    made = manifest.read(final)
    made["files"] = {"../other": files.fingerprint(final.parent / "other")}
    assert manifest.verify(final, made, is_deep=True) == ["../other is missing"]


def _try_lock(path: Path, answers: "multiprocessing.Queue[str]") -> None:
    try:
        with manifest.locked(path):
            answers.put("locked")
    except ArtifactError as error:
        answers.put(str(error))


def test_lock_keeps_another_process_out(tmp_path: Path) -> None:
    path = tmp_path / "caption" / "0123.lock"
    fork = multiprocessing.get_context("fork")
    answers: multiprocessing.Queue[str] = fork.Queue()

    def ask() -> str:
        other = fork.Process(target=_try_lock, args=(path, answers))
        other.start()
        other.join()
        return answers.get(timeout=10)

    with manifest.locked(path):
        answer = ask()
    assert f"another run (process {os.getpid()}) is at work on" in answer
    assert not path.exists()
    assert ask() == "locked"


def test_lock_file_stays_after_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "0123.lock"

    def fail() -> None:
        with manifest.locked(path):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.exists()
    with manifest.locked(path):
        pass
