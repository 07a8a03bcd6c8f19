from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from pipeline.errors import TrainingError
from stages.components.diffusion.placeholder import Placeholder, add_to, expand
from stages.components.diffusion.tokens import MAX_TOKENS, token_counter
from tests.fabricate.pipelines import build_tokenizer

LONG = "tumor: yes; location: left frontal lobe; general description: " + "bright mri, " * 40


@pytest.fixture
def tokenizer(tmp_path: Path) -> CLIPTokenizer:
    return build_tokenizer(tmp_path / "tokenizer", "!")


@pytest.mark.parametrize("num_vectors", [1, 16])
def test_opened_captions_fit_and_lose_their_last_words_only(
    tokenizer: CLIPTokenizer, num_vectors: int
) -> None:
    word, count = Placeholder("<scan>", num_vectors), token_counter([tokenizer])
    opened = word.open(LONG, count)
    assert opened.startswith("<scan> tumor: yes; location: left frontal lobe;")
    assert LONG.startswith(opened.removeprefix("<scan> "))
    assert opened[-1] not in ",; "
    assert MAX_TOKENS - 7 <= word.counter(count)(opened) <= MAX_TOKENS
    assert word.counter(count)("tumor: yes") == count("tumor: yes")
    assert word.open("tumor: no;", count) == "<scan> tumor: no;"  # nothing is cut from what fits


def test_count_is_that_of_the_tokens_that_a_pipeline_reads(tokenizer: CLIPTokenizer) -> None:
    word = Placeholder("<scan>", 3)
    count = word.counter(token_counter([tokenizer]))
    expected = count("<scan> tumor: yes")
    add_to([tokenizer], word)
    text = expand(tokenizer, "<scan> tumor: yes")
    assert text == "<scan> <scan>_1 <scan>_2 tumor: yes"
    ids = tokenizer(text).input_ids
    assert len(ids) == expected
    assert ids[1:4] == tokenizer.convert_tokens_to_ids(word.tokens)
    assert expand(tokenizer, "tumor: <scan>") == "tumor: <scan>"


def test_one_vector_is_written_as_it_stands(tokenizer: CLIPTokenizer) -> None:
    add_to([tokenizer], Placeholder("<scan>", 1))
    assert expand(tokenizer, "<scan> tumor") == "<scan> tumor"


def test_a_known_word_is_refused_and_nothing_is_added(tokenizer: CLIPTokenizer) -> None:
    size = len(tokenizer)
    with pytest.raises(TrainingError, match=r"knows 'tumor</w>' already; choose another"):
        add_to([tokenizer], Placeholder("tumor</w>", 2))
    assert len(tokenizer) == size
