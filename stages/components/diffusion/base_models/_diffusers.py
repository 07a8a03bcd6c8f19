"""What a base-model plug-in exposes, for any checkpoint in the layout of diffusers.

A file in `base_models/` names its default weights and its licence and takes the rest from here.
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pipeline.contracts import Licence, Part
from pipeline.downloads import Download
from stages.components.networks import weights
from stages.components.networks.weights import Family, ModelSettings

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, DiffusionPipeline
    from transformers import CLIPTokenizer

    from stages.components.diffusion.base_model import BaseModel


@dataclass(frozen=True)
class DiffusersPlugin:
    """A base model of one family; `remedy` is said when its weights are missing.

    `licence` is of the checkpoints that the plug-in is made for, ours apart.
    """

    family: Family
    remedy: str
    licence: Licence | None = None

    def identify(self, settings: ModelSettings) -> Part:
        """Say what the model is, and under which terms."""
        name = PurePosixPath(settings.model).name
        if weights.is_embedded(settings.model):
            return weights.identify_embedded(name)
        return Part(name=name, licence=self.licence)

    def check(self, settings: ModelSettings) -> list[str]:
        """List all that keeps the model from loading, each with what to do; loads no weights."""
        lines = weights.problems(
            settings.model,
            settings.revision,
            self._parts(settings),
            settings.variant,
            self.remedy,
        )
        folder = weights.find_folder(settings.model, settings.revision)
        if folder is not None and not lines:
            lines += weights.class_problems(folder, self.family)
        if settings.vae is not None:
            lines += weights.problems(settings.vae, settings.vae_revision, [""], None, "")
        return lines

    def downloads(self, settings: ModelSettings) -> list[Download]:
        """List what of the hub the model is made of; none of it where folders are named."""
        parts = self._parts(settings)
        named = [(settings.model, settings.revision, parts, settings.variant)]
        if settings.vae is not None:
            named.append((settings.vae, settings.vae_revision, [""], None))
        files = [weights.hub_files(*source, self.licence) for source in named]
        return [item for item in files if not weights.is_folder_name(item.name)]

    def read_networks(self, settings: ModelSettings) -> dict[str, dict[str, tuple[int, ...]]]:
        """Read the shapes of all weights from their headers; empty while weights are missing.

        Returns:
            Part ("unet", "vae", "text_encoder", ...) to tensor name to shape; loads no weights.
        """
        if self.check(settings):
            return {}
        folder = weights.find_folder(settings.model, settings.revision)
        assert folder is not None
        places = {part: (folder / part, settings.variant) for part in weights.NETWORKS[self.family]}
        if settings.vae is not None:
            vae = weights.find_folder(settings.vae, settings.vae_revision)
            assert vae is not None
            places["vae"] = (vae, None)
        return {part: weights.read_shapes(*place) for part, place in places.items()}

    def input_digest(self, settings: ModelSettings) -> str:
        """Identify the weights, for freshness: they are an input like any other."""
        digest = weights.digest_of(settings.model, settings.revision, settings.variant)
        if settings.vae is None:
            return digest
        return f"{digest}+{weights.digest_of(settings.vae, settings.vae_revision, None)}"

    def load_tokenizers(self, settings: ModelSettings) -> "list[CLIPTokenizer]":
        """Load the tokenizers alone; the networks need not be there.

        Raises:
            MissingWeightsError: They are not on this machine.
        """
        from transformers import CLIPTokenizer

        parts = weights.TOKENIZERS[self.family]
        weights.require(
            weights.problems(settings.model, settings.revision, parts, None, self.remedy)
        )
        folder = weights.find_folder(settings.model, settings.revision)
        assert folder is not None
        return [CLIPTokenizer.from_pretrained(folder / part) for part in parts]

    def load_pipeline(
        self,
        settings: ModelSettings,
        *,
        device: "torch.device | str",
        dtype: "torch.dtype",
        adapter_dir: Path | None = None,
    ) -> "DiffusionPipeline":
        """Load the whole pipeline for sampling, with an adapter if one is given.

        Raises:
            MissingWeightsError: Something is not on this machine; says what to do.
        """
        from stages.components.diffusion import adapters, base_model

        weights.require(self.check(settings))
        folder = weights.find_folder(settings.model, settings.revision)
        assert folder is not None
        vae_dir = None
        if settings.vae is not None:
            vae_dir = weights.find_folder(settings.vae, settings.vae_revision)
        pipeline = base_model.load_pipeline(
            self.family, folder, vae_dir=vae_dir, variant=settings.variant, dtype=dtype
        )
        if adapter_dir is not None:
            adapters.load_adapter(pipeline, adapter_dir)
        return pipeline.to(device)

    def load(
        self, settings: ModelSettings, *, dtype: "torch.dtype", device: "torch.device | str"
    ) -> "BaseModel":
        """Load the parts for training: frozen, in evaluation mode, on `device`.

        The VAE is float32 whatever `dtype` is: it runs once per image, and SDXL's own overflows in
        half precision.

        Raises:
            MissingWeightsError: Something is not on this machine; says what to do.
        """
        import torch

        from stages.components.diffusion import base_model

        pipeline = self.load_pipeline(settings, device=device, dtype=dtype)
        pipeline.vae.to(torch.float32)
        return base_model.parts_of(pipeline)

    def load_vae(self, settings: ModelSettings, *, device: "torch.device | str") -> "AutoencoderKL":
        """Load the VAE alone, frozen, float32; nothing else of the model need be there.

        Raises:
            MissingWeightsError: It is not on this machine; says what to do.
        """
        from stages.components.diffusion import base_model

        name, revision, part, variant = settings.model, settings.revision, "vae", settings.variant
        if settings.vae is not None:
            name, revision, part, variant = settings.vae, settings.vae_revision, "", None
        weights.require(weights.problems(name, revision, [part], variant, self.remedy))
        folder = weights.find_folder(name, revision)
        assert folder is not None
        return base_model.load_vae(folder / part, variant).to(device)

    def _parts(self, settings: ModelSettings) -> list[str]:
        """Name the subfolders that are read; the VAE's may be another model."""
        parts = [*weights.NETWORKS[self.family], *weights.TOKENIZERS[self.family], "scheduler"]
        return [part for part in parts if part != "vae" or settings.vae is None]
