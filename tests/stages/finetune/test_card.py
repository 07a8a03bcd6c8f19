from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from stages.components.networks.weights import Family
from stages.finetune.card import CardFacts, render_card, write_card


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
        "must not be used for diagnosis, treatment",
        "It can repeat what it has seen.",
    ):
        assert words in text
    header = yaml.safe_load(text.split("---")[1])
    assert header["base_model"] == "someone/some-model"
    assert "lora" in header["tags"]


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_card_of_a_textual_inversion_says_how_to_load_and_to_ask(family: Family) -> None:
    text = render_card(replace(facts(False), placeholder="<scan>", family=family))
    assert "# Textual inversion for synthetic" in text
    assert "`<scan> tumor: yes; ...`" in text
    assert "load_lora" not in text
    code = text.split("```")[1].removeprefix("python\n")
    compile(code, "card", "exec")
    assert code.count("load_textual_inversion(") == (1 if family == "sd" else 2)


def test_a_folder_of_this_machine_is_no_base_model_of_the_hub_s() -> None:
    text = render_card(replace(facts(), base_model="data/embedded/tiny_sdxl"))
    assert "base_model" not in yaml.safe_load(text.split("---")[1])
    assert "Base model: `data/embedded/tiny_sdxl`" in text


def test_card_names_no_file_that_is_not_there() -> None:
    assert "kohya" not in render_card(facts(has_kohya=False))
