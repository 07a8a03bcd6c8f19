"""The tiny tokenizer: the same at every call, whole words of the captions, every byte."""

import json
from typing import Any

from stages.embedded.base_data import build_tokenizer
from stages.embedded.vocabulary import RADIOLOGY


def parts(tokenizer: Any) -> dict[str, Any]:
    model: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return {name: model[name] for name in ("vocab", "merges")}


def test_ids_and_merges_are_the_same_at_every_call() -> None:
    # A resumed training reads its embeddings by these ids.
    assert parts(build_tokenizer()) == parts(build_tokenizer())


def test_a_radiologists_word_is_one_token_and_any_text_has_some() -> None:
    tokenizer = build_tokenizer()
    for word in set(RADIOLOGY.split()):
        assert len(tokenizer(word).input_ids) == 3, word  # between start and end
    assert tokenizer.unk_token_id not in tokenizer("zyx \u00e9\u4e2d").input_ids[1:-1]
