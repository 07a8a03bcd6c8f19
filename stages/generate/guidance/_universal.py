"""Universal guidance towards a requested place: a judge of images steers the sampler's steps.

Source: Bansal et al., "Universal Guidance for Diffusion Models", CVPR Workshops 2023 (arXiv
2302.07121), forward guidance (equation 6): the clean image predicted at a step is judged, and the
gradient of the judge's loss with respect to the noisy latents, through the UNet, moves the
prediction. Departures: the judge is asked for a region, a side and a size in place of one mask; the
move is measured on the predicted clean latents, where its root mean square is

    strength * sqrt(1 - alpha_bar) * min(1, loss),

in place of a factor on the raw gradient, because that grows without bound at the first steps of
schedules that end in pure noise (alpha_bar near 0); and it fades as the request is met. There is no
backward guidance and no recurrence.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.contracts import TumorReport
from pipeline.errors import ValueRangeError
from stages.components.diffusion.latents import decode_latents
from stages.components.judge.network import JudgeConfig, Naming
from stages.generate.guidance._loss import location_loss

LEAST_SIGNAL = 2.0**-24  # as in diffusers, where alpha_bar ends at 0
PREDICTIONS = ("epsilon", "v_prediction")


class Guide(Protocol):
    """What guidance needs of a judge."""

    config: JudgeConfig

    def describe(self, images: Tensor) -> tuple[Tensor, Naming]:
        """Turn float32 images (n, 3, h, w) in [-1, 1] into lesion logits (n, 1, h, w) and names."""


@dataclass(frozen=True)
class LocationGuidance:
    """Moves predictions towards images in which the judge sees the lesion where it was asked for.

    Attributes:
        judge: differentiable, frozen.
        strength: see the module's formula; 1 moves clean latents by as much as they vary.
        share_of_steps: the first steps, where places are decided; the last are the model's own.
        image_size: px, at which the judge looks.
        reduction: clean latents are averaged over squares of this side before they are decoded.
    """

    judge: Guide
    strength: float
    share_of_steps: float
    image_size: int
    reduction: int = 1

    @contextmanager
    def steering(
        self, pipeline: Any, reports: Sequence[TumorReport], num_steps: int
    ) -> Iterator[None]:
        """Steer what a pipeline samples meanwhile: one image per report, in their order.

        The UNet's prediction for the prompt and the one without it are moved alike, so that
        classifier-free guidance keeps the move as it is.

        Raises:
            ValueRangeError: The model predicts neither noise nor velocity.
        """
        require_known_prediction(pipeline.scheduler)
        plain = pipeline.unet.forward
        left = math.ceil(self.share_of_steps * num_steps)

        def steered(sample: Tensor, timestep: Tensor, **given: Any) -> Any:
            nonlocal left
            if left == 0:
                return plain(sample, timestep, **given)
            left -= 1
            copies = len(sample) // len(reports)  # two under classifier-free guidance
            with torch.enable_grad():
                noisy = sample[: len(reports)].detach().float().requires_grad_()
                both = torch.cat([noisy] * copies).to(sample.dtype)
                output = plain(both, timestep, **given)[0]
                predicted = output.float()
                if copies == 2:
                    refused, wanted = predicted.chunk(2)
                    predicted = refused + pipeline.guidance_scale * (wanted - refused)
                signal = signal_share(pipeline.scheduler, timestep)
                clean = predict_clean(pipeline.scheduler, noisy, predicted, signal)
                loss = self.judge_latents(pipeline.vae, clean, reports)
                (gradient,) = torch.autograd.grad(loss.sum(), noisy)
            move = self.strength * towards(gradient, loss.detach())
            if pipeline.scheduler.config.prediction_type == "epsilon":
                move = move * math.sqrt(signal)
            return ((output.detach() + torch.cat([move] * copies).to(output.dtype)),)

        pipeline.unet.forward = steered
        try:
            yield
        finally:
            del pipeline.unet.forward  # the class's own is behind it

    def judge_latents(self, vae: Any, clean: Tensor, reports: Sequence[TumorReport]) -> Tensor:
        """Decode clean latents (n, channel, h, w) and return each image's loss, float32 (n,)."""
        if self.reduction > 1:
            clean = F.avg_pool2d(clean, self.reduction)
        images = decode_latents(vae, clean).float().clamp(-1, 1)
        size = (self.image_size, self.image_size)
        if images.shape[2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        lesion, named = self.judge.describe(images)
        return location_loss(lesion, named, reports, self.judge.config.regions)


def require_known_prediction(scheduler: Any) -> None:
    """Refuse a model whose output cannot be turned into a clean prediction.

    Raises:
        ValueRangeError: It predicts neither noise nor velocity.
    """
    kind = scheduler.config.prediction_type
    if kind not in PREDICTIONS:
        raise ValueRangeError(
            f"generate.guidance: expected a base model that predicts one of {PREDICTIONS}, found "
            f"{kind!r}; leave guidance out"
        )


def signal_share(scheduler: Any, timestep: Tensor | float) -> float:
    """Return alpha_bar at a timestep; between two, noise levels are interpolated as samplers do."""
    kept = np.asarray(scheduler.alphas_cumprod.detach().cpu(), dtype=np.float64)
    kept = np.maximum(kept, LEAST_SIGNAL)
    levels = np.sqrt((1 - kept) / kept)
    level = float(np.interp(float(timestep), np.arange(len(levels)), levels))
    return 1 / (1 + level**2)


def predict_clean(scheduler: Any, noisy: Tensor, predicted: Tensor, signal: float) -> Tensor:
    """Return the clean latents behind what the UNet was shown and what it predicted.

    Every sampler shows the UNet latents of variance 1, sqrt(alpha_bar) clean + sqrt(1 - alpha_bar)
    noise, whatever it keeps itself.
    """
    clean_part, noise_part = math.sqrt(signal), math.sqrt(1 - signal)
    if scheduler.config.prediction_type == "epsilon":
        return (noisy - noise_part * predicted) / clean_part
    return clean_part * noisy - noise_part * predicted


def towards(gradient: Tensor, loss: Tensor) -> Tensor:
    """Scale each image's gradient (n, ...) to a root mean square of min(1, loss); 0 stays 0."""
    size = gradient.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    return gradient / size.clamp(min=1e-20) * loss.clamp(max=1)[:, None, None, None]
