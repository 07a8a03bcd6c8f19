"""Memory that fine-tuning will take, estimated from the shapes in the weights' headers alone.

Imports no torch: `mrisynth check` asks before anything is loaded. Weights, adapter, gradients and
optimiser states are counted exactly. Activations are what autograd keeps for the backward pass,
estimated from the layers' sizes; the constants below bring that within a fifth of what a forward
pass of the full-size UNets keeps on torch's meta device (the tests repeat that count).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.settings import FinetuneConfig
from stages.finetune.adapters.targets import is_adapted

Shapes = Mapping[str, tuple[int, ...]]

GIB = 2**30
# Bytes of optimiser state per trained number.
OPTIMIZER_BYTES = {"adamw": 8, "adamw_8bit": 2, "muon": 4, "prodigy": 16, "schedule_free": 8}
FOUR_BIT_BYTES = 0.5 + 4 / 64  # NF4, one float32 scale for 64 weights
TOKENS = 77
# Bytes of a kept number. On GPUs autocast runs norms in float32, so bfloat16 halves but part.
KEPT_BYTES = {"float32": 4, "bfloat16": 3}
# Kept numbers per output number of a layer, without checkpointing.
KEPT_PER_OUTPUT = 1.9
# Layers whose inputs stay with checkpointing, and how often: those of residual and transformer
# blocks, and around each transformer its norm, its projection in and out.
KEPT_INPUTS = {"conv1": 1, "attn1.to_q": 1, "proj_in": 3}
# The libraries, and on a GPU the context and the workspaces of cuDNN.
OVERHEAD_BYTES = int(1.5 * GIB)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that one process needs at the peak of training."""

    weights: int
    trained: int  # adapter, its gradients, optimiser states and moving average
    activations: int
    overhead: int = OVERHEAD_BYTES

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.trained + self.activations + self.overhead

    def describe(self) -> str:
        """Say it in one line.

        Example:
            >>> MemoryEstimate(2 * GIB, GIB, 4 * GIB).describe()
            'about 8.5 GiB (weights 2.0, adapter and optimiser 1.0, activations 4.0, libraries 1.5)'
        """
        return (
            f"about {self.total / GIB:.1f} GiB (weights {self.weights / GIB:.1f}, adapter and "
            f"optimiser {self.trained / GIB:.1f}, activations {self.activations / GIB:.1f}, "
            f"libraries {self.overhead / GIB:.1f})"
        )


def estimate(
    networks: Mapping[str, Shapes],
    config: FinetuneConfig,
    targets: Mapping[str, tuple[str, ...]],
    ranks: Mapping[str, int],
    dtype: str,
) -> MemoryEstimate:
    """Estimate the peak of one process.

    Args:
        networks: Part ("unet", "vae", "text_encoder", ...) to the shapes of its tensors.
        config: Batch, resolution, optimiser and so on.
        targets: Adapted part to the layer names that get adapters.
        ranks: Adapted part to its rank.
        dtype: Compute dtype, "float32" or "bfloat16"; the VAE and all that is trained is float32.
    """
    width = 4 if dtype == "float32" else 2
    weights = 4 * size_of(networks["vae"])
    for part, shapes in networks.items():
        if part != "vae":
            weights += width * size_of(shapes)
    if config.quantize_base:
        held = sum(math.prod(s) for name, s in networks["unet"].items() if is_four_bit(name, s))
        weights -= int(held * (width - FOUR_BIT_BYTES))
    numbers = sum(
        adapter_size(networks[part], names, ranks[part], is_dora=config.adapter == "dora")
        for part, names in targets.items()
    )
    average = 4 if config.ema_decay is not None else 0
    trained = numbers * (4 + 4 + OPTIMIZER_BYTES[config.optimizer] + average)
    values = kept_values(networks["unet"], config.resolution, config.gradient_checkpointing)
    for part in targets:
        if part != "unet":
            values += KEPT_PER_OUTPUT * TOKENS * sum(s[0] for s in layers(networks[part]).values())
    return MemoryEstimate(weights, trained, int(KEPT_BYTES[dtype] * config.batch_size * values))


def size_of(shapes: Shapes) -> int:
    """Count the numbers of a network."""
    return sum(math.prod(shape) for shape in shapes.values())


def layers(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Map layer names to their weights' shapes: linear (out, in), convolution (out, in, k, k)."""
    return {
        name.removesuffix(".weight"): shape
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) > 1 and "embedding" not in name
    }


def adapter_size(shapes: Shapes, targets: tuple[str, ...], rank: int, *, is_dora: bool) -> int:
    """Count an adapter's numbers: rank x (in + out) a layer, and DoRA's magnitudes.

    Example:
        >>> adapter_size({"a.to_k.weight": (8, 4), "a.x.weight": (9, 9)}, ("to_k",), 2,
        ...              is_dora=False)
        24
    """
    return sum(
        rank * (shape[0] + math.prod(shape[1:])) + (shape[0] if is_dora else 0)
        for name, shape in layers(shapes).items()
        if is_adapted(name, targets)
    )


def is_four_bit(name: str, shape: tuple[int, ...]) -> bool:
    """Tell whether a weight is held in 4 bits with `finetune.quantize_base`."""
    return ".transformer_blocks." in name and name.endswith(".weight") and len(shape) == 2


def kept_values(unet: Shapes, resolution: int, is_checkpointed: bool) -> float:
    """Count the numbers that autograd keeps for one image of the UNet.

    Args:
        unet: Shapes of its tensors, under the names of diffusers.
        resolution: Of the image in px; latents are an eighth of it.
        is_checkpointed: Blocks keep their input only, and the largest is computed again.
    """
    depth = 1 + max(int(name.split(".")[1]) for name in unet if name.startswith("down_blocks."))
    blocks: dict[str, float] = {}
    inputs = 0.0
    for name, shape in layers(unet).items():
        here = places(name, resolution, depth)
        parts = name.split(".")
        block = ".".join(parts[: 6 if "transformer_blocks" in parts else 4])
        blocks[block] = blocks.get(block, 0.0) + shape[0] * here
        times = (n for layer, n in KEPT_INPUTS.items() if is_adapted(name, (layer,)))
        inputs += sum(times) * shape[1] * here
    if not is_checkpointed:
        return KEPT_PER_OUTPUT * sum(blocks.values())
    return inputs + KEPT_PER_OUTPUT * max(blocks.values())


def places(name: str, resolution: int, depth: int) -> int:
    """Count the places at which a layer of the UNet gives an output, for one image."""
    side = resolution // 8
    parts = name.split(".")
    if "attn2.to_k" in name or "attn2.to_v" in name:
        return TOKENS
    if "time_emb" in name:
        return 1
    level = 0
    if parts[0] == "down_blocks":
        level = int(parts[1]) + ("downsamplers" in parts)
    elif parts[0] == "mid_block":
        level = depth - 1
    elif parts[0] == "up_blocks":
        level = depth - 1 - int(parts[1]) - ("upsamplers" in parts)
    return max(1, side >> level) ** 2
