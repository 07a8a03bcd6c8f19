"""A VLM on this machine that captions slices, constrained to the schema.

Answers are JSON without free white space (xgrammar). Greedy decoding in float32 gives a slice the
same caption in any batch; half precision need not, since a batch's shape changes the order of its
sums. A grammar makes an answer of any scores, so scores that are no numbers end the run.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.contracts import SliceRecord
from pipeline.errors import DataError, MissingWeightsError, PipelineError, ValueRangeError
from pipeline.seeding import derive_seed
from stages.components.captioning.captioner import Failure
from stages.components.captioning.questions import Answer, bounded_schema, prompt_for, read_answer
from stages.components.captioning.vlms._local_settings import LocalVlmSettings
from stages.components.captioning.vlms._processors import load_processor
from stages.components.tumor_report.parsing import parse

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

SEPARATORS = (",", ":")  # of the JSON: no white space
# What bitsandbytes leaves alone, as regular expressions of whole names: the head, and all that
# sees. Images lose by it, and vision towers are a few percent of the weights.
NOT_QUANTISED = ("lm_head", ".*vision_tower", ".*vision_model", ".*visual", ".*projector")
CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f]")


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
