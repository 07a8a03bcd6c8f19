"""Captioners under their own names: as what was really used."""

import pytest

from pipeline import registry
from pipeline.contracts import PluginConfig
from stages.components.captioning.names import read_captioner
from stages.components.networks.weights import EMBEDDED


@pytest.mark.parametrize(
    ("plugin", "settings", "name", "study"),
    [
        ("llava", {}, "tiny LLaVA (embedded)", None),
        ("llava", {"model": str(EMBEDDED / "llava")}, "tiny LLaVA (embedded)", None),
        (
            "llava",
            {"model": "chaoyinshe/llava-med-v1.5-mistral-7b-hf"},
            "llava-med-v1.5-mistral-7b-hf",
            "llava_med",
        ),
        ("llava", {"model": "llava-hf/llava-1.5-7b-hf"}, "llava-1.5-7b-hf", None),
        ("gemma3", {"model": "google/gemma-3-12b-it"}, "gemma-3-12b-it", "gemma"),
        ("gemma3", {"model": "google/medgemma-4b-it"}, "medgemma-4b-it", None),
        ("ovis2", {"model": "/weights/Ovis2-34B-hf"}, "Ovis2-34B-hf", "ovis"),
        ("openai_compatible", {"model": "google/gemma-3-12b-it"}, "gemma-3-12b-it", "gemma"),
        ("gemini", {"model": "gemini-x", "max_cost": None}, "gemini-x", "gemini"),
        ("precomputed", {"path": "x/ovis.jsonl"}, "ovis", "ovis"),
        ("precomputed", {"path": "x/mine.jsonl"}, "mine", None),
    ],
)
def test_names(plugin, settings, name, study):
    part = registry.identify(registry.VLMS, PluginConfig(name=plugin, settings=settings))
    assert (part.name, part.study) == (name, study)


def test_a_plugin_that_says_nothing_goes_by_its_name():
    assert registry.identify(registry.VLMS, PluginConfig(name="truth")) is None
    assert read_captioner({"config": {"vlm": {"name": "truth", "settings": {}}}}).name == "truth"
    assert read_captioner(None) is None
    assert read_captioner({"config": {}}) is None
