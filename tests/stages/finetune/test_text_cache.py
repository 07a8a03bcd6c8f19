from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from pipeline import registry
from stages.components.diffusion.base_model import BaseModel, encode_prompts
from stages.finetune import encodings
from stages.finetune.encodings import cache_texts
from tests.fabricate.pipelines import tiny_settings

ONE = torch.ones(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    plugin = registry.find(registry.BASE_MODELS, "sdxl")
    settings = tiny_settings(plugin, tmp_path_factory.mktemp("weights"))
    loaded: BaseModel = plugin.load(settings, dtype=torch.float32, device="cpu")
    return loaded


def test_texts_are_encoded_once_whatever_stands_beside_them(
    base: BaseModel, tmp_path: Path
) -> None:
    first = cache_texts(base, ["tumor: yes", "", "tumor: no", "tumor: yes"], tmp_path)
    assert len(first.index) == 3
    expected = encode_prompts(base, ["tumor: yes"])
    found = first.look_up(["tumor: yes"], torch.device("cpu"))
    assert torch.equal(found.prompt_embeds, expected.prompt_embeds)
    assert torch.equal(found.pooled, expected.pooled)

    for entry in tmp_path.rglob("*.safetensors"):  # who reads the entries sees it
        tensors = load_file(entry)
        save_file(tensors | {"prompt_embeds": tensors["prompt_embeds"] + 1}, entry)
    again = cache_texts(base, ["tumor: no"], tmp_path)
    assert torch.equal(again.prompt_embeds[0], first.prompt_embeds[first.index["tumor: no"]] + 1)
    anew = cache_texts(base, ["another"], tmp_path)
    assert torch.equal(anew.prompt_embeds, encode_prompts(base, ["another"]).prompt_embeds)
    assert not list(tmp_path.rglob("*.partial"))


def test_key_follows_weights_dtype_and_the_empty_text(base: BaseModel) -> None:
    key = encodings.encoders_digest(base)
    assert encodings.encoders_digest(base) == key
    assert encodings.encoders_digest(replace(base, zeros_for_empty=not base.zeros_for_empty)) != key
    assert encodings.token_digest(base, "") != encodings.token_digest(base, "tumor")


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda c: c[: len(c) // 2],
        lambda c: b"x" * len(c),
        lambda _: save({"a": ONE}),
    ],
    ids=["empty", "half", "garbage", "foreign"],
)
def test_a_damaged_entry_is_encoded_again(
    base: BaseModel,
    tmp_path: Path,
    damage: Callable[[bytes], bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = cache_texts(base, ["tumor: yes"], tmp_path)
    (path,) = tmp_path.rglob("*.safetensors")
    content = path.read_bytes()
    path.write_bytes(damage(content))
    again = cache_texts(base, ["tumor: yes"], tmp_path)
    assert torch.equal(again.prompt_embeds, first.prompt_embeds)
    assert torch.equal(again.pooled, first.pooled)
    assert path.read_bytes() == content
    cache_texts(base, ["tumor: yes"], tmp_path)
    (said,) = caplog.messages
    assert said.startswith(f"{path}: a damaged entry of a cache")
