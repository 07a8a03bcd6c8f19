"""The tiny VLMs: tokens, truth under augmentation, resume, learning, and the finished folder."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.contracts import Label, TumorReport
from pipeline.errors import TrainingError
from stages.components.tumor_report.agreement import FIELDS
from stages.components.tumor_report.rendering import describe
from stages.embedded import vlm_build, vlm_models, vlm_training
from stages.embedded.corpora import truth
from stages.embedded.vlm_models import FAMILIES, Family
from tests.fabricate.vlms import RANDOM
from tests.stages.embedded.parts import write_truth


def tumor(side: str | None, orientation: str = "axial", location: str = "falx") -> TumorReport:
    return TumorReport(
        tumor=True, location=location, side=side, size="small", shape="round",
        intensity="mixed", orientation=orientation,
        general_description=describe("meningioma", "t1ce", orientation),
    )  # fmt: skip


REPORTS = [
    tumor("left"),
    tumor("right"),
    tumor("unknown", "sagittal"),
    TumorReport(
        tumor=False, orientation="axial", general_description=describe("notumor", "t2", "axial")
    ),
]


@pytest.fixture
def corpus() -> truth.TruthCorpus:
    """Slices that can be told apart at a glance: a bright left, right, top or bottom half."""
    images = np.full((4, 32, 32), 20, np.uint8)
    images[0, :, :12] = images[1, :, 20:] = images[2, :12] = images[3, 20:] = 220
    labels: list[Label] = ["meningioma", "meningioma", "meningioma", "notumor"]
    stripped = np.ones(4, np.bool_)
    return truth.TruthCorpus(images, images > 100, labels, list("0123"), stripped, REPORTS)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_is_one_token_and_all_other_text_is_bytes(family: Family) -> None:
    tokenizer = vlm_models.build_tokenizer(family)
    for report in REPORTS:
        ids = vlm_models.encode_answer(tokenizer, report)
        assert len(ids) == vlm_models.ANSWER_TOKENS
        assert tokenizer.decode(ids, skip_special_tokens=True) == vlm_models.answer_text(report)
    assert tokenizer.decode(tokenizer("zyxwv café").input_ids) == "zyxwv café"
    other = REPORTS[0].model_copy(update={"location": "left knee"})
    with pytest.raises(ValueError, match=r"left knee.* takes \d+ tokens, expected 11"):
        vlm_models.encode_answer(tokenizer, other)


def test_the_three_together_stay_within_8_and_a_half_mb() -> None:
    total = 0
    for family in FAMILIES:
        size, tokenizer = vlm_models.Size(), vlm_models.build_tokenizer(family)
        model = vlm_models.build_model(family, size, tokenizer)
        count = sum(p.numel() for p in model.parameters())
        assert 1.2e6 < count < 3e6
        total += 2 * count  # bytes, float16
    assert total < 8.5e6


def test_positions_are_alike_where_patches_are_near() -> None:
    waves = vlm_models.sine_positions(4, 32).reshape(4, 4, 32)
    assert waves.square().mean().sqrt() == pytest.approx(0.354, abs=0.01)
    near = (waves[0, 0] - waves[0, 1]).norm()
    assert near < (waves[0, 0] - waves[0, 3]).norm()
    assert near == pytest.approx((waves[2, 0] - waves[3, 0]).norm())


def test_classes_are_drawn_alike_and_rare_places_oftener(corpus: truth.TruthCorpus) -> None:
    places = ["falx"] * 4 + ["convexity"] + [None] * 2
    reports = [tumor("left", location=p) if p else REPORTS[3] for p in places]
    labels: list[Label] = [*["meningioma"] * 5, *["notumor"] * 2]  # type: ignore[list-item]
    weights = vlm_training.sampling_weights(replace(corpus, labels=labels, reports=reports))
    assert weights.sum() == pytest.approx(1)
    assert weights[:5].sum() == pytest.approx(weights[5:].sum())
    assert weights[4] == pytest.approx(2 * weights[0])  # one to four slices: root of four


def test_mirrored_slices_swap_sides_and_sagittal_ones_stay(corpus: truth.TruthCorpus) -> None:
    answers, words = vlm_training.encode_corpus(corpus, "llava", RANDOM)
    images = torch.from_numpy(corpus.images)[:, None].float()
    everyone = torch.ones(4, dtype=torch.bool)
    told = torch.from_numpy(answers)
    flipped, lesions, now = vlm_training.mirror(images, images, told, everyone, words)
    assert torch.equal(flipped[0], images[1]) and torch.equal(lesions[1], images[0])
    assert torch.equal(now[0], told[1]) and torch.equal(now[1], told[0])
    assert torch.equal(flipped[2], images[2]) and torch.equal(now[2], told[2])
    assert torch.equal(now[3], told[3])  # no tumour, no side
    kept, _, same = vlm_training.mirror(images, images, told, ~everyone, words)
    assert torch.equal(kept, images) and torch.equal(same, told)


def test_augmentation_moves_image_and_lesion_together(corpus: truth.TruthCorpus) -> None:
    shown = torch.from_numpy(corpus.lesions)[:, None].float()
    images, lesions = vlm_training.augment(shown, shown, np.random.default_rng(1))
    assert images.shape == shown.shape and images.min() >= 0 and images.max() <= 1
    assert not torch.equal(lesions, shown)
    assert ((images > 0.5) == (lesions > 0.5)).float().mean() > 0.97
    assert lesions[0, 0, :, :8].mean() > 0.7 > lesions[0, 0, :, 20:].mean()  # left stays left
    again, _ = vlm_training.augment(shown, shown, np.random.default_rng(1))
    assert torch.equal(images, again)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_killed_training_ends_with_the_same_weights(
    family: Family, corpus: truth.TruthCorpus, tmp_path: Path
) -> None:
    lines: list[str] = []

    def run(folder: str, steps: int) -> torch.nn.Module:
        (tmp_path / folder).mkdir(exist_ok=True)
        settings = vlm_training.VlmTraining(
            family=family, steps=steps, batch_size=2, warmup_steps=10, checkpoint_every=1
        )
        return vlm_training.train(corpus, RANDOM, tmp_path / folder, settings, "cpu", lines.append)

    expected = run("whole", 3)
    run("broken", 2)
    resumed = run("broken", 3)
    assert f"{family}: going on at step 2" in lines
    assert any(line.startswith(f"{family}: step 3 of 3, caption loss") for line in lines)
    for name, value in expected.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_checkpoint_of_other_widths_is_refused(corpus: truth.TruthCorpus, tmp_path: Path) -> None:
    settings = vlm_training.VlmTraining(family="llava", steps=1, batch_size=2)
    vlm_training.train(corpus, RANDOM, tmp_path, settings, "cpu", print)
    wider = replace(RANDOM, text_width=2 * RANDOM.text_width)
    with pytest.raises(TrainingError, match="text_width is"):
        vlm_training.train(corpus, wider, tmp_path, settings, "cpu", print)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_models_own_and_reaches_every_weight(
    family: Family, corpus: truth.TruthCorpus
) -> None:
    torch.manual_seed(0)
    model = vlm_models.build_model(family, RANDOM, vlm_models.build_tokenizer(family))
    head = torch.nn.Linear(vlm_training.head_width(family, RANDOM), 1)
    answers, words = vlm_training.encode_corpus(corpus, family, RANDOM)
    told = torch.from_numpy(answers)
    images = torch.from_numpy(corpus.images)[:, None].float() / 255
    settings = vlm_training.VlmTraining(family=family)
    said, found = vlm_training.compute_loss(model, head, images, images, told, words, settings)
    prompt = words.prompt.expand(4, -1)
    inputs = {"input_ids": torch.cat([prompt, told], dim=1)}
    if words.token_types is not None:
        types = words.token_types.expand(4, -1)
        inputs["token_type_ids"] = torch.cat([types, torch.zeros_like(told)], dim=1)
    labels = torch.cat([torch.full_like(prompt, -100), told], dim=1)
    pixels = (2 * images - 1).expand(-1, 3, -1, -1)
    assert said.item() == pytest.approx(
        model(**inputs, pixel_values=pixels, labels=labels).loss.item(), rel=1e-4
    )
    (said + found).backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    unused = {"post_layernorm"} if family == "llava" else set()  # CLIP's pooled output
    assert {name for name in idle if not any(part in name for part in unused)} == set()


@pytest.mark.slow
def test_a_trained_model_captions_through_the_ordinary_captioner(
    corpus: truth.TruthCorpus, tmp_path: Path
) -> None:
    settings = vlm_training.VlmTraining(
        family="llava", steps=400, batch_size=8, learning_rate=4e-3, warmup_steps=20
    )
    lines: list[str] = []
    model = vlm_training.train(corpus, RANDOM, tmp_path, settings, "cpu", lines.append)
    folder = tmp_path / "llava"
    tokenizer = vlm_models.build_tokenizer("llava")
    vlm_models.save(folder, model, vlm_models.build_processor("llava", RANDOM, tokenizer))
    scores = vlm_build.evaluate(folder, "llava", corpus)
    accuracy = {row["field"]: row["accuracy"]["value"] for row in scores}
    assert accuracy == dict.fromkeys(accuracy, 1.0)
    assert {"tumor", "type", "location", "side", "size", "orientation"} <= accuracy.keys()


def test_the_whole_build_leaves_a_folder_with_card_and_scores(
    corpus: truth.TruthCorpus, tmp_path: Path
) -> None:
    for split in vlm_build.USED:  # every third subject is a whole head, and left out
        labels = [truth.label_of(split, index) for index in range(5)]
        rows = [3 if label == "notumor" else index % 3 for index, label in enumerate(labels)]
        reports = [corpus.reports[row] for row in rows]
        write_truth(tmp_path, split, corpus.images[rows], corpus.lesions[rows], reports, each=1)
    lines: list[str] = []
    folder = vlm_build.build(
        "gemma3",
        out_dir=tmp_path,
        cache_dir=tmp_path,
        device="cpu",
        progress=lines.append,
        size=RANDOM,
        subjects=dict.fromkeys(vlm_build.USED, 5),
        steps=2,
    )
    assert folder == tmp_path / "gemma3"
    assert {"README.md", "model.safetensors", "training.json"} <= {p.name for p in folder.iterdir()}
    assert "4 slices of 4 phantom brains" in (folder / "README.md").read_text(encoding="utf-8")
    scored = {line.split()[2] for line in lines if line.startswith("gemma3: held-out ")}
    assert scored | {"side"} == set(FIELDS)  # a side counts where a tumour is stated
    assert lines[-1].endswith(f"written to {folder}")
