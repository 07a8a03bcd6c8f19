"""Every plug-in file exposes what STYLE's table says; a new one is tested on arrival."""

import inspect
from pathlib import Path
from types import ModuleType

import pytest

from pipeline import registry
from pipeline.contracts import Section
from tests.fabricate import vlms

EXPOSED = {
    registry.SOURCES: ("Settings", "iter_scans", "tiny"),
    registry.VLMS: ("Settings", "load"),
    registry.BASE_MODELS: ("Settings", "load", "load_pipeline", "read_networks"),
    registry.REFINERS: ("Settings", "check", "input_digest", "load_pipeline"),
    registry.GUIDANCE: ("Settings", "check", "input_digest", "load"),
    registry.WITHHOLDING: ("Settings", "check", "build"),
    registry.FEATURES: ("Settings", "load"),
    registry.METRICS: ("SPEC",),  # and what its kind of metric does, see below
    registry.EXPLANATIONS: ("CITATION", "find_obstacle", "explain"),
    registry.JUDGES: ("Settings", "CHECKED_ON", "refuse", "obtain"),
    registry.CLASSIFIERS: (),  # `build` (a network) or `fit` (a baseline), see below
}
PLUGINS = [(package, name) for package in EXPOSED for name in registry.available(package)]


@pytest.fixture(params=PLUGINS, ids=lambda plugin: f"{plugin[0].rpartition('.')[2]}/{plugin[1]}")
def plugin(request: pytest.FixtureRequest) -> tuple[str, ModuleType]:
    package, name = request.param
    return package, registry.find(package, name)


@pytest.mark.parametrize("package", EXPOSED)
def test_no_folder_is_empty(package: str) -> None:
    assert registry.available(package)


def test_table_covers_every_folder() -> None:
    assert set(EXPOSED) == set(registry.KINDS) == set(registry.FIELDS.values())


def test_exposes_what_its_kind_must(plugin: tuple[str, ModuleType]) -> None:
    package, module = plugin
    assert [name for name in EXPOSED[package] if not hasattr(module, name)] == []
    if package == registry.CLASSIFIERS:
        assert hasattr(module, "build") or hasattr(module, "fit")


def test_settings_are_frozen_and_refuse_unknown_keys(plugin: tuple[str, ModuleType]) -> None:
    _, module = plugin
    if hasattr(module, "Settings"):
        assert issubclass(module.Settings, Section)
        assert module.Settings.model_config["frozen"] is True
        assert module.Settings.model_config["extra"] == "forbid"


def test_says_what_it_is(plugin: tuple[str, ModuleType]) -> None:
    _, module = plugin
    assert inspect.getdoc(module)


def test_metric_states_direction_needs_and_source(plugin: tuple[str, ModuleType]) -> None:
    package, module = plugin
    if package != registry.METRICS:
        return
    assert isinstance(module.SPEC.key, str)
    assert isinstance(module.SPEC.higher_is_better, bool)
    assert module.SPEC.least_n >= 2
    assert len(module.SPEC.citation) > 10
    if module.SPEC.kind == "sample":
        assert callable(module.describe) and callable(module.chance)
        return
    parameters = inspect.signature(module.resample).parameters
    for name in ("real", "synthetic", "paired"):
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY


def test_tiny_settings_pass_their_own_check(plugin: tuple[str, ModuleType], tmp_path: Path) -> None:
    package, module = plugin
    if package == registry.VLMS:
        settings = vlms.tiny(module, tmp_path)
    elif package == registry.SOURCES:
        settings = module.tiny(tmp_path)
    else:
        return  # random weights of base models are made in tests/fabricate, tested elsewhere
    assert isinstance(settings, module.Settings)
    if hasattr(module, "check"):
        assert module.check(settings) == []


def test_missing_input_files_are_named_by_check(tmp_path: Path) -> None:
    """Every plug-in that reads a file of the user's names it, with a remedy, before a run."""
    gone = str(tmp_path / "gone")
    cases = [
        (registry.SOURCES, "image_folder", {"root": gone}),
        (registry.VLMS, "precomputed", {"path": gone}),
        (registry.VLMS, "ovis2", {"model": gone}),
        (registry.VLMS, "gemma3", {"model": gone}),
        (registry.VLMS, "llava", {"model": gone}),
        (registry.GUIDANCE, "location", {"judge": gone}),
        (registry.WITHHOLDING, "nearest_slice", {"weights": gone}),
        (registry.FEATURES, "vgg16", {"weights": gone}),
        (registry.FEATURES, "inception", {"weights": gone}),
        (registry.FEATURES, "dinov2", {"model": gone}),
        (registry.FEATURES, "clip", {"model": gone}),
        (registry.CLASSIFIERS, "efficientnet_lite0", {"weights": gone}),
        (registry.BASE_MODELS, "sd15", {"model": gone}),
        (registry.BASE_MODELS, "sdxl", {"model": gone}),
        (registry.BASE_MODELS, "tiny_sd15", {"model": gone}),
        (registry.BASE_MODELS, "tiny_sdxl", {"model": gone}),
    ]
    for package, name, values in cases:
        module = registry.find(package, name)
        lines = module.check(module.Settings.model_validate(values))
        assert any(gone in line for line in lines), (name, lines)
