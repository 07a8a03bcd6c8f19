"""Settings of a VLM on this machine."""

from typing import Any, Literal

from pydantic import Field

from pipeline.contracts import Section
from stages.components.captioning.questions import MAX_ANSWER_TOKENS, PromptStyle


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
