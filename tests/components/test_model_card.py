from pathlib import Path

import yaml

from stages.components.model_card import LIMITS, CardFacts, render_card, write_card


def facts(has_kohya: bool = True) -> CardFacts:
    return CardFacts(
        base_model="someone/some-model",
        base_description="A model; its licence.",
        family="sdxl",
        data={"training slices": 12, "sources": "phantom 12"},
        settings={"lora_rank": 8},
        scores={"held-out loss": "0.12345"},
        captions=["tumor: yes; size: large"],
        has_kohya=has_kohya,
    )


def test_card_states_data_settings_scores_and_limits(tmp_path: Path) -> None:
    write_card(tmp_path, facts())
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    for words in (
        "Base model: `someone/some-model`. A model; its licence.",
        "- training slices: 12",
        "- lora_rank: 8",
        "- held-out loss: 0.12345",
        "“tumor: yes; size: large”",
        "StableDiffusionXLPipeline.from_pretrained",
        "kohya/lora.safetensors",
        *LIMITS,
    ):
        assert words in text
    header = yaml.safe_load(text.split("---")[1])
    assert header["base_model"] == "someone/some-model"
    assert "lora" in header["tags"]


def test_card_names_no_file_that_is_not_there() -> None:
    assert "kohya" not in render_card(facts(has_kohya=False))
