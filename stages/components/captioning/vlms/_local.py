"""What a captioner file of a local VLM exposes, for any checkpoint of its classes on this machine.

A file in `vlms/` names its classes, its default weights and its licence and takes the rest from
here: transformers' own classes and processors, safetensors, no code from a hub.
"""

import functools
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.contracts import Part, SliceRecord
from pipeline.downloads import Download, HubFiles
from stages.components.captioning.captioner import Captioner, CaptionIdentity
from stages.components.captioning.names import identify_checkpoint
from stages.components.captioning.questions import PROMPT_VERSION, bounded_schema, prompt_for
from stages.components.captioning.vlms._local_captioner import NOT_QUANTISED, LocalCaptioner
from stages.components.captioning.vlms._local_settings import LocalVlmSettings
from stages.components.captioning.vlms._memory import VlmMemory, estimate
from stages.components.captioning.vlms._processors import missing_modules
from stages.components.networks import weights

PROCESSOR_FILES = (
    ("processor_config.json", "preprocessor_config.json"),
    ("tokenizer.json", "tokenizer.model"),
)
OVERFLOWING = frozenset({"gemma3"})  # model types whose activations float16 does not hold


@dataclass(frozen=True)
class VlmPlugin:
    """A family of VLMs.

    Attributes:
        name: of the family, for readers.
        settings: the plug-in's own, with its default weights.
        model_types: `model_type` of the configurations that it loads; none: whatever reads images.
        advice: what to do about other model types that users take for these.
        licence: said when weights are missing.
        processor_needs: arguments without which the processor loads, and fails on the first image.
    """

    name: str
    settings: type[LocalVlmSettings]
    model_types: tuple[str, ...]
    advice: Mapping[str, str]
    licence: str
    processor_needs: tuple[str, ...] = ()

    def for_run(self, settings: LocalVlmSettings, *, device: str, dtype: str) -> LocalVlmSettings:
        """Take the run's device and dtype where the settings name none."""
        placed: dict[str, Any] = {}
        if settings.device_map is None:
            placed["device_map"] = "auto" if device == "cuda" else device
        if settings.dtype is None:
            placed["dtype"] = dtype
        return settings.model_copy(update=placed)

    def identify(self, settings: LocalVlmSettings) -> Part:
        """Say what the checkpoint is: a tiny one of ours is not the large one of its family."""
        if weights.is_embedded(settings.model):
            return weights.identify_embedded(f"tiny {self.name} (embedded)")
        return identify_checkpoint(settings.model)

    def check(self, settings: LocalVlmSettings) -> list[str]:
        """List all that keeps the model from captioning, each with what to do; loads nothing."""
        problems = []
        if not weights.is_folder_name(settings.model) and settings.revision is None:
            problems.append(
                f"revision: {settings.model!r} needs one, so that captions can be made again; name "
                f"the commit that https://huggingface.co/{settings.model}/commits/main shows"
            )
        if settings.constrain and importlib.util.find_spec("xgrammar") is None:
            problems.append(
                "xgrammar is not installed, and constrain: true needs it. "
                "Run: pip install 'mrisynth[vlm]', or set constrain: false"
            )
        folder = weights.find_folder(settings.model, settings.revision)
        if folder is None:
            return [*problems, self._say_missing(settings)]
        lacking = missing_files(folder)
        if lacking:
            remedy = self._how_to_get(settings)
            return [*problems, f"{folder} lacks {', '.join(lacking)}. {remedy}"]
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if kind in OVERFLOWING and settings.dtype == "float16":
            problems.append(
                f"dtype: 'float16' cannot hold what {kind} computes: its answers would be made of "
                "nothing; set bfloat16 or float32"
            )
        return [
            *problems,
            *self._class_problems(kind, folder / "config.json"),
            *self._processor_problems(settings, folder),
        ]

    def downloads(self, settings: LocalVlmSettings) -> list[Download]:
        """List what of the hub the checkpoint is made of; nothing where a folder is named."""
        return [] if weights.is_folder_name(settings.model) else [_hub_files(settings)]

    def predict_memory(self, settings: LocalVlmSettings) -> VlmMemory | None:
        """Estimate the memory that captioning takes; None while weights are missing.

        Args:
            settings: With the run's dtype, as `for_run` gives them.
        """
        folder = weights.find_folder(settings.model, settings.revision)
        if folder is None or missing_files(folder):
            return None
        return estimate(
            folder,
            dtype=settings.dtype or "float32",
            quantization=settings.quantization,
            whole=NOT_QUANTISED,
            batch_size=settings.batch_size,
            max_new_tokens=settings.max_new_tokens,
        )

    def input_digest(self, settings: LocalVlmSettings) -> str:
        """Identify the weights, for freshness and caches: they are an input like any other."""
        return weights.digest_of(settings.model, settings.revision, None)

    def cache_identity(self, settings: LocalVlmSettings, item: SliceRecord) -> CaptionIdentity:
        """Name all that decides a caption beside the pixels; batches and devices do not."""
        names = {"dtype", "quantization", "max_new_tokens", "constrain", "retries", "temperature",
                 "seed", "chat_template", "processor"}  # fmt: skip
        decoding = {
            **settings.model_dump(include=names),
            "schema": bounded_schema(),
            "prompt_version": PROMPT_VERSION,
        }
        digest = _digest_once(settings.model, settings.revision)
        return CaptionIdentity(settings.model, digest, prompt_for(settings.prompt, item), decoding)

    def load(self, settings: LocalVlmSettings) -> Captioner:
        """Load model and processor and compile the grammar.

        Raises:
            MissingWeightsError: Something is not on this machine, or is of another class.
        """
        settings = self.for_run(settings, device="auto", dtype="float32")
        weights.require(self.check(settings))
        folder = weights.find_folder(settings.model, settings.revision)
        assert folder is not None
        return LocalCaptioner(folder, settings)

    def _say_missing(self, settings: LocalVlmSettings) -> str:
        is_folder = weights.is_folder_name(settings.model)
        where = weights.local_folder(settings.model) if is_folder else "the Hugging Face cache"
        return (
            f"weights {settings.model!r} are not on this machine (looked in {where}). "
            f"{self._how_to_get(settings)}"
        )

    def _how_to_get(self, settings: LocalVlmSettings) -> str:
        if weights.is_folder_name(settings.model):
            return f"Put a transformers folder there, or name a hub id. {self.licence}"
        command = _hub_files(settings).command()
        return (
            f"{self.licence} If it is gated, accept its terms at "
            f"https://huggingface.co/{settings.model} and run `hf auth login` first. Run: {command}"
        )

    def _class_problems(self, kind: str | None, path: Path) -> list[str]:
        if not self.model_types:
            return _loading_problems(kind, path)
        if kind in self.model_types:
            return []
        advice = self.advice.get(kind or "", "Take the plug-in of that type, or other weights.")
        return [
            f"{path} names the model type {kind!r}, expected {' or '.join(self.model_types)}. "
            f"{advice}"
        ]

    def _processor_problems(self, settings: LocalVlmSettings, folder: Path) -> list[str]:
        """Name arguments of the processor that the checkpoint lacks, with values from its config.

        Source: huggingface.co/docs/transformers/model_doc/llava, "Usage tips".
        """
        held = dict(settings.processor)
        for path in (folder / name for name in PROCESSOR_FILES[0]):
            held |= json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        lacking = [name for name in self.processor_needs if held.get(name) is None]
        if not lacking:
            return []
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        vision = config.get("vision_config", {})
        values = {
            "patch_size": vision.get("patch_size"),
            "vision_feature_select_strategy": config.get("vision_feature_select_strategy"),
            "num_additional_image_tokens": int("clip" in vision.get("model_type", "clip")),
        }
        advised = {name: value for name, value in values.items() if held.get(name) is None}
        return [
            f"{folder}: the processor has no {', '.join(lacking)}, and would fail on the first "
            f"slice; set caption.vlm.settings.processor: {json.dumps(advised)}"
        ]


def _loading_problems(kind: str | None, path: Path) -> list[str]:
    """Say when transformers has no class for a model type, or its processor lacks a library."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return [
            f"{path} names the model type {kind!r}, which transformers {transformers.__version__} "
            "does not load as one that reads images and writes text, without code from the hub. "
            "Take a conversion (often -hf), a newer transformers, or other weights."
        ]
    return [
        f"the processor of {kind!r} needs the package {name}, which is not installed: "
        f"pip install {name}"
        for name in missing_modules(str(kind))
    ]


@functools.cache
def _digest_once(model: str, revision: str | None) -> str:
    """Identify weights; they are not read again for each slice."""
    return weights.digest_of(model, revision, None)


def _hub_files(settings: LocalVlmSettings) -> HubFiles:
    return HubFiles(
        settings.model,
        settings.revision,
        exclude=("*.bin", "*.pth", "*.gguf"),
        licence=identify_checkpoint(settings.model).licence,
    )


def missing_files(folder: Path) -> list[str]:
    """List what a checkpoint's folder lacks or holds damaged; empty when it can be loaded."""
    missing = weights.missing_files(folder, [""], None)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing += sorted(name for name in shards if not (folder / name).is_file())
    for names in PROCESSOR_FILES:
        if not any((folder / name).is_file() for name in names):
            missing.append(" or ".join(names))
    return missing
