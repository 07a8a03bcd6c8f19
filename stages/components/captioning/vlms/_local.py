"""What a captioner file of a local VLM exposes, for any checkpoint of its classes on this machine.

A file in `vlms/` names its classes, its default weights and its licence and takes the rest from
here: transformers' own classes and processors, safetensors, no code from a hub.

Answers are JSON constrained by the caption schema without free white space (xgrammar). Greedy
decoding in float32 gives a slice the same caption in any batch; half precision need not, since a
batch's shape changes the order of its sums. A grammar makes an answer of any scores, so scores that
are no numbers end the run.
"""

import functools
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.contracts import Part, Section, SliceRecord
from pipeline.errors import DataError, MissingWeightsError, PipelineError, ValueRangeError
from pipeline.seeding import derive_seed
from stages.components.captioning.captioner import Captioner, CaptionIdentity, Failure
from stages.components.captioning.names import identify_checkpoint
from stages.components.captioning.questions import (
    MAX_ANSWER_TOKENS,
    PROMPT_VERSION,
    Answer,
    PromptStyle,
    bounded_schema,
    prompt_for,
    read_answer,
)
from stages.components.captioning.vlms._memory import VlmMemory, estimate
from stages.components.captioning.vlms._processors import load_processor, missing_modules
from stages.components.networks import weights
from stages.components.tumor_report.parsing import parse

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

PROCESSOR_FILES = (
    ("processor_config.json", "preprocessor_config.json"),
    ("tokenizer.json", "tokenizer.model"),
)
SEPARATORS = (",", ":")  # of the JSON: no white space
# What bitsandbytes leaves alone, as regular expressions of whole names: the head, and all that
# sees. Images lose by it, and vision towers are a few percent of the weights.
OVERFLOWING = frozenset({"gemma3"})  # model types whose activations float16 does not hold
NOT_QUANTISED = ("lm_head", ".*vision_tower", ".*vision_model", ".*visual", ".*projector")
CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f]")


class LocalVlmSettings(Section):
    """Which weights, how they are held, and how they are asked."""

    model: str  # folder in the hub's layout (relative: to the repository), or hub id
    revision: str | None = None  # commit or tag; a hub id needs one
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # null: the run's
    quantization: Literal["none", "4bit", "8bit"] = "none"  # bitsandbytes, computing in `dtype`
    # As accelerate has it: auto, cpu, cuda:0, ... null: the run's device, or all GPUs for `cuda`.
    device_map: str | dict[str, int | str] | None = None
    batch_size: int = Field(16, ge=1)  # slices decoded together; halved where memory is short
    max_new_tokens: int = Field(MAX_ANSWER_TOKENS, ge=1)
    prompt: PromptStyle = "blind"
    constrain: bool = True  # to the schema; False: the model writes as it likes
    retries: int = Field(2, ge=0)  # of an answer that cannot be read, sampled with other seeds
    temperature: float = Field(0.7, gt=0)  # of retries; the first answer is greedy
    seed: int = Field(0, ge=0)  # of retries
    chat_template: str | None = None  # Jinja, for checkpoints that bring none
    # Arguments of the processor and its image processor, in place of the checkpoint's own.
    processor: dict[str, Any] = Field(default_factory=dict)


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
        found = []
        if not weights.is_folder_name(settings.model) and settings.revision is None:
            found.append(
                f"revision: {settings.model!r} needs one, so that captions can be made again; name "
                f"the commit that https://huggingface.co/{settings.model}/commits/main shows"
            )
        if settings.constrain and importlib.util.find_spec("xgrammar") is None:
            found.append(
                "xgrammar is not installed, and constrain: true needs it. "
                "Run: pip install 'mrisynth[vlm]', or set constrain: false"
            )
        folder = weights.find_folder(settings.model, settings.revision)
        if folder is None:
            return [*found, self._say_missing(settings)]
        lacking = missing_files(folder)
        if lacking:
            remedy = self._how_to_get(settings)
            return [*found, f"{folder} lacks {', '.join(lacking)}. {remedy}"]
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if kind in OVERFLOWING and settings.dtype == "float16":
            found.append(
                f"dtype: 'float16' cannot hold what {kind} computes: its answers would be made of "
                "nothing; set bfloat16 or float32"
            )
        return [
            *found,
            *self._class_problems(kind, folder / "config.json"),
            *self._processor_problems(settings, folder),
        ]

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
        command = weights.download_command(
            settings.model, settings.revision, exclude=("*.bin", "*.pth", "*.gguf")
        )
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


def missing_files(folder: Path) -> list[str]:
    """List what a checkpoint's folder lacks or holds damaged; empty when it can be loaded."""
    found = weights.missing_files(folder, [""], None)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        found += sorted(name for name in shards if not (folder / name).is_file())
    for names in PROCESSOR_FILES:
        if not any((folder / name).is_file() for name in names):
            found.append(" or ".join(names))
    return found


class LocalCaptioner:
    """Captions slices in batches of like prompt lengths."""

    def __init__(self, folder: Path, settings: LocalVlmSettings) -> None:
        """Load from a folder that `VlmPlugin.check` has nothing to say about.

        Raises:
            MissingWeightsError: There is no chat template, in the folder or in the settings.
        """
        import torch
        from transformers import AutoModelForImageTextToText, GenerationConfig

        self.settings = settings
        self.batch_size = settings.batch_size
        self.dtype = getattr(torch, settings.dtype or "float32")
        self.processor = load_processor(folder, settings.processor)
        # Said again with every image: some processors have defaults that go before their settings.
        self.seeing = {
            name: value
            for name, value in settings.processor.items()
            if hasattr(self.processor.image_processor, name)
        }
        if settings.chat_template is not None:
            self.processor.chat_template = settings.chat_template
        if self.processor.chat_template is None:
            raise MissingWeightsError(
                f"{folder} has no chat template; set caption.vlm.settings.chat_template to the one "
                "that the model was trained with"
            )
        self.model = AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=self.dtype,
            device_map=settings.device_map or "auto",
            quantization_config=quantization_of(settings),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        ).eval()
        tokenizer = self.processor.tokenizer
        ends = self.model.generation_config.eos_token_id or tokenizer.eos_token_id
        self.ends: list[int] = [ends] if isinstance(ends, int) else list(ends)
        pad = tokenizer.pad_token_id
        # In place of the checkpoint's own: that may sample, or punish repeated tokens.
        self.model.generation_config = GenerationConfig(
            eos_token_id=self.ends, pad_token_id=self.ends[0] if pad is None else pad
        )
        if pad is None:
            tokenizer.pad_token_id = self.ends[0]
        self.grammar = self._compile_grammar() if settings.constrain else None

    def describe(
        self, slices: Sequence[SliceRecord], image_paths: Sequence[Path]
    ) -> Sequence[str | Failure]:
        """Answer for each slice, in order; what cannot be read is asked for again, alone."""
        prompts = [self._word(item) for item in slices]
        lengths = [len(self.processor.tokenizer(prompt).input_ids) for prompt in prompts]
        order = sorted(range(len(slices)), key=lambda row: lengths[row])
        answers: dict[int, Answer] = {}
        while order:
            rows = order[: self.batch_size]
            images = [read_rgb(image_paths[row]) for row in rows]
            texts = self._generate_fitting([prompts[row] for row in rows], images)
            # fewer than were asked for, where they did not fit
            answers.update(zip(rows, map(read_answer, texts), strict=False))
            order = order[len(texts) :]
        return [
            self._settle(answers[row], item, prompts[row], image_paths[row])
            for row, item in enumerate(slices)
        ]

    def _settle(self, first: Answer, item: SliceRecord, prompt: str, path: Path) -> str | Failure:
        """Take the first answer that can be read, or else the first one as it is."""
        answer = first
        for attempt in range(1, self.settings.retries + 1):
            if is_readable(answer):
                return answer.taken
            seed = derive_seed(self.settings.seed, "caption", item.slice_id, attempt)
            (text,) = self._generate([prompt], [read_rgb(path)], seed)
            answer = read_answer(text)
        return answer.taken if is_readable(answer) else first.taken

    def _word(self, item: SliceRecord) -> str:
        """Return the prompt in the model's own chat format, with a place for the image."""
        content = [
            {"type": "image"},
            {"type": "text", "text": prompt_for(self.settings.prompt, item)},
        ]
        worded: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return worded

    def _generate_fitting(self, prompts: Sequence[str], images: "Sequence[Image]") -> list[str]:
        """Decode greedily as many as memory holds at once; later batches are no longer than that.

        Raises:
            PipelineError: It does not hold one.
        """
        import torch

        while True:
            tried = min(self.batch_size, len(prompts))
            try:
                return self._generate(prompts[:tried], images[:tried], seed=None)
            except torch.OutOfMemoryError as error:
                cause = str(error).partition("\n")[0]
            if tried == 1:
                raise PipelineError(
                    f"memory does not suffice to caption one slice ({cause}); captions that are "
                    "there are kept. Set caption.vlm.settings.dtype: bfloat16 or quantization: "
                    "4bit, or take a smaller model"
                )
            self.batch_size = tried // 2
            torch.cuda.empty_cache()  # outside the handler, which keeps the failed batch alive

    def _generate(
        self, prompts: Sequence[str], images: "Sequence[Image]", seed: int | None
    ) -> list[str]:
        """Decode greedily, or sample with a seed; the global generators are left as they were."""
        import torch

        tokenizer = self.processor.tokenizer
        inputs = self._see(prompts, images)
        how: dict[str, Any] = {"do_sample": False}
        if seed is not None:
            how = {"do_sample": True, "temperature": self.settings.temperature, "top_k": 0}
        how["logits_processor"] = [self._refuse_no_numbers]
        if self.grammar is not None:
            from xgrammar.contrib.hf import LogitsProcessor

            how["logits_processor"].append(LogitsProcessor(self.grammar))
        on_gpu = self.model.device.type == "cuda"
        with (
            torch.inference_mode(),
            torch.random.fork_rng(devices=[self.model.device] if on_gpu else []),
        ):
            if seed is not None:
                torch.manual_seed(seed)
            output = self.model.generate(
                **inputs, max_new_tokens=self.settings.max_new_tokens, **how
            )
        start = inputs["input_ids"].shape[1]
        texts: list[str] = tokenizer.batch_decode(output[:, start:], skip_special_tokens=True)
        if self.grammar is not None:
            # xgrammar 0.2.8 lets them through in strings of bounded length; JSON forbids them.
            texts = [CONTROL_CHARACTERS.sub(" ", text) for text in texts]
        return texts

    def _see(self, prompts: Sequence[str], images: "Sequence[Image]") -> Any:
        """Return what the model takes, on its device, prompts padded on the left."""
        begin = self.processor.tokenizer.bos_token
        return self.processor(
            text=list(prompts),
            images=[[image] for image in images],
            padding=True,
            padding_side="left",
            # some chat templates write the mark for the beginning themselves
            add_special_tokens=not (begin and prompts[0].startswith(begin)),
            return_tensors="pt",
            **({"images_kwargs": self.seeing} if self.seeing else {}),
        ).to(self.model.device, dtype=self.dtype)

    def _refuse_no_numbers(
        self, input_ids: "torch.Tensor", scores: "torch.Tensor"
    ) -> "torch.Tensor":
        """Hand on scores, (batch, vocabulary), that can be compared; minus infinity forbids.

        Raises:
            ValueRangeError: A row holds NaN or infinity, or forbids every token.
        """
        if not scores.amax(dim=-1).isfinite().all():  # NaN and infinity both come through a maximum
            raise ValueRangeError(
                f"{self.settings.model!r} computes no numbers (NaN or infinity) in "
                f"{self.settings.dtype}, so its answers would be made of nothing; set "
                "caption.vlm.settings.dtype: bfloat16 or float32, or see to the weights"
            )
        return scores

    def _compile_grammar(self) -> Any:
        import xgrammar

        tokens = xgrammar.TokenizerInfo.from_huggingface(
            self.processor.tokenizer,
            vocab_size=self.model.get_output_embeddings().out_features,
            stop_token_ids=self.ends,
        )
        return xgrammar.GrammarCompiler(tokens).compile_json_schema(
            bounded_schema(), any_whitespace=False, separators=SEPARATORS
        )


def is_readable(answer: Answer) -> bool:
    """Tell whether an answer fits the schema or states something in other words."""
    if answer.fits:
        return True
    if isinstance(answer.taken, Failure):
        return False
    try:
        parse(answer.taken)
    except DataError:
        return False
    return True


def quantization_of(settings: LocalVlmSettings) -> Any:
    """Return the bitsandbytes configuration for transformers, or None."""
    if settings.quantization == "none":
        return None
    from transformers import BitsAndBytesConfig

    if settings.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(NOT_QUANTISED))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=settings.dtype,
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=list(NOT_QUANTISED),  # of 4 bits too, despite the name
    )


def read_rgb(path: Path) -> "Image":
    """Open a prepared slice as RGB, uint8."""
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")
