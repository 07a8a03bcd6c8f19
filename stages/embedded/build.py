"""Make an embedded model from nothing but phantoms: `mrisynth embedded build NAME`.

Every part is seeded and goes on where a killed build stopped; what stands in `data/embedded` was
made by the modules that this one picks from.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from pipeline.errors import UnknownPluginError
from stages.components.networks.weights import Family
from stages.embedded.vlm_models import FAMILIES

BASES: dict[str, Family] = {"tiny_sd15": "sd", "tiny_sdxl": "sdxl"}
JUDGE = "judge"
NAMES = (*BASES, *FAMILIES, JUDGE)


def builder_of(name: str) -> Callable[..., Path]:
    """Return what builds the embedded model `name`, with the arguments of `build` but the name.

    Raises:
        UnknownPluginError: No embedded model of that name.
    """
    if name in FAMILIES:
        from stages.embedded import vlm_build

        return partial(vlm_build.build, name)
    if name == JUDGE:
        from stages.embedded import judge_build

        return judge_build.build
    if name in BASES:
        from stages.embedded import base_build

        return partial(base_build.build, name, BASES[name])
    raise UnknownPluginError(f"no embedded model named {name!r}; available: {', '.join(NAMES)}")


def build(
    name: str, *, out_dir: Path, cache_dir: Path, device: str, progress: Callable[[str], None]
) -> Path:
    """Build one embedded model and write it, in float16, with its card, to `out_dir / name`.

    Args:
        name: of `NAMES`.
        out_dir: parent of the model's folder.
        cache_dir: keeps phantoms and checkpoints; a second call goes on from them.
        device: "cpu" or "cuda".
        progress: takes one line at a time.

    Raises:
        UnknownPluginError: No embedded model of that name.
        TrainingError: The loss is not finite, or a checkpoint is damaged or another one's.
    """
    return builder_of(name)(out_dir=out_dir, cache_dir=cache_dir, device=device, progress=progress)
