import json
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from pipeline.contracts import PluginConfig
from pipeline.errors import UnknownPluginError
from stages.components.diffusion.tokens import load_tokenizers, token_counter


@pytest.fixture
def tokenizer(tmp_path: Path) -> CLIPTokenizer:
    """Two merges, so that "tumor</w>" is one token and everything else is bytes."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    merges = [("t", "u"), ("tu", "m"), ("tum", "o"), ("tumo", "r</w>")]
    tokens += ["".join(pair) for pair in merges] + ["<|startoftext|>", "<|endoftext|>"]
    built = CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    built.save_pretrained(tmp_path / "tokenizer")
    return CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")


def test_begin_and_end_count(tokenizer: CLIPTokenizer) -> None:
    count = token_counter([tokenizer])
    assert count("") == 2
    assert count("tumor") == 3
    assert count("tumor abc") == 6


def test_long_texts_are_counted_whole_and_quietly(
    tokenizer: CLIPTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    assert token_counter([tokenizer])("tumor " * 200) == 202
    assert not caplog.records


def test_the_tokenizer_that_needs_most_counts(tokenizer: CLIPTokenizer) -> None:
    def wordy(text: str, **_: bool) -> dict[str, list[int]]:
        return {"input_ids": [0] * 9}

    assert token_counter([tokenizer, wordy])("tumor") == 9


def test_unknown_base_models_are_named() -> None:
    with pytest.raises(UnknownPluginError, match="sd99"):
        load_tokenizers(PluginConfig(name="sd99"))


@pytest.mark.parametrize(("name", "number"), [("tiny_sd15", 1), ("tiny_sdxl", 2)])
def test_tokenizers_come_from_the_base_model(
    name: str, number: int, tokenizer: CLIPTokenizer, tmp_path: Path
) -> None:
    for part in ("tokenizer", "tokenizer_2"):
        tokenizer.save_pretrained(tmp_path / part)
    (tmp_path / "model_index.json").write_text(json.dumps({}), encoding="utf-8")
    plugin = PluginConfig(name=name, settings={"model": str(tmp_path)})
    assert len(load_tokenizers(plugin)) == number
