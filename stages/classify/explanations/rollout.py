"""Attention followed through all layers, half of each layer passed on by its skip connection.

In a network of one layer it is that layer's attention, but for a factor. Knows nothing of classes.

Source: Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020.
"""

from typing import TYPE_CHECKING

from stages.classify.maps import Attentive, Maps, enlarge, needs_attention, square_of

if TYPE_CHECKING:
    from torch import Tensor, nn

CITATION = "Abnar and Zuidema, ACL 2020"
find_obstacle = needs_attention


def explain(network: "nn.Module", images: "Tensor", *, target: int, seed: int) -> Maps:
    """Map the product of (attention + identity) / 2; `target` and `seed` are not used."""
    import torch

    assert isinstance(network, Attentive)  # find_obstacle has been asked
    with torch.inference_mode():
        flow: Tensor | None = None
        for layer in network.attentions(images):
            mean = layer.double().mean(dim=1)
            passed = (mean + torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)) / 2
            flow = passed if flow is None else passed @ flow
        assert flow is not None  # a network of attention has a layer
        return enlarge(square_of(flow[:, 0, 1:]), (images.shape[2], images.shape[3]), "nearest")
