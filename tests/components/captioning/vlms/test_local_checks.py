"""What is said about a local VLM before it loads: weights, processors, settings, cache keys."""

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline import registry
from pipeline.contracts import SliceRecord
from pipeline.errors import MissingWeightsError
from stages.components.captioning.questions import PROMPT_VERSION
from tests.fabricate.vlms import tiny

HUB_ID = "google/medgemma-4b-it"
COMMIT = "0" * 40
TEMPLATE = "{% for m in messages %}<image>{% endfor %}<answer>"


def find(name: str) -> ModuleType:
    return registry.find(registry.VLMS, name)


def test_the_run_says_where_and_in_what_unless_the_settings_do(checkpoints: Path) -> None:
    plugin = find("llava")
    left_open = plugin.Settings(model="some/model")
    placed = plugin.for_run(left_open, device="cuda", dtype="bfloat16")
    assert (placed.device_map, placed.dtype) == ("auto", "bfloat16")
    for device in ("cpu", "cuda:1"):
        assert plugin.for_run(left_open, device=device, dtype="float32").device_map == device
    said = plugin.Settings(model="some/model", device_map="cuda:0", dtype="float32")
    assert plugin.for_run(said, device="cpu", dtype="bfloat16") == said


def test_gemma_overflows_in_float16_and_says_so(checkpoints: Path) -> None:
    plugin = find("gemma3")
    settings = tiny(plugin, checkpoints).model_copy(update={"dtype": "float16"})
    (line,) = plugin.check(settings)
    assert line.startswith("dtype: 'float16' cannot hold what gemma3 computes")
    with pytest.raises(MissingWeightsError, match="set bfloat16 or float32"):
        plugin.load(settings)


def test_a_conversion_without_a_patch_size_is_named_before_the_first_slice(
    checkpoints: Path, tmp_path: Path, slices: list[SliceRecord], paths: list[Path]
) -> None:
    folder = tmp_path / "converted"
    shutil.copytree(checkpoints / "random_llava", folder)
    path = folder / "processor_config.json"
    stated = json.loads(path.read_text())
    names = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")
    lost = {name: stated.pop(name) for name in names}
    path.write_text(json.dumps(stated))
    plugin = find("llava")
    settings = plugin.Settings(model=str(folder), device_map="cpu", max_new_tokens=2)
    (line,) = plugin.check(settings)
    assert "the processor has no patch_size, vision_feature_select_strategy, and would" in line
    advised = json.loads(line.rpartition("processor: ")[2])
    assert advised == lost
    mended = settings.model_copy(update={"processor": advised})
    assert plugin.check(mended) == []
    assert len(plugin.load(mended).describe(slices[:1], paths[:1])) == 1


def test_no_chat_template_is_named_with_its_remedy(checkpoints: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(checkpoints / "random_llava", folder)
    (folder / "chat_template.jinja").unlink()
    plugin = find("llava")
    with pytest.raises(MissingWeightsError, match=r"bare has no chat template; set caption"):
        plugin.load(plugin.Settings(model=str(folder)))
    assert plugin.load(plugin.Settings(model=str(folder), chat_template=TEMPLATE))


def test_gated_weights_of_the_hub_need_a_revision_and_say_how_to_get_them() -> None:
    plugin = find("gemma3")
    revision, missing = plugin.check(plugin.Settings(model=HUB_ID))
    assert revision.startswith(f"revision: '{HUB_ID}' needs one")
    assert f"weights '{HUB_ID}' are not on this machine" in missing
    (missing,) = plugin.check(plugin.Settings(model=HUB_ID, revision=COMMIT))
    assert f"hf download {HUB_ID} --revision {COMMIT}" in missing
    assert f"accept its terms at https://huggingface.co/{HUB_ID}" in missing
    with pytest.raises(MissingWeightsError, match=HUB_ID):
        plugin.load(plugin.Settings(model=HUB_ID, revision=COMMIT))


@pytest.mark.parametrize(
    ("name", "model_type", "advice"),
    [
        ("llava", "llava_mistral", "chaoyinshe/llava-med-v1.5-mistral-7b-hf"),
        ("ovis2", "ovis", "thisisiron/Ovis2-1B-hf"),
        ("gemma3", "gemma3_text", "reads no images"),
        ("gemma3", "llava", "Take the plug-in of that type"),
    ],
)
def test_weights_of_another_class_are_named_with_what_to_take(
    name: str, model_type: str, advice: str, checkpoints: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(checkpoints / f"random_{name}", folder)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    plugin = find(name)
    (line,) = plugin.check(plugin.Settings(model=str(folder)))
    assert f"names the model type '{model_type}'" in line and advice in line


def test_what_a_folder_lacks_is_listed(checkpoints: Path, tmp_path: Path) -> None:
    folder = tmp_path / "torn"
    shutil.copytree(checkpoints / "random_ovis2", folder)
    (folder / "model.safetensors").write_bytes(b"torn")
    (folder / "tokenizer.json").unlink()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}})
    )
    plugin = find("ovis2")
    (line,) = plugin.check(plugin.Settings(model=str(folder)))
    for name in ("model.safetensors (damaged)", "00001-of-00002", "tokenizer.json or tokenizer"):
        assert name in line


def test_xgrammar_is_asked_for_only_where_it_is_used(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = find("llava")
    settings = tiny(plugin, checkpoints)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (line,) = plugin.check(settings)
    assert "pip install 'mrisynth[vlm]', or set constrain: false" in line
    assert plugin.check(settings.model_copy(update={"constrain": False})) == []


def test_the_cache_knows_a_caption_by_weights_prompt_and_decoding(
    checkpoints: Path, slices: list[SliceRecord]
) -> None:
    plugin = find("gemma3")
    settings = tiny(plugin, checkpoints)

    def identity(item: SliceRecord = slices[0], **changed: Any) -> Any:
        return plugin.cache_identity(settings.model_copy(update=changed), item)

    assert identity() == identity(slices[1]) == identity(batch_size=3, device_map="auto")
    assert identity().revision == plugin.input_digest(settings)
    assert identity() != identity(dtype="bfloat16")
    assert identity() != identity(retries=0)
    assert identity() != identity(processor={"do_resize": False})
    assert identity().decoding["prompt_version"] == PROMPT_VERSION
    assert identity(prompt="poster") != identity(slices[1], prompt="poster")
    json.dumps(identity().decoding)
