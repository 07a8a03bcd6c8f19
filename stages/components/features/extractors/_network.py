"""The feature extractor, once for every network: pixels in, steps of one size, features out.

Images go through a network in steps of a fixed number, the last one filled up with copies, because
libraries choose other kernels for other sizes: so a slice has the same features in whatever batch
and order it comes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import MissingWeightsError, ValueRangeError

if TYPE_CHECKING:
    from torch import Tensor

CPU_STEP = 4  # of efficientnet_lite0: 19 ms an image on one core; 48 at 32, beyond the cache
GPU_STEP = 32


@dataclass(frozen=True)
class Normalisation:
    """How pixels x in [0, 255] are shown to a network: (x / white - mean) / std, by channel."""

    white: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = Normalisation(255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A network, ready to be called.

    Attributes:
        name: of the plug-in.
        network: in eval mode, on `device`.
        forward: takes normalised pixels, float32 (step, 3, input_size, input_size), and gives
            features (step, num_features).
        normalisation: None: `forward` is given the pixels in [0, 255].
        input_size: side of the network's input in px.
        num_features: numbers an image.
        digest: of the weights, SHA-256.
        device: where the network is.
    """

    name: str
    network: Any
    forward: "Callable[[Tensor], Tensor]"
    normalisation: Normalisation | None
    input_size: int
    num_features: int
    digest: str
    device: str

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute features of uint8 images (n, size, size, 3) as float32 (n, num_features).

        Images of another size than the network's are resized by `pixels.resize`. Deterministic;
        neither batch size nor order changes the features of an image.

        Raises:
            ValueRangeError: Not uint8, or not square with three channels.
        """
        import torch

        from stages.components.imaging.pixels import require_uint8, resize

        require_uint8(images, f"extractors/{self.name}")
        if images.ndim != 4 or images.shape[3] != 3 or images.shape[1] != images.shape[2]:
            raise ValueRangeError(
                f"extractors/{self.name} expects square images (n, size, size, 3), got "
                f"{images.shape}; pad them with extraction.to_square()"
            )
        step = CPU_STEP if self.device == "cpu" else GPU_STEP
        normalise = self._normaliser()
        parts = [np.zeros((0, self.num_features), dtype=np.float32)]
        with torch.inference_mode():
            for start in range(0, len(images), step):
                shown = images[start : start + step]
                batch = [resize(image, self.input_size) for image in shown]
                batch += [batch[-1]] * (step - len(shown))
                pixels = torch.from_numpy(np.stack(batch)).to(self.device)
                pixels = pixels.permute(0, 3, 1, 2).float()
                pixels = pixels.contiguous(memory_format=torch.channels_last)
                features = self.forward(normalise(pixels))
                parts.append(features[: len(shown)].float().cpu().numpy())
        return np.concatenate(parts)

    def _normaliser(self) -> "Callable[[Tensor], Tensor]":
        import torch

        if self.normalisation is None:
            return lambda pixels: pixels
        white = self.normalisation.white
        mean, std = (
            torch.tensor(values, device=self.device).view(1, 3, 1, 1)
            for values in (self.normalisation.mean, self.normalisation.std)
        )
        return lambda pixels: (pixels / white - mean) / std


def require(name: str, problems: Sequence[str]) -> None:
    """Stop where something keeps an extractor from loading.

    Raises:
        MissingWeightsError: There are problems; the message names the first.
    """
    if problems:
        raise MissingWeightsError(f"extractors/{name}: {problems[0]}")
