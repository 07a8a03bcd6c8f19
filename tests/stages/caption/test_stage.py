import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline import registry
from pipeline.contracts import (
    LABELS,
    SCRATCH,
    SPLITS,
    Artifact,
    ArtifactWriter,
    CaptionRecord,
    Context,
    PluginConfig,
    SliceRecord,
    TumorReport,
    write_records,
)
from pipeline.errors import ConfigError, DataError, SkippedTooManyError
from pipeline.run import manifest
from pipeline.settings import CaptionConfig
from stages.caption import stage as caption
from stages.caption.imagefolder import link_image
from stages.caption.stage import CaptionInputs
from stages.components.captioning.asking import answer_all, find_sameness
from stages.components.captioning.captioner import Failure, Reply
from stages.components.captioning.journal import Journal
from stages.components.tumor_report.rendering import describe

NUM_SLICES = 24
CONFIG = CaptionConfig(vlm=PluginConfig(name="truth"), tokenizer=PluginConfig(name="words"))


@pytest.fixture(autouse=True)
def words_are_tokens(add_file: Callable[..., Path]) -> None:
    """Count words: the real tokenizers have their own tests."""
    add_file(registry.BASE_MODELS, "words")


@pytest.fixture
def slices(tmp_path: Path) -> Artifact[SliceRecord]:
    root = tmp_path / "preprocess"
    records = []
    for index in range(NUM_SLICES):
        label, split = LABELS[index % 4], SPLITS[index % 3]
        plane = ("axial", "coronal", "sagittal")[index % 3]
        report = TumorReport(tumor=False, orientation=plane)
        if label != "notumor":
            report = TumorReport(
                tumor=True,
                location="falx",
                side="left" if plane != "sagittal" else "unknown",
                size="small",
                shape="round",
                intensity="mixed",
                orientation=plane,
            )
        text = describe(label, "flair", report.orientation or "unknown")
        records.append(
            SliceRecord(
                slice_id=f"s{index:02d}",
                subject_id=None,
                group_id=f"g{index}",
                source="phantom",
                split=split,
                label=label,
                image_path=f"images/s{index:02d}.png",
                original=f"{label}/s{index:02d}.nii",
                original_width_px=8,
                original_height_px=8,
                truth=report.model_copy(update={"general_description": text}),
            )
        )
        path = root / records[-1].image_path
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (index, index, index)).save(path)
    write_records(root / "records.jsonl", records)
    return Artifact(root, "0" * 64, SliceRecord, {})


Run = Callable[..., ArtifactWriter[CaptionRecord]]


@pytest.fixture
def run_stage(tmp_path: Path, slices: Artifact[SliceRecord]) -> Run:
    def run(config: CaptionConfig = CONFIG, name: str = "out") -> ArtifactWriter[CaptionRecord]:
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        output = ArtifactWriter(root, CaptionRecord)
        context = Context("test", 0, "cpu", "float32", 1, tmp_path / "cache", lambda line: None)
        caption.run(config, CaptionInputs(slices), output, context)
        return output

    return run


def read(output: ArtifactWriter[CaptionRecord]) -> list[CaptionRecord]:
    return list(Artifact(output.root, "", CaptionRecord, {}).records())


def contents(root: Path) -> dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in manifest.list_files(root)}


def test_truth_captions_state_the_truth(run_stage: Run, slices: Artifact[SliceRecord]) -> None:
    output = run_stage()
    records = read(output)
    wanted = [item for item in slices.records() if item.split != "test"]
    assert [record.slice_id for record in records] == [item.slice_id for item in wanted]
    assert [record.report for record in records] == [item.truth for item in wanted]
    glioma = next(record for record in records if record.label == "glioma")
    assert glioma.text.startswith("tumor: yes; location: left falx; size: small; shape: round; ")
    assert glioma.text.endswith("brain MRI with a glioma")
    assert output.counts == {"written": 16, "read": 16, "failed": 0}
    right = {
        row["field"]: (row["accuracy"]["value"], row["n"]) for row in output.notes["agreement"]
    }
    assert right["size"] == right["location"] == right["type"] == (1, 12)
    assert right["tumor"] == (1, 16)
    assert "side" not in right  # no mask shows it
    assert output.notes["names_class"]["glioma"]["share"] == 1
    json.dumps(output.notes)


def test_the_artifact_is_an_imagefolder(run_stage: Run, slices: Artifact[SliceRecord]) -> None:
    output = run_stage()
    rows = [
        json.loads(line)
        for line in (output.root / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    images = {path.relative_to(output.root).as_posix() for path in output.root.rglob("*.png")}
    assert {row["file_name"] for row in rows} == images
    assert len(images) == 16
    assert all(set(row) == {"file_name", "text"} and row["text"] for row in rows)
    first = read(output)[0]
    assert first.file_name == "images/train/s00.png"
    source = slices.path("images/s00.png")
    assert (output.root / first.file_name).read_bytes() == source.read_bytes()
    assert not (output.root / caption.JOURNAL).exists()


def test_label_may_stand_before_the_description(run_stage: Run) -> None:
    output = run_stage(CONFIG.model_copy(update={"include_label": True}))
    by_label = {record.label: record.text for record in read(output)}
    assert "general description: pituitary tumor. FLAIR" in by_label["pituitary"]
    assert "general description: no tumor. FLAIR" in by_label["notumor"]
    assert output.notes["include_label"] is True


@pytest.mark.parametrize("style", ["sentence", "label_only"])
def test_other_styles(run_stage: Run, style: str) -> None:
    texts = {record.text for record in read(run_stage(CONFIG.model_copy(update={"style": style})))}
    start = "brain MRI, " if style == "label_only" else ("Axial", "Coronal", "Sagittal")
    assert all(text.startswith(start) for text in texts)


def captions_file(tmp_path: Path, slices: Artifact[SliceRecord], leave_out: int) -> CaptionConfig:
    path = tmp_path / "captions.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for item in list(slices.records())[leave_out:]:
            text = "tumor: yes; location: falx; orientation: saggital; general description: x"
            file.write(json.dumps({"file_name": item.original, "text": text}) + "\n")
    vlm = PluginConfig(name="precomputed", settings={"path": str(path)})
    return CONFIG.model_copy(update={"vlm": vlm, "max_failed_fraction": 0.1})


def test_missing_captions_are_counted_and_not_invented(
    run_stage: Run, tmp_path: Path, slices: Artifact[SliceRecord]
) -> None:
    output = run_stage(captions_file(tmp_path, slices, 1))
    failed = read(output)[0]
    assert (failed.status, failed.text, failed.file_name) == ("failed", "", "")
    assert failed.reason == "no caption in captions.jsonl"
    assert failed.report is None
    assert output.counts["failed"] == 1
    assert output.notes["failed"] == {"no caption in captions.jsonl": 1}
    assert len(list(output.root.rglob("*.png"))) == 15
    presence = output.notes["presence"]
    assert (presence["false_positive"], presence["silent_without_tumor"]) == (3, 1)
    assert (presence["true_positive"], presence["sensitivity"]["value"]) == (12, 1)


def test_too_many_failures_stop_the_stage(
    run_stage: Run, tmp_path: Path, slices: Artifact[SliceRecord]
) -> None:
    config = captions_file(tmp_path, slices, 4)
    with pytest.raises(
        SkippedTooManyError,
        match=r"3 of 16 captions failed.*fraction 0\.1: no caption in captions\.jsonl \(3\)",
    ):
        run_stage(config)


def test_no_slice_in_the_splits_is_an_error(run_stage: Run, slices: Artifact[SliceRecord]) -> None:
    train = [item for item in slices.records() if item.split == "train"]
    write_records(slices.root / "records.jsonl", train)
    with pytest.raises(DataError, match="holds no slice of the splits val, test"):
        run_stage(CONFIG.model_copy(update={"splits": ("val", "test")}))


def test_a_tokenizer_must_be_named(run_stage: Run) -> None:
    with pytest.raises(ConfigError, match=r"caption\.tokenizer: expected a base model, found None"):
        run_stage(CONFIG.model_copy(update={"tokenizer": None}))


@pytest.mark.parametrize("batches", [0, 1, 4])
@pytest.mark.parametrize("torn", [False, True])
def test_a_killed_run_goes_on_with_the_same_bytes(
    run_stage: Run, tmp_path: Path, add_file: Callable[..., Path], batches: int, torn: bool
) -> None:
    whole = contents(run_stage(name="whole").root)
    add_file(registry.VLMS, "dying")
    dying = PluginConfig(name="dying", settings={"batches": batches})
    with pytest.raises(KeyboardInterrupt):
        run_stage(CONFIG.model_copy(update={"vlm": dying}), name="killed")
    journal = tmp_path / "killed" / SCRATCH / caption.JOURNAL
    if batches:
        lines = journal.read_bytes()
        assert lines.count(b"\n") == 3 * batches
        if torn:
            journal.write_bytes(lines[:-20])
    assert contents(run_stage(name="killed").root) == whole


def test_a_kill_among_the_images_is_mended(run_stage: Run, tmp_path: Path) -> None:
    whole = contents(run_stage(name="whole").root)
    half = tmp_path / "half"
    shutil.copytree(tmp_path / "whole" / "images" / "train", half / "images" / "train")
    assert contents(run_stage(name="half").root) == whole


class Counting:
    """Remembers what it was asked for; gives as many answers as it was told to."""

    batch_size = 3

    def __init__(self, answers: int | None = None) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def describe(
        self, slices: Sequence[SliceRecord], image_paths: Sequence[Path]
    ) -> Sequence[str | Failure]:
        self.asked += [item.slice_id for item in slices]
        return ["tumor: no"] * (len(slices) if self.answers is None else self.answers)


def test_resuming_asks_for_what_is_missing_and_for_what_failed(
    tmp_path: Path, slices: Artifact[SliceRecord]
) -> None:
    items = list(slices.records())[:6]
    journal = Journal(tmp_path / "j.jsonl")
    journal.append({"s00": "a", "s01": Failure("b"), "s02": "c"})
    lines: list[str] = []
    captioner = Counting()
    answers = answer_all(items, [tmp_path] * 6, lambda: captioner, journal, lines.append)
    assert captioner.asked == ["s01", "s03", "s04", "s05"]
    assert answers["s01"] == "tumor: no"
    assert lines[0] == "2 of 6 captions were in the journal"
    assert lines[-1] == "6 of 6 captions"


def test_a_wrong_number_of_answers_is_an_error(
    tmp_path: Path, slices: Artifact[SliceRecord]
) -> None:
    items = list(slices.records())[:3]
    with pytest.raises(DataError, match="answered 2 times for 3 slices, from 's00' on"):
        answer_all(items, [tmp_path] * 3, lambda: Counting(2), Journal(tmp_path / "j"), print)
    assert Journal(tmp_path / "j").read() == {}  # nobody knows whose answers they were


def test_images_are_copied_where_links_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("cross-device link")

    source = tmp_path / "a.png"
    source.write_bytes(b"pixels")
    link_image(source, tmp_path / "b.png")
    assert (tmp_path / "b.png").stat().st_ino == source.stat().st_ino
    monkeypatch.setattr(os, "link", refuse)
    link_image(source, tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes() == b"pixels"
    assert (tmp_path / "c.png").stat().st_ino != source.stat().st_ino


def test_answers_that_are_nearly_all_the_same_are_warned_of() -> None:
    same: list[Reply] = ["tumor: no", Failure("blocked"), *["tumor: yes; side: left"] * 38]
    line = find_sameness(same)
    assert line is not None and line.startswith("38 of 39 answers are the same, 'tumor: yes; side")
    assert find_sameness([*same, "a", "b"]) is None
    assert find_sameness(same[:20]) is None  # too few to tell


def test_a_captioner_that_does_not_look_is_told_of(
    run_stage: Run, tmp_path: Path, slices: Artifact[SliceRecord]
) -> None:
    path = tmp_path / "captions.jsonl"
    rows = [{"file_name": item.original, "text": "tumor: no"} for item in slices.records()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    vlm = PluginConfig(name="precomputed", settings={"path": str(path)})
    config = CONFIG.model_copy(update={"vlm": vlm, "splits": SPLITS})
    warnings = run_stage(config).notes["warnings"]
    assert [line.partition(",")[0] for line in warnings] == ["24 of 24 answers are the same"]
    assert run_stage(name="truth").notes["warnings"] == []


def test_stage_declares_its_ports() -> None:
    assert caption.STAGE.name == "caption"
    assert caption.STAGE.record_type is CaptionRecord
