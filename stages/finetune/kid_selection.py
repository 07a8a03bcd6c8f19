"""Selection of the best state by KID: images of the model in training against validation slices.

The same prompts, seeds and real slices every time, features of efficientnet_lite0, the
unbiased distance. Test slices have no part in it. A KID of few images is noisy: differences below a
hundredth or so at 48 images say nothing, but the least of a curve is a fair choice.
"""

from dataclasses import dataclass

from pipeline.contracts import Context
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
from stages.finetune.training_set import CaptionedSlice, pick_held_out

FEATURE_BATCH = 16


@dataclass(frozen=True)
class KidProbe:
    """What every KID shares; `real` is float64 (slices, features)."""

    preview: Preview
    extractor: FeatureExtractor
    real: FloatArray


def require_slices(config: FinetuneConfig, samples: list[CaptionedSlice]) -> None:
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


def build_probe(
    base: BaseModel,
    samples: list[CaptionedSlice],
    config: FinetuneConfig,
    context: Context,
    device: str,
) -> KidProbe | None:
    """Choose prompts by seed, and compute the features of all captioned validation slices.

    None where the config does not select by KID.

    Raises:
        MissingWeightsError: The feature extractor's weights are not on this machine.
    """
    if not config.kid_selects:
        return None
    extractor = efficientnet_lite0.load(efficientnet_lite0.Settings(), device=device)
    images = (extraction.read_rgb(sample.path) for sample in samples)
    features = extraction.extract(
        [extractor], images, batch_size=FEATURE_BATCH, cache_dir=context.cache_dir
    )
    return KidProbe(
        preview=build_preview(
            base,
            pick_held_out(samples, config.select_images, context.seed),
            purpose="select",
            seed=context.seed,
            trains_text=config.trains_text,
        ),
        extractor=extractor,
        real=features[extractor.name],
    )


def compute_kid(trainer: Trainer, probe: KidProbe) -> float:
    """Return the KID of the model as it is now; every process gets the main one's."""
    from accelerate.utils import broadcast_object_list

    kids = [0.0]
    if trainer.accelerator.is_main_process:
        images = sample_images(trainer, probe.preview)
        features = extraction.extract([probe.extractor], images, batch_size=FEATURE_BATCH)
        synthetic = features[probe.extractor.name]
        kids = [kernel_distance.compute(real=probe.real, synthetic=synthetic)]
    broadcast_object_list(kids)
    return kids[0]
