"""Attention of the class token in the last layer, the mean over heads; knows nothing of classes.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; Caron et al., "Emerging
properties in self-supervised vision transformers", ICCV 2021 (the class token's attention as map).
"""

from typing import TYPE_CHECKING

from stages.classify.maps import Attentive, Maps, enlarge, needs_attention, square_of

if TYPE_CHECKING:
    from torch import Tensor, nn

CITATION = "Caron et al., ICCV 2021"
find_obstacle = needs_attention


def explain(network: "nn.Module", images: "Tensor", *, target: int, seed: int) -> Maps:
    """Map how much of each patch reaches the class token; `target` and `seed` are not used."""
    import torch

    assert isinstance(network, Attentive)  # find_obstacle has been asked
    with torch.inference_mode():
        last = network.attentions(images)[-1]
        return enlarge(
            square_of(last.mean(dim=1)[:, 0, 1:]), (images.shape[2], images.shape[3]), "nearest"
        )
