"""Plug-ins by file name: the folder is the list, and nothing is imported before it is asked for."""

import difflib
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.contracts import Part, PluginConfig, Section
from pipeline.errors import UnknownPluginError

SOURCES = "stages.preprocess.sources"
VLMS = "stages.components.captioning.vlms"
BASE_MODELS = "stages.components.diffusion.base_models"
REFINERS = "stages.generate.refiners"
GUIDANCE = "stages.generate.guidance"
WITHHOLDING = "stages.generate.withholding"
FEATURES = "stages.components.features.extractors"
METRICS = "stages.evaluate.metrics"
CLASSIFIERS = "stages.classify.classifiers"
EXPLANATIONS = "stages.classify.explanations"
JUDGES = "stages.evaluate.judges"

KINDS = {
    SOURCES: "data source",
    VLMS: "VLM",
    BASE_MODELS: "base model",
    REFINERS: "refiner",
    GUIDANCE: "guidance",
    WITHHOLDING: "rule for copies",
    FEATURES: "feature extractor",
    METRICS: "metric",
    CLASSIFIERS: "classifier",
    EXPLANATIONS: "explanation",
    JUDGES: "judge",
}

# Where a configuration names plug-ins: (section, field) -> the folder they lie in.
FIELDS = {
    ("preprocess", "source"): SOURCES,
    ("caption", "vlm"): VLMS,
    ("caption", "tokenizer"): BASE_MODELS,
    ("finetune", "base_model"): BASE_MODELS,
    ("generate", "base_model"): BASE_MODELS,
    ("generate", "refiner"): REFINERS,
    ("generate", "guidance"): GUIDANCE,
    ("generate", "withhold_copies"): WITHHOLDING,
    ("evaluate", "features"): FEATURES,
    ("evaluate", "metrics"): METRICS,
    ("evaluate", "base_models"): BASE_MODELS,
    ("evaluate", "judge"): JUDGES,
    ("evaluate", "recaption"): VLMS,
    ("classify", "model"): CLASSIFIERS,
    ("classify", "references"): CLASSIFIERS,
    ("classify", "baselines"): CLASSIFIERS,
    ("classify", "explain"): EXPLANATIONS,
}


def folders(package: str) -> list[Path]:
    """Return the folders of a plug-in package: its own, and what was put on its path."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UnknownPluginError(f"no folder of plug-ins named {package!r}")
    return [Path(place) for place in spec.submodule_search_locations]


def available(package: str) -> list[str]:
    """List the plug-ins of a package by file name; imports none of them."""
    files = (path for folder in folders(package) for path in folder.glob("*.py"))
    return sorted({path.stem for path in files if not path.name.startswith("_")})


def unknown(package: str, name: str) -> str:
    """Say that a plug-in does not exist, which do, and which one may have been meant."""
    names = available(package)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" did you mean {close[0]!r}?" if close else ""
    return (
        f"no {KINDS.get(package, 'plug-in')} named {name!r};{hint} available: {', '.join(names)}. "
        f"Names are the files in {package.replace('.', '/')}/."
    )


def find(package: str, name: str) -> ModuleType:
    """Import a plug-in by its file name.

    Raises:
        UnknownPluginError: There is no such file; lists those that exist.
    """
    if name not in available(package):
        raise UnknownPluginError(unknown(package, name))
    return importlib.import_module(f"{package}.{name}")


def plugins_of(section: str, config: Section) -> list[tuple[str, PluginConfig]]:
    """List (package, plug-in) for every plug-in that a section of the configuration names."""
    plugins: list[tuple[str, PluginConfig]] = []
    for (owner, name), package in FIELDS.items():
        if owner == section:
            plugins.extend((package, plugin) for plugin in as_plugins(getattr(config, name)))
    return plugins


def identify(package: str, plugin: PluginConfig) -> Part | None:
    """Ask a plug-in what it is: its `identify(settings)`, else its `LICENCE`, if it has either."""
    module = find(package, plugin.name)
    if hasattr(module, "identify"):
        settings = module.Settings.model_validate(plugin.settings)
        return Part.model_validate(module.identify(settings))
    if hasattr(module, "LICENCE"):
        return Part(name=plugin.name, licence=module.LICENCE)
    return None


def list_parts(section: str, config: Section) -> dict[str, list[dict[str, Any]]]:
    """List what the plug-ins of a section are, by its fields, as JSON values for a manifest."""
    by_field: dict[str, list[dict[str, Any]]] = {}
    for (owner, name), package in FIELDS.items():
        if owner == section:
            parts = (identify(package, it) for it in as_plugins(getattr(config, name)))
            rows = [part.model_dump(mode="json") for part in parts if part is not None]
            by_field |= {name: rows} if rows else {}
    return by_field


def as_plugins(value: object) -> list[PluginConfig]:
    """Flatten a field's value (plug-in, name, None, or several of them) into plug-ins."""
    if value is None:
        return []
    if isinstance(value, PluginConfig):
        return [value]
    if isinstance(value, str):
        return [PluginConfig(name=value)]
    if isinstance(value, dict):
        return [plugin for item in value.values() for plugin in as_plugins(item)]
    assert isinstance(value, list | tuple), value
    return [plugin for item in value for plugin in as_plugins(item)]
