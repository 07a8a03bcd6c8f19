"""Faults of a configuration, in a user's words and all at once."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipeline import registry
from pipeline.contracts import (
    ALL,
    CHANCE,
    NOISE,
    REAL,
    SPLITS,
    UNKNOWN,
    PluginConfig,
    Regime,
    Section,
)
from pipeline.settings import (
    ArmConfig,
    ClassifyConfig,
    EvaluateConfig,
    FinetuneConfig,
    GenerateConfig,
    InversionConfig,
    PreprocessConfig,
)

ARM_NAME = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}"
# Rows and groups of scores, and what stands beside arms while they are compared.
RESERVED = frozenset({REAL, NOISE, CHANCE, ALL, UNKNOWN, *SPLITS, *get_args(Regime)})


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Say that a key is unknown and suggest the nearest one, or list them."""
    names = sorted(known)
    close = difflib.get_close_matches(key, names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
    return f"unknown key; {hint}"


def describe(error: ValidationError, model: type[BaseModel], prefix: str) -> list[str]:
    """Turn pydantic's errors into one line each: place, what was expected, what was found."""
    return [
        f"{'.'.join([prefix, *map(str, item['loc'])]).strip('.')}: {_sentence(item, model)}"
        for item in error.errors(include_url=False)
    ]


def plugin_faults(plugin: PluginConfig, package: str, place: str) -> tuple[PluginConfig, list[str]]:
    """Check a plug-in's name and settings; return it with every default filled in.

    Settings are checked by the plug-in's own `Settings`; a plug-in without one takes none.
    """
    if plugin.name not in registry.available(package):
        return plugin, [f"{place}: {registry.unknown(package, plugin.name)}"]
    model: type[Section] | None = getattr(registry.find(package, plugin.name), "Settings", None)
    if model is None:
        taken = [f"{place}.settings.{key}: {plugin.name} takes none" for key in plugin.settings]
        return plugin, taken
    try:
        settings = model.model_validate(plugin.settings)
    except ValidationError as error:
        return plugin, describe(error, model, f"{place}.settings")
    return PluginConfig(name=plugin.name, settings=settings.model_dump(mode="json")), []


def name_faults(names: Sequence[str], package: str, place: str) -> list[str]:
    """Check a list of plug-in names."""
    known = registry.available(package)
    faults = [f"{place}: {registry.unknown(package, name)}" for name in names if name not in known]
    twice = sorted({name for name in names if names.count(name) > 1})
    return faults + [f"{place}: {name!r} stands twice" for name in twice]


def arm_name_fault(name: object, others: Iterable[str]) -> str | None:
    """Say why an arm cannot be called so; None if it can.

    Names of rows are no names of arms: an arm would take such a row's place among the scores.
    """
    if not isinstance(name, str) or not re.fullmatch(ARM_NAME, name):
        hint = "; put it in quotes" if isinstance(name, bool | int | float) else ""
        return (
            "expected letters, digits and '._+-', a letter or digit first, at most 64 in all, "
            f"found {shorten(name)}{hint}"
        )
    if name.casefold() in RESERVED:
        return f"{name!r} is kept for the scores' own rows"
    twin = next((other for other in others if other.casefold() == name.casefold()), None)
    return None if twin is None else f"{name!r} is another arm's name too"


def arm_faults(arm: ArmConfig) -> Iterator[str]:
    """Check one arm's fields against each other."""
    size, finetune, generate = arm.preprocess.image_size, arm.finetune, arm.generate
    for name, side in (
        ("finetune.resolution", finetune.resolution),
        ("generate.image_size", generate.image_size),
    ):
        if side != size:
            yield f"{name}: expected {size} as in preprocess.image_size, found {side}"
    if finetune.warmup_steps >= finetune.max_steps:
        yield (
            f"finetune.warmup_steps: expected fewer than max_steps ({finetune.max_steps}), "
            f"found {finetune.warmup_steps}"
        )
    if not finetune.train_text_encoder:
        for name in ("text_encoder_rank", "text_encoder_learning_rate"):
            if getattr(finetune, name) is not None:
                yield f"finetune.{name}: only with train_text_encoder: true"
    yield from _inversion_faults(finetune)
    yield from _optimizer_faults(finetune)
    if finetune.target_preset is not None and finetune.target_modules is not None:
        yield (
            f"finetune.target_preset: {finetune.target_preset!r} and target_modules "
            f"{list(finetune.target_modules)} exclude each other; leave one out"
        )
    if generate.num_images < len(generate.labels):
        yield (
            f"generate.num_images: expected at least one for each of the "
            f"{len(generate.labels)} labels, found {generate.num_images}"
        )
    if generate.batch_size != "auto" and generate.batch_size > generate.num_images:
        yield (
            f"generate.batch_size: expected at most num_images ({generate.num_images}), "
            f"found {generate.batch_size}"
        )
    yield from _refiner_faults(arm)
    yield from _counterfactual_faults(generate)
    for name in arm.caption.sources:
        package = registry.FIELDS["preprocess", "source"]
        if name not in registry.available(package):
            yield f"caption.sources.{name}: {registry.unknown(package, name)}"
    needed = {"train", "val"} | ({"test"} if generate.prompts_from == "test_captions" else set())
    for split in sorted(needed - set(arm.caption.splits)):
        stage = "generate.prompts_from test_captions" if split == "test" else "finetune"
        yield f"caption.splits: {split!r} is missing, which {stage} needs"


def _refiner_faults(arm: ArmConfig) -> Iterator[str]:
    """Refuse an SDXL refiner behind a base model that says it is of another family."""
    package, name = registry.BASE_MODELS, arm.base_model.name
    if arm.generate.refiner is None or name not in registry.available(package):
        return
    plugin = getattr(registry.find(package, name), "PLUGIN", None)
    if plugin is not None and plugin.family != "sdxl":
        yield (
            f"generate.refiner: expected none with base model {name!r}, since "
            f"refiners continue SDXL latents, found {arm.generate.refiner.name!r}"
        )


def _counterfactual_faults(generate: GenerateConfig) -> Iterator[str]:
    """Refuse swapped sides where no prompt could state one."""
    wanted = generate.counterfactuals
    if wanted and generate.prompts_from != "grid":
        yield (
            f"generate.counterfactuals: expected 0 with prompts_from {generate.prompts_from!r}, "
            f"since sides are swapped in the grid's prompts only, found {wanted}"
        )
    if wanted and generate.prompt_style == "label_only":
        yield (
            "generate.counterfactuals: expected 0 with prompt_style 'label_only', which states no "
            f"side, found {wanted}"
        )
    if wanted > generate.num_images:
        yield (
            f"generate.counterfactuals: expected at most num_images ({generate.num_images}), "
            f"found {wanted}"
        )


def _inversion_faults(finetune: FinetuneConfig) -> Iterator[str]:
    """Refuse settings of the method that is not chosen."""
    if not finetune.is_inversion:
        if finetune.inversion != InversionConfig():
            yield "finetune.inversion: only with method: textual_inversion"
        return
    if finetune.train_text_encoder:
        yield (
            "finetune.train_text_encoder: expected false with method textual_inversion, which "
            "freezes the text encoders but for the new words, found true"
        )
    if finetune.optimizer == "muon":
        yield (
            "finetune.optimizer: expected another than 'muon' with method textual_inversion, whose "
            "new words are no matrices that act on anything"
        )


def _optimizer_faults(finetune: FinetuneConfig) -> Iterator[str]:
    """Check the rate and its schedule against what the optimiser takes them for."""
    if finetune.optimizer == "schedule_free" and finetune.lr_schedule != "constant":
        yield (
            "finetune.lr_schedule: expected 'constant' with optimizer schedule_free, which "
            f"averages instead of decaying, found {finetune.lr_schedule!r}"
        )
    if finetune.optimizer == "muon" and finetune.adapter == "dora":
        yield (
            "finetune.adapter: expected 'lora' or 'rslora' with optimizer muon, which moves "
            "matrices and no magnitudes, found 'dora'"
        )
    if finetune.optimizer == "prodigy":
        name, rate = "learning_rate", finetune.learning_rate
        if finetune.is_inversion:
            name, rate = "inversion.learning_rate", finetune.inversion.learning_rate
        if not 0.1 <= rate <= 10:
            yield (
                f"finetune.{name}: expected 0.1 to 10 (usually 1) with optimizer prodigy, "
                f"which multiplies its own estimate by it, found {rate:g}"
            )
        if finetune.text_encoder_learning_rate not in (None, finetune.learning_rate):
            yield (
                "finetune.text_encoder_learning_rate: prodigy estimates one rate for all; leave "
                f"it out, found {finetune.text_encoder_learning_rate:g}"
            )


def shared_faults(
    preprocess: PreprocessConfig, evaluate: EvaluateConfig, classify: ClassifyConfig
) -> Iterator[str]:
    """Check the shared sections against each other."""
    if classify.image_size != preprocess.image_size:
        yield (
            f"classify.image_size: expected {preprocess.image_size} as in preprocess.image_size, "
            f"found {classify.image_size}"
        )
    if classify.warmup_steps >= classify.max_steps:
        yield (
            f"classify.warmup_steps: expected fewer than max_steps ({classify.max_steps}), "
            f"found {classify.warmup_steps}"
        )
    if classify.num_images is not None and classify.batch_size > classify.num_images:
        yield (
            f"classify.batch_size: expected at most num_images ({classify.num_images}), "
            f"found {classify.batch_size}"
        )
    yield from _classifier_faults(classify)
    yield from _test_faults(preprocess, classify)
    yield from _recaption_faults(evaluate)
    if not evaluate.features:
        yield "evaluate.features: expected at least one feature extractor, found none"
    if preprocess.val_fraction + preprocess.test_fraction >= 1:
        yield (
            "preprocess.val_fraction: expected val_fraction + test_fraction < 1, found "
            f"{preprocess.val_fraction + preprocess.test_fraction:g}"
        )


def ratio_faults(classify: ClassifyConfig, arms: Sequence[str]) -> Iterator[str]:
    """Check the curve in n against the arms that it is to be drawn for."""
    for name in classify.ratio_arms:
        if name not in arms:
            yield f"classify.ratio_arms: expected arms of {', '.join(arms)}, found {name!r}"
    if classify.ratios and 0 not in classify.ratios:
        yield (
            "classify.ratios: expected 0 among them, which all others are compared with, found "
            f"{list(classify.ratios)}"
        )
    if classify.ratio_arms and not classify.ratios:
        yield "classify.ratio_arms: expected ratios with them, found none"


def _classifier_faults(classify: ClassifyConfig) -> Iterator[str]:
    """Check what is trained and on what; networks may expose `size_faults(settings, image_size)`.

    They are asked here, so that an image that a network cannot take stops a run at its start.
    """
    if REAL not in classify.regimes:
        yield (
            "classify.regimes: expected 'real' among them, which all others are compared with, "
            f"found {list(classify.regimes)}"
        )
    yield from name_faults(
        [plugin.name for plugin in classify.references], registry.CLASSIFIERS, "classify.references"
    )
    for place, plugin in (
        ("classify.model", classify.model),
        *((f"classify.references.{k}", item) for k, item in enumerate(classify.references)),
    ):
        if plugin_faults(plugin, registry.CLASSIFIERS, place)[1]:
            continue  # said already
        module = registry.find(registry.CLASSIFIERS, plugin.name)
        if hasattr(module, "fit"):
            yield f"{place}: expected a network, found the baseline {plugin.name!r}"
        if hasattr(module, "size_faults"):
            settings = module.Settings.model_validate(plugin.settings)
            for line in module.size_faults(settings, classify.image_size):
                yield line.replace("MODEL", place)


def _recaption_faults(evaluate: EvaluateConfig) -> Iterator[str]:
    """Refuse a captioner that is told what it is to find, or sends images away without leave."""
    plugin, package = evaluate.recaption, registry.FIELDS["evaluate", "recaption"]
    if plugin is None or plugin_faults(plugin, package, "evaluate.recaption")[1]:
        return  # nothing to check, or said already
    if plugin.name == "truth":
        yield "evaluate.recaption: expected a captioner that looks at images, found 'truth'"
    if plugin.settings.get("prompt") == "poster":
        yield (
            "evaluate.recaption.settings.prompt: expected 'blind', found 'poster', which tells the "
            "captioner the class that it is to find"
        )
    module = registry.find(package, plugin.name)
    if hasattr(module, "uploads_to") and not evaluate.recaption_upload:
        host = module.uploads_to(module.Settings.model_validate(plugin.settings))
        if host is not None:
            yield (
                f"evaluate.recaption: {plugin.name} would send images, real ones too, to {host}; "
                "if they may leave this machine, set evaluate.recaption_upload: true, else choose "
                "a local VLM"
            )


def _test_faults(preprocess: PreprocessConfig, classify: ClassifyConfig) -> Iterator[str]:
    """Check what is asked of trained classifiers beside their scores."""
    if classify.explain and "binary" not in classify.tasks:
        yield (
            "classify.explain: explanations are of the task 'binary', found tasks "
            f"{list(classify.tasks)}; add it, or leave them out"
        )
    for name, section in classify.cross_test.items():
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
            yield (
                f"classify.cross_test.{name}: expected a name of small letters, digits and '._-', "
                f"found {name!r}"
            )
        if section.image_size != preprocess.image_size:
            yield (
                f"classify.cross_test.{name}.image_size: expected {preprocess.image_size} as in "
                f"preprocess.image_size, found {section.image_size}"
            )


def _sentence(item: ErrorDetails, model: type[BaseModel]) -> str:
    """Word one pydantic error."""
    kind, context = item["type"], item.get("ctx", {})
    if kind == "extra_forbidden":
        return unknown_key(str(item["loc"][-1]), _model_at(model, item["loc"][:-1]).model_fields)
    if kind == "missing":
        return "required, but not given"
    value = shorten(item["input"])
    signs = {
        "greater_than_equal": (">=", "ge"),
        "greater_than": (">", "gt"),
        "less_than_equal": ("<=", "le"),
        "less_than": ("<", "lt"),
    }
    if kind in signs:
        sign, key = signs[kind]
        return f"expected a number {sign} {context[key]:g}, found {value}"
    if kind == "value_error":
        return f"{context['error']}"
    message = item["msg"].removeprefix("Input should be ")
    if message == item["msg"]:
        return f"{message[0].lower()}{message[1:]}, found {value}"
    return f"expected {message}, found {value}"


def shorten(value: object) -> str:
    """Quote a value, its end left out where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _model_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> type[BaseModel]:
    """Find the model that a location inside a section leads to (through lists and mappings)."""
    for part in loc:
        if isinstance(part, str) and part in model.model_fields:
            inner = next(_models(model.model_fields[part].annotation), None)
            model = inner or model
    return model


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def overridden(override: Mapping[str, Any], loc: Sequence[str]) -> bool:
    """Tell whether an arm's override reaches the place of a fault."""
    here: Any = override
    for part in loc:
        if part == "settings" and "name" in here:
            return True  # an arm that names a plug-in owns its settings
        if part not in here:
            return False
        here = here[part]
        if not isinstance(here, Mapping):
            return True
    return True
