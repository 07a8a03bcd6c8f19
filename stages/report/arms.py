"""Arms: base model, captioner, rank and settings of each, read from its manifests."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.contracts import BASE, Part, read_parts
from stages.components.captioning.names import read_captioner

Manifest = Mapping[str, Any]

FAMILIES = ("sd15", "sdxl")


@dataclass(frozen=True)
class Arm:
    """One arm as its manifests describe it; None where no manifest says."""

    name: str
    base_model: str | None
    family: str | None  # "sd15" or "sdxl", whatever the size; None for any other base model
    vlm: str | None  # the captioner as it calls itself, or the captions' file stem
    lora_rank: int | None
    train_text_encoder: bool | None
    settings: Mapping[str, Any] = field(default_factory=dict)  # "stage.key.key" -> value
    base: Part | None = None  # what the base model is
    captioner: Part | None = None

    @property
    def study(self) -> str | None:
        """The captioner of the reproduced study that this arm's is, if any."""
        return None if self.captioner is None else self.captioner.study

    @property
    def without_lora(self) -> str:
        """The row of its base model without LoRA."""
        return f"{BASE}{self.base_model}"

    @property
    def is_guided(self) -> bool:
        """Whether a judge steered its sampling."""
        return self.settings.get("generate.guidance.name") is not None

    def unequal_settings(self, other: "Arm", *, apart_from: Collection[str]) -> list[str]:
        """List the settings in which two arms differ, leaving out names under `apart_from`."""
        keys = self.settings.keys() | other.settings.keys()
        return sorted(
            key
            for key in keys
            if self.settings.get(key) != other.settings.get(key)
            and not any(key == name or key.startswith(f"{name}.") for name in apart_from)
        )


def read_arm(
    name: str,
    *,
    caption: Manifest | None,
    finetune: Manifest | None,
    generate: Manifest | None,
) -> Arm:
    """Read an arm's facts from the `config` its stages ran with."""
    tuned = _config(finetune)
    base_model = (tuned.get("base_model") or _config(generate).get("base_model") or {}).get("name")
    captioner = read_captioner(caption)
    bases = [*read_parts(finetune or {}, "base_model"), *read_parts(generate or {}, "base_model")]
    settings: dict[str, Any] = {}
    for stage, manifest in (("caption", caption), ("finetune", finetune), ("generate", generate)):
        for path, value in flatten(_config(manifest)).items():
            settings[".".join((stage, *path))] = value
    return Arm(
        name=name,
        base_model=base_model,
        family=name_family(base_model),
        vlm=None if captioner is None else captioner.name,
        lora_rank=tuned.get("lora_rank") if tuned.get("method", "lora") == "lora" else None,
        train_text_encoder=tuned.get("train_text_encoder"),
        settings=settings,
        base=next(iter(bases), None),
        captioner=captioner,
    )


def name_family(base_model: str | None) -> str | None:
    """Name the poster's family of a base model: "tiny_sdxl" and "sdxl" are both "sdxl"."""
    family = (base_model or "").removeprefix("tiny_")
    return family if family in FAMILIES else None


def flatten(nested: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """Flatten nested mappings to one, keyed by the path of names; an empty one is a value.

    >>> flatten({"a": {"b": 1, "c": {}}})
    {('a', 'b'): 1, ('a', 'c'): {}}
    """
    flat: dict[tuple[str, ...], Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat.update({(key, *path): item for path, item in flatten(value).items()})
        else:
            flat[(key,)] = value
    return flat


def _config(manifest: Manifest | None) -> Mapping[str, Any]:
    return (manifest or {}).get("config") or {}
