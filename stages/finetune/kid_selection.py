"""Selection of the best state by KID: images of the model in training against validation slices.

The same prompts, seeds and real slices at every judgement, features of efficientnet_lite0, the
unbiased distance. Test slices have no part in it. A KID of few images is noisy: differences below a
hundredth or so at 48 images say nothing, but the least of a curve is a fair choice.
"""

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import SampleSizeError
from pipeline.settings import FinetuneConfig
from stages.components.diffusion.base_model import BaseModel
from stages.components.features import extraction
from stages.components.features.extraction import FeatureExtractor
from stages.components.features.extractors import efficientnet_lite0
from stages.components.statistics import kernel_distance
from stages.components.statistics.bootstrap import FloatArray
from stages.finetune.preview import Preview, build_preview, sample_images
from stages.finetune.trainer import Trainer
from stages.finetune.training_set import Sample, pick_held_out

FEATURE_BATCH = 16


@dataclass(frozen=True)
class KidJudge:
    """What every judgement shares; `real` is float64 (slices, features)."""

    preview: Preview
    extractor: FeatureExtractor
    real: FloatArray


def require_slices(config: FinetuneConfig, samples: list[Sample]) -> None:
    """Refuse a selection for which there are too few validation slices.

    Raises:
        SampleSizeError: There are fewer captioned ones than images to be sampled.
    """
    if config.kid_selects and len(samples) < config.select_images:
        raise SampleSizeError(
            f"finetune.select_by kid samples {config.select_images} images from captions of "
            f"validation slices (finetune.select_images), but there are {len(samples)}; raise "
            "preprocess.val_fraction, lower select_images to that many (at least 8), or select by "
            "held_out_loss"
        )


def build_judge(
    base: BaseModel,
    samples: list[Sample],
    config: FinetuneConfig,
    *,
    seed: int,
    device: str,
    cache_dir: Path,
) -> KidJudge:
    """Choose prompts by seed, and compute the features of all captioned validation slices.

    Raises:
        MissingWeightsError: The feature extractor's weights are not on this machine.
    """
    extractor = efficientnet_lite0.load(efficientnet_lite0.Settings(), device=device)
    images = (extraction.read_rgb(sample.path) for sample in samples)
    features = extraction.extract(
        [extractor], images, batch_size=FEATURE_BATCH, cache_dir=cache_dir
    )
    return KidJudge(
        preview=build_preview(
            base,
            pick_held_out(samples, config.select_images, seed),
            purpose="select",
            seed=seed,
            trains_text=config.trains_text,
        ),
        extractor=extractor,
        real=features[extractor.name],
    )


def compute_kid(trainer: Trainer, judge: KidJudge) -> float:
    """Return the KID of the model as it is now; every process gets the main one's."""
    from accelerate.utils import broadcast_object_list

    found = [0.0]
    if trainer.accelerator.is_main_process:
        images = sample_images(trainer, judge.preview)
        features = extraction.extract([judge.extractor], images, batch_size=FEATURE_BATCH)
        found = [kernel_distance.compute(real=judge.real, synthetic=features[judge.extractor.name])]
    broadcast_object_list(found)
    return found[0]
