"""What the frozen networks say about the training set, computed once: latents and text embeddings.

For each crop of each slice the posterior's mean and standard deviation are kept, not one sample of
it, and the trainer draws afresh every step: a single cached sample would freeze the augmentation.
Lesion masks are scaled to the latents' grid. Entries are keyed by the networks' weights.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import nn


def weights_digest(network: nn.Module, settings: Mapping[str, Any]) -> str:
    """Identify a network by its weights and settings, wherever its folder lies."""
    public = {key: value for key, value in settings.items() if not key.startswith("_")}
    digest = hashlib.sha256(repr(sorted(public.items())).encode())
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
