"""Configuration: YAML, then `--set`, then arms; one frozen `RunConfig`, or every fault at once.

Layout of a file: `experiment, seed, device, dtype, base_model, preprocess, caption, finetune,
generate, evaluate, classify, report, arms`; an arm is a name and overrides of `base_model, caption,
finetune, generate`. Overrides merge deeply, except that a plug-in of another name takes none of the
settings of the one it replaces. A plug-in without settings may be written as its name alone
(`vlm: truth`).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from pipeline import registry
from pipeline.contracts import PluginConfig, Section
from pipeline.errors import ConfigError
from pipeline.run import faults, yaml_text
from pipeline.settings import (
    ArmConfig,
    CaptionConfig,
    ClassifyConfig,
    EvaluateConfig,
    FinetuneConfig,
    GenerateConfig,
    PreprocessConfig,
    ReportConfig,
    RunConfig,
)

SHARED: dict[str, type[Section]] = {
    "preprocess": PreprocessConfig,
    "evaluate": EvaluateConfig,
    "classify": ClassifyConfig,
    "report": ReportConfig,
}
PER_ARM: dict[str, type[Section]] = {
    "caption": CaptionConfig,
    "finetune": FinetuneConfig,
    "generate": GenerateConfig,
}
SCALARS = ("experiment", "seed", "device", "dtype")
SectionT = TypeVar("SectionT", bound=Section)
Raw = dict[str, Any]


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read an experiment and check all of it, plug-in settings included.

    Args:
        path: The YAML file. `${oc.env:NAME,default}` and references to other keys are resolved.
        overrides: `stage.key=value` (every arm, stronger than the arm's own) or
            `arms.NAME.stage.key=value`; values are YAML.

    Raises:
        ConfigError: Lists every fault that was found, with its place.
    """
    return build(yaml_text.read(path), overrides, where=str(path))


def build(raw: Raw, overrides: Sequence[str] = (), *, where: str) -> RunConfig:
    """Build the configuration from a mapping of the YAML layout; see `load`."""
    collected = _Faults(where)
    raw = yaml_text.with_text_keys(raw, "", collected.add)
    arms = _arms(raw, collected)
    _set_all(raw, arms, overrides, collected)
    _fill_cross_tests(raw)
    known = {*SCALARS, "base_model", "arms", *SHARED, *PER_ARM}
    for key in raw.keys() - known:
        collected.add(f"{key}: {faults.unknown_key(key, known)}")

    sections = {name: _section(raw, name, model, collected) for name, model in SHARED.items()}
    if isinstance(sections["classify"], ClassifyConfig):
        sections["classify"] = _check_cross_tests(sections["classify"], collected)
    read = [_arm(raw, arm, sections["preprocess"], collected) for arm in arms]
    built = [arm for arm in read if arm is not None]
    evaluate = sections["evaluate"]
    if isinstance(evaluate, EvaluateConfig):
        bases = {name: arm.base_model for name, arm in base_arms(built).items()}
        if evaluate.base_models and evaluate.base_models != bases:
            collected.add("evaluate.base_models: filled from the arms; leave it out")
        sections["evaluate"] = evaluate.model_copy(update={"base_models": bases})
        classify, preprocess = sections["classify"], sections["preprocess"]
        if isinstance(classify, ClassifyConfig) and isinstance(preprocess, PreprocessConfig):
            collected.extend(faults.shared_faults(preprocess, evaluate, classify))
            collected.extend(faults.ratio_faults(classify, [str(arm["name"]) for arm in arms]))
    collected.extend(_scalar_faults(raw))
    collected.raise_any()
    scalars = {key: raw[key] for key in SCALARS if key in raw}
    return RunConfig.model_validate({**scalars, **sections, "arms": tuple(built)})


def base_arms(arms: Sequence[ArmConfig]) -> dict[str, ArmConfig]:
    """Name each distinct base model and give the first arm that uses it.

    The name is the plug-in's; a second one of the same plug-in with other settings gets a number.
    """
    named: dict[str, ArmConfig] = {}
    for arm in arms:
        if any(arm.base_model == other.base_model for other in named.values()):
            continue
        same = sum(arm.base_model.name == other.base_model.name for other in named.values())
        named[f"{arm.base_model.name}_{same + 1}" if same else arm.base_model.name] = arm
    return named


def dump(config: RunConfig) -> str:
    """Write a configuration as YAML that `load` reads back as the same configuration."""
    data = config.model_dump(mode="json")
    for arm in data["arms"]:
        del arm["preprocess"]
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


class _Faults:
    """Collects faults, each once."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.lines: dict[str, None] = {}

    def add(self, line: str) -> None:
        self.lines[line] = None

    def extend(self, lines: Iterator[str] | Sequence[str]) -> None:
        for line in lines:
            self.add(line)

    def raise_any(self) -> None:
        if self.lines:
            raise ConfigError(self.where, list(self.lines))


def _fill_cross_tests(raw: Raw) -> None:
    """Take what the section of a cross-test leaves out from the experiment's own `preprocess`."""
    classify, base = raw.get("classify"), _expand("preprocess", raw.get("preprocess") or {})
    if isinstance(classify, dict) and isinstance(classify.get("cross_test"), dict):
        filled = {
            name: _merge(base, _expand("preprocess", section))
            for name, section in classify["cross_test"].items()
        }
        raw["classify"] = {**classify, "cross_test": filled}


def _arms(raw: Raw, collected: _Faults) -> list[Raw]:
    """List the arms' overrides; an experiment without arms has one, "main"."""
    arms = raw.get("arms") or [{"name": "main"}]
    if not isinstance(arms, list) or not all(isinstance(arm, dict) for arm in arms):
        collected.add(f"arms: expected a list of mappings, found {arms!r}")
        return []
    known = {"name", "base_model", *PER_ARM}
    seen: set[str] = set()
    for number, arm in enumerate(arms):
        name = arm.get("name")
        if fault := faults.arm_name_fault(name, seen):
            collected.add(f"arms.{number}.name: {fault}")
        seen.add(str(name))
        for key in arm.keys() - known:
            collected.add(f"arms.{name}.{key}: {faults.unknown_key(key, known)}")
    return [dict(arm, name=str(arm.get("name"))) for arm in arms]


def _set_all(raw: Raw, arms: list[Raw], overrides: Sequence[str], collected: _Faults) -> None:
    """Apply `--set`, which is stronger than the file and than the arms in it."""
    for text in overrides:
        key, equals, value = text.partition("=")
        path = key.strip().split(".")
        if not equals or not all(path):
            collected.add(f"--set {text!r}: expected stage.key=value")
            continue
        try:
            resolved = yaml_text.resolve(f"value: {value}")
        except yaml_text.UNREADABLE as error:
            collected.add(f"--set {faults.shorten(text)}: {yaml_text.explain(error)}")
            continue
        parsed = yaml_text.with_text_keys(resolved, "--set", collected.add)
        if path[0] == "arms":
            chosen = [arm for arm in arms if len(path) > 2 and arm["name"] == path[1]]
            if not chosen:
                names = ", ".join(arm["name"] for arm in arms)
                collected.add(f"--set {text!r}: expected arms.NAME.stage.key; arms: {names}")
            targets, path = chosen, path[2:]
        else:  # an arm that says otherwise would win over the shared section
            targets = [raw, *(arm for arm in arms if faults.overridden(arm, path))]
        for target in targets:
            if not _put(target, path, parsed["value"]):
                collected.add(f"--set {text!r}: {'.'.join(path[:-1])} holds no named settings")


def _put(target: Raw, path: Sequence[str], value: Any) -> bool:
    """Set a nested key, making the mappings on the way; a bare plug-in name becomes a mapping."""
    for part in path[:-1]:
        inner = target.get(part)
        if inner is not None and not isinstance(inner, str | dict):
            return False
        target[part] = {"name": inner} if isinstance(inner, str) else dict(inner or {})
        target = target[part]
    if path[-1] == "name" and target.get("name") != value:
        target.pop("settings", None)  # they were the other plug-in's
    target[path[-1]] = value
    return True


def _section(
    raw: Raw, name: str, model: type[SectionT], collected: _Faults, arm: Raw | None = None
) -> SectionT | None:
    """Merge an arm's overrides over a section, then check it and its plug-ins."""
    merged = _expand(name, raw.get(name) or {})
    if arm and arm.get(name) is not None:
        merged = _merge(merged, _expand(name, arm[name]))

    def place(line: str) -> str:
        """Lay a fault at the arm's door where the arm's own words caused it."""
        is_own = arm is not None and faults.overridden(arm, line.split(": ")[0].split("."))
        return f"arms.{arm['name']}.{line}" if arm and is_own else line

    try:
        section = model.model_validate(merged)
    except ValidationError as error:
        collected.extend([place(line) for line in faults.describe(error, model, name)])
        return None
    updates: Raw = {}
    for (owner, field), package in registry.FIELDS.items():
        value = getattr(section, field) if owner == name else None
        if value is None or (name, field) == ("evaluate", "base_models"):
            continue
        where = f"{name}.{field}"
        if isinstance(value, PluginConfig):
            updates[field], lines = faults.plugin_faults(value, package, where)
        elif all(isinstance(item, PluginConfig) for item in value):
            checked = [
                faults.plugin_faults(item, package, f"{where}.{number}")
                for number, item in enumerate(value)
            ]
            updates[field] = tuple(plugin for plugin, _ in checked)
            lines = [line for _, per_plugin in checked for line in per_plugin]
        else:
            lines = faults.name_faults(value, package, where)
        collected.extend([place(line) for line in lines])
    return section.model_copy(update=updates)


def _check_cross_tests(classify: ClassifyConfig, collected: _Faults) -> ClassifyConfig:
    """Check the sources of cross-tests and fill in their settings."""
    checked = {}
    for name, section in classify.cross_test.items():
        source, lines = faults.plugin_faults(
            section.source,
            registry.FIELDS["preprocess", "source"],
            f"classify.cross_test.{name}.source",
        )
        collected.extend(lines)
        checked[name] = section.model_copy(update={"source": source})
    return classify.model_copy(update={"cross_test": checked})


def _arm(raw: Raw, arm: Raw, preprocess: Section | None, collected: _Faults) -> ArmConfig | None:
    """Resolve one arm: its sections, with the base model filled in where it is needed."""
    base = _base_model(raw, arm, collected)
    caption = _section(raw, "caption", CaptionConfig, collected, arm)
    finetune = _section(raw, "finetune", FinetuneConfig, collected, arm)
    generate = _section(raw, "generate", GenerateConfig, collected, arm)
    if base is None or caption is None or finetune is None or generate is None:
        return None
    for name, section in (("finetune", finetune), ("generate", generate)):
        if section.base_model not in (None, base):
            collected.add(
                f"arms.{arm['name']}.{name}.base_model: set base_model of the arm instead"
            )
    filled = {"base_model": base}
    caption = caption.model_copy(update={"tokenizer": caption.tokenizer or base})
    if not isinstance(preprocess, PreprocessConfig):
        return None
    built = ArmConfig(
        name=arm["name"],
        base_model=base,
        preprocess=preprocess,
        caption=caption,
        finetune=finetune.model_copy(update=filled),
        generate=generate.model_copy(
            update=filled | _as_captioned(caption, generate)  # prompts worded like captions
        ),
    )
    for line in faults.arm_faults(built):
        collected.add(f"arms.{arm['name']}.{line}" if line.split(".")[0] in arm else line)
    return built


def _as_captioned(caption: CaptionConfig, generate: GenerateConfig) -> Raw:
    """Return how the prompts are to be worded, where the config leaves it to the captions."""
    return {
        "prompt_style": generate.prompt_style or caption.style,
        "include_label": (
            caption.include_label if generate.include_label is None else generate.include_label
        ),
    }


def _base_model(raw: Raw, arm: Raw, collected: _Faults) -> PluginConfig | None:
    """Find an arm's base model: its own, merged over the shared one."""
    of_arm, shared = (_as_plugin(side.get("base_model")) for side in (arm, raw))
    place = f"arms.{arm['name']}.base_model" if of_arm else "base_model"
    merged = _merge({"base_model": shared or {}}, {"base_model": of_arm or {}})["base_model"]
    if not merged:
        collected.add(f"{place}: required, but not given")
        return None
    try:
        plugin = PluginConfig.model_validate(merged)
    except ValidationError as error:
        collected.extend(faults.describe(error, PluginConfig, place))
        return None
    plugin, lines = faults.plugin_faults(plugin, registry.BASE_MODELS, place)
    collected.extend(lines)
    return plugin


def _scalar_faults(raw: Raw) -> Iterator[str]:
    """Check the settings outside the sections."""
    fields = {key: raw[key] for key in SCALARS if key in raw}
    try:
        RunConfig.model_validate(fields)
    except ValidationError as error:
        for item in faults.describe(error, RunConfig, ""):
            if item.split(":")[0] in SCALARS:
                yield item
    device = raw.get("device", "cpu")
    if isinstance(device, str) and device not in {"cpu", "cuda"}:
        index = device.removeprefix("cuda:")
        if not device.startswith("cuda:") or not index.isdigit():
            yield f"device: expected 'cpu', 'cuda' or 'cuda:N', found {device!r}"


def _as_plugin(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _expand(section: str, raw: Any) -> Any:
    """Write bare plug-in names of a section as mappings."""
    if not isinstance(raw, dict):
        return raw
    plugin_fields = {
        field for owner, field in registry.FIELDS if owner == section and field not in NAME_LISTS
    }
    return {
        key: (
            [_as_plugin(item) for item in value] if isinstance(value, list) else _as_plugin(value)
        )
        if key in plugin_fields
        else value
        for key, value in raw.items()
    }


NAME_LISTS = ("metrics", "baselines", "explain")


def _merge(base: Any, override: Any) -> Any:
    """Merge mappings deeply; a plug-in of another name replaces the whole plug-in."""
    if not isinstance(base, Mapping) or not isinstance(override, Mapping):
        return override
    if "name" in base and "name" in override and base["name"] != override["name"]:
        return dict(override)
    merged = dict(base)
    for key, value in override.items():
        merged[key] = _merge(base[key], value) if key in base else value
    return merged
