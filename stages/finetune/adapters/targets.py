"""Target layers of adapters, by name; imports no torch.

| preset       | UNet                                              | text encoders            |
|--------------|---------------------------------------------------|--------------------------|
| `attention`  | the four projections of every attention           | the same                 |
| `all_linear` | and feed-forward, and projections in and out      | and `fc1`, `fc2`         |
| `wider`      | and the residual blocks' 3 x 3 convolutions       | and `fc1`, `fc2`         |

The projections in and out of a transformer are linear in SDXL and 1 x 1 convolutions in SD 1.5.
"""

from collections.abc import Sequence

from pipeline.settings import FinetuneConfig

ATTENTION = ("to_k", "to_q", "to_v", "to_out.0")
ALL_LINEAR = (*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
UNET_TARGETS = {
    "attention": ATTENTION,
    "all_linear": ALL_LINEAR,
    "wider": (*ALL_LINEAR, "conv1", "conv2"),
}
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
TEXT_TARGETS = {
    "attention": TEXT_ATTENTION,
    "all_linear": (*TEXT_ATTENTION, "fc1", "fc2"),
    "wider": (*TEXT_ATTENTION, "fc1", "fc2"),
}


def unet_targets(config: FinetuneConfig) -> tuple[str, ...]:
    """Return the UNet's targets: those named, else those of the preset, else `ATTENTION`."""
    if config.target_modules is not None:
        return config.target_modules
    return UNET_TARGETS[config.target_preset or "attention"]


def text_targets(config: FinetuneConfig) -> tuple[str, ...]:
    """Return the text encoders' targets."""
    return TEXT_TARGETS[config.target_preset or "attention"]


def is_adapted(name: str, targets: Sequence[str]) -> bool:
    """Tell whether a layer's dotted name is a target or ends in one, whole words only, as in peft.

    Example:
        >>> is_adapted("mid_block.attentions.0.to_q", ("to_q",)), is_adapted("auto_q", ("to_q",))
        (True, False)
    """
    return any(name == target or name.endswith(f".{target}") for target in targets)
