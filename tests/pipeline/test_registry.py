from pathlib import Path

import pytest

from pipeline import registry
from pipeline.contracts import PluginConfig, read_parts
from pipeline.errors import UnknownPluginError
from pipeline.settings import EvaluateConfig


def test_files_are_the_list_and_private_ones_are_not(parts: Path) -> None:
    assert registry.available(registry.CLASSIFIERS) == [
        "always_tumor",
        "intensity_only",
        "metadata_only",
        "vit",
    ]


def test_find_imports_by_file_name(parts: Path) -> None:
    assert registry.find(registry.VLMS, "model").Settings().temperature == 0.0


def test_unknown_plugin_lists_those_that_exist(parts: Path) -> None:
    with pytest.raises(
        UnknownPluginError, match=r"no VLM named 'modle'; did you mean 'model'\? available: model, "
    ):
        registry.find(registry.VLMS, "modle")


def test_unknown_package() -> None:
    with pytest.raises(UnknownPluginError, match=r"no folder of plug-ins named 'stages\.nowhere'"):
        registry.available("stages.nowhere")


def test_plugins_of_a_section_are_listed_with_their_folders(parts: Path) -> None:
    section = EvaluateConfig(metrics=("kid",), base_models={"b": PluginConfig(name="tiny_b")})
    found = registry.plugins_of("evaluate", section)
    assert [(package.rpartition(".")[2], plugin.name) for package, plugin in found] == [
        ("extractors", "efficientnet_lite0"),
        ("metrics", "kid"),
        ("base_models", "tiny_b"),
        ("judges", "embedded"),
    ]


def test_a_manifest_says_what_the_plugins_of_a_stage_are() -> None:
    section = EvaluateConfig(base_models={"b": PluginConfig(name="tiny_sd15")})
    parts = registry.list_parts("evaluate", section)
    assert [part["licence"]["part"] for part in parts["features"]] == ["EfficientNet-Lite0"]
    assert [part.name for part in read_parts({"parts": parts}, "base_models")] == ["tiny_sd15"]
    assert "metrics" not in parts  # they have no terms
    assert read_parts({}, "base_models") == []
