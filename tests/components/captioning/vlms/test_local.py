"""Ovis2, Gemma 3 and LLaVA through from_pretrained, on tiny random checkpoints saved to disk."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    Gemma3ForConditionalGeneration,
    GenerationMixin,
    LlavaForConditionalGeneration,
    Ovis2ForConditionalGeneration,
)

from pipeline import registry
from pipeline.contracts import LABELS, Context, PluginConfig, SliceRecord
from pipeline.errors import MissingWeightsError, PipelineError, ValueRangeError
from stages.components.captioning import asking
from stages.components.captioning.captioner import Failure
from stages.components.captioning.questions import bounded_schema, read_answer
from stages.components.captioning.vlms._local_captioner import LocalCaptioner
from stages.embedded.vlm_models import Size
from tests.fabricate.vlms import tiny, write_random

CLASSES = {
    "ovis2": Ovis2ForConditionalGeneration,
    "gemma3": Gemma3ForConditionalGeneration,
    "llava": LlavaForConditionalGeneration,
}
NAMES = tuple(CLASSES)
HUB_ID = "google/medgemma-4b-it"
COMMIT = "0" * 40
# Keeps the words in which prompts for two classes differ, so that they differ in length.
WORDY = (
    "{% for m in messages %}{% for p in m['content'] %}{% if p['type'] == 'image' %}IMAGE"
    "{% else %}{{ p['text'].split('\\n')[0][50:] }}{% endif %}{% endfor %}{% endfor %}<answer>"
)


@pytest.fixture(scope="module")
def load(checkpoints: Path) -> Callable[..., LocalCaptioner]:
    def loaded(name: str, **settings: Any) -> LocalCaptioner:
        plugin = find(name)
        captioner = plugin.load(tiny(plugin, checkpoints).model_copy(update=settings))
        assert isinstance(captioner, LocalCaptioner)
        return captioner

    return loaded


@pytest.fixture
def slices() -> list[SliceRecord]:
    return [
        SliceRecord(
            slice_id=f"s{index}", subject_id=None, group_id=f"s{index}", source="phantom",
            split="train", label=LABELS[index % 4], image_path=f"s{index}.png",
            original=f"s{index}.png", original_width_px=32, original_height_px=32,
        )
        for index in range(5)
    ]  # fmt: skip


@pytest.fixture
def paths(tmp_path: Path, slices: list[SliceRecord]) -> list[Path]:
    rng = np.random.default_rng(0)
    for item in slices:
        pixels = rng.integers(0, 256, (32, 32), dtype=np.uint8)
        Image.fromarray(pixels).convert("RGB").save(tmp_path / item.image_path)
    return [tmp_path / item.image_path for item in slices]


def find(name: str) -> ModuleType:
    return registry.find(registry.VLMS, name)


@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize("name", NAMES)
def test_native_classes_answer_in_the_schema_whatever_their_weights(
    name: str, load: Callable[..., LocalCaptioner], slices: list[SliceRecord], paths: list[Path]
) -> None:
    captioner = load(name)
    assert type(captioner.model) is CLASSES[name]
    answers = captioner.describe(slices[:2], paths[:2])
    for text in answers:
        assert isinstance(text, str)
        assert read_answer(text).fits
        assert list(json.loads(text)) == bounded_schema()["required"]


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_unlike_prompts_gives_what_slices_alone_give(
    name: str, load: Callable[..., LocalCaptioner], slices: list[SliceRecord], paths: list[Path]
) -> None:
    image = "<start_of_image>" if name == "gemma3" else "<image>"
    captioner = load(
        name,
        prompt="poster",
        chat_template=WORDY.replace("IMAGE", image),
        batch_size=3,
        constrain=False,
        max_new_tokens=12,
        retries=0,
    )
    texts = [captioner._word(item) for item in slices]
    assert len({len(text) for text in texts}) > 1
    together = captioner._generate(texts, [Image.open(path) for path in paths], None)
    alone = [
        captioner._generate([text], [Image.open(path)], None)[0]
        for text, path in zip(texts, paths, strict=True)
    ]
    assert together == alone
    assert len(set(together)) > 1
    by_stage = captioner.describe(slices, paths)
    singly = [captioner.describe([s], [p])[0] for s, p in zip(slices, paths, strict=True)]
    assert by_stage == singly


def test_batches_are_sorted_by_the_length_of_prompts(
    load: Callable[..., LocalCaptioner],
    slices: list[SliceRecord],
    paths: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    template = WORDY.replace("IMAGE", "<image>")
    captioner = load("llava", prompt="poster", batch_size=2, chat_template=template, retries=0)
    seen: list[list[int]] = []

    def generate(self: Any, input_ids: Any, attention_mask: Any, **given: Any) -> Any:
        seen.append(attention_mask.sum(1).tolist())
        return input_ids

    monkeypatch.setattr(GenerationMixin, "generate", generate)
    assert len(captioner.describe(slices, paths)) == 5
    lengths = [length for batch in seen for length in batch]
    assert [len(batch) for batch in seen] == [2, 2, 1]
    assert lengths == sorted(lengths)


def test_a_cut_answer_is_asked_again_with_its_own_seeds_and_never_made_up(
    load: Callable[..., LocalCaptioner],
    slices: list[SliceRecord],
    paths: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    captioner = load("llava", retries=2, max_new_tokens=2)
    before = torch.random.get_rng_state()
    asked: list[int | None] = []
    original = GenerationMixin.generate

    def generate(self: Any, do_sample: bool, **given: Any) -> Any:
        asked.append(torch.initial_seed() if do_sample else None)
        return original(self, do_sample=do_sample, **given)

    monkeypatch.setattr(GenerationMixin, "generate", generate)
    (answer,) = captioner.describe(slices[:1], paths[:1])
    assert isinstance(answer, Failure)
    assert answer.reason == "broken JSON"
    assert asked[0] is None and None not in asked[1:] and len(set(asked)) == 3
    assert torch.equal(torch.random.get_rng_state(), before)
    first = list(asked)
    asked.clear()
    captioner.describe(slices[:1], paths[:1])
    assert asked == first


def test_the_first_readable_answer_is_taken_and_prose_is_left_to_the_stage(
    load: Callable[..., LocalCaptioner],
    slices: list[SliceRecord],
    paths: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    captioner = load("llava", constrain=False, retries=3)
    said = iter(["zzz", "{", "Axial brain MRI without a tumor.", "never asked for"])

    def generate(self: Any, input_ids: torch.Tensor, **given: Any) -> torch.Tensor:
        answer = captioner.processor.tokenizer(next(said), return_tensors="pt").input_ids
        return torch.cat([input_ids, answer], dim=1)

    monkeypatch.setattr(GenerationMixin, "generate", generate)
    assert captioner.describe(slices[:1], paths[:1]) == ["Axial brain MRI without a tumor."]
    said = iter(["zzz", "{", "{", "{"])
    assert captioner.describe(slices[:1], paths[:1]) == ["zzz"]


def test_sampling_depends_on_the_seed_alone(
    load: Callable[..., LocalCaptioner], slices: list[SliceRecord], paths: list[Path]
) -> None:
    captioner = load("ovis2", constrain=False, max_new_tokens=8)
    prompt, image = captioner._word(slices[0]), Image.open(paths[0])
    one, again, other = (captioner._generate([prompt], [image], seed)[0] for seed in (1, 1, 2))
    assert one == again != other


@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_quantised_weights_answer_in_the_schema_too(
    quantization: str,
    load: Callable[..., LocalCaptioner],
    slices: list[SliceRecord],
    paths: list[Path],
    tmp_path: Path,
) -> None:
    # 64 weights share a scale, and bitsandbytes wants no row shorter than that
    write_random(tmp_path / "wide", "llava", Size(32, 8, 16, 64, 1, 64, 1, 2, 16))
    captioner = load("llava", quantization=quantization, model=str(tmp_path / "wide"))
    kind = "Linear4bit" if quantization == "4bit" else "Linear8bitLt"
    packed = [name for name, part in captioner.model.named_modules() if type(part).__name__ == kind]
    assert packed and all("language_model" in name for name in packed)  # images are seen whole
    (text,) = captioner.describe(slices[:1], paths[:1])
    assert isinstance(text, str) and read_answer(text).fits


def test_half_precision_is_used_where_asked(load: Callable[..., LocalCaptioner]) -> None:
    assert next(load("gemma3", dtype="bfloat16").model.parameters()).dtype is torch.bfloat16


def test_the_stage_hands_on_device_and_dtype(checkpoints: Path, tmp_path: Path) -> None:
    plugin = find("llava")
    model = tiny(plugin, checkpoints).model
    context = Context("test", 0, "cpu", "bfloat16", 1, tmp_path, print)
    vlm = PluginConfig(name="llava", settings={"model": model})
    settings = asking.read_settings(plugin, vlm, context)
    captioner = plugin.load(settings)
    assert next(captioner.model.parameters()).dtype is torch.bfloat16
    assert captioner.model.device.type == "cpu"


def test_scores_that_are_no_numbers_end_the_run(
    load: Callable[..., LocalCaptioner], slices: list[SliceRecord], paths: list[Path]
) -> None:
    for broken in (float("nan"), float("inf")):
        captioner = load("gemma3")
        with torch.no_grad():
            captioner.model.get_output_embeddings().weight.fill_(broken)
        with pytest.raises(ValueRangeError, match=r"computes no numbers .* in float32, so its"):
            captioner.describe(slices[:1], paths[:1])


def test_a_batch_that_does_not_fit_is_halved(
    load: Callable[..., LocalCaptioner],
    slices: list[SliceRecord],
    paths: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    captioner = load("llava", batch_size=4, constrain=False, retries=0, max_new_tokens=8)
    whole = captioner.describe(slices, paths)
    original, tried = GenerationMixin.generate, []
    room = 2

    def generate(self: Any, **inputs: Any) -> Any:
        tried.append(len(inputs["input_ids"]))
        if tried[-1] > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.")
        return original(self, **inputs)

    monkeypatch.setattr(GenerationMixin, "generate", generate)
    assert captioner.describe(slices, paths) == whole
    assert tried == [4, 2, 2, 1]
    assert captioner.batch_size == 2  # it need not be found out again
    room = 0
    with pytest.raises(PipelineError, match=r"one slice \(CUDA out of memory\. Tried"):
        captioner.describe(slices, paths)


def test_arguments_of_the_processor_are_settings(
    load: Callable[..., LocalCaptioner], slices: list[SliceRecord], paths: list[Path]
) -> None:
    def count_tokens(**processor: Any) -> int:
        captioner = load("ovis2", processor=processor)
        image = Image.new("RGB", (64, 64))
        inputs = captioner.processor(
            text=[captioner._word(slices[0])], images=[[image]], return_tensors="pt"
        )
        return int(inputs["input_ids"].shape[1])

    cut = {"crop_to_patches": True, "min_patches": 2}
    assert count_tokens(**cut) > 3 * count_tokens()
    with pytest.raises(MissingWeightsError, match="Ovis2Processor has no argument 'crop_patches'"):
        load("ovis2", processor={"crop_patches": False})


def test_greedy_decoding_whatever_the_checkpoint_prefers(checkpoints: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sampling"
    shutil.copytree(checkpoints / "random_llava", folder)
    path = folder / "generation_config.json"
    wishes = json.loads(path.read_text()) | {"do_sample": True, "temperature": 2.0, "top_k": 3}
    path.write_text(json.dumps(wishes))
    plugin = find("llava")
    made = plugin.load(plugin.Settings(model=str(folder), device_map="cpu"))
    assert not made.model.generation_config.do_sample
    assert made.model.generation_config.top_k is None
