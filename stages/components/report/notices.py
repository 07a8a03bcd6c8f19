"""What the page says about limits and licences, chosen by what the run used."""

from collections.abc import Iterable
from dataclasses import dataclass

from stages.components.report.arms import Arm


@dataclass(frozen=True)
class Licence:
    """A part that the run used, and what its terms say."""

    part: str
    terms: str


CODE = Licence("mrisynth", "MIT.")
BASE_MODEL_LICENCES = {
    "sd15": Licence(
        "Stable Diffusion 1.5", "CreativeML Open RAIL-M; excludes giving medical advice."
    ),
    "sdxl": Licence(
        "Stable Diffusion XL 1.0", "CreativeML Open RAIL++-M; excludes giving medical advice."
    ),
}
VLM_LICENCES = {
    "ovis": Licence("Ovis2", "Apache 2.0."),
    "gemma": Licence("Gemma 3", "Gemma terms of use, with a list of prohibited uses."),
    "llava_med": Licence("LLaVA-Med 1.5", "Research only."),
    "gemini": Licence("Gemini", "Google's API terms; images leave the machine."),
}


def list_licences(arms: Iterable[Arm]) -> list[Licence]:
    """List the terms of the parts that the arms used, this project's first."""
    base_models = sorted({arm.base_model for arm in arms if arm.base_model is not None})
    vlms = sorted({arm.vlm for arm in arms if arm.vlm is not None})
    embedded = [name for name in base_models if name.startswith("tiny_")]
    return [
        CODE,
        *(Licence(name, "Embedded weights of this project, MIT.") for name in embedded),
        *(BASE_MODEL_LICENCES[name] for name in base_models if name in BASE_MODEL_LICENCES),
        *(VLM_LICENCES[name] for name in vlms if name in VLM_LICENCES),
    ]


def list_limits(
    *,
    arms: Iterable[Arm],
    source: str | None,
    features: str | None,
    has_subjects: bool,
    has_copies: bool = False,
    has_location: bool = False,
) -> list[str]:
    """List what the run cannot show."""
    limits = []
    base_models = {arm.base_model for arm in arms if arm.base_model is not None}
    tiny = sorted(name for name in base_models if name.startswith("tiny_"))
    if tiny:
        limits.append(
            f"{' and '.join(tiny)} are models of a few million parameters made for this project. "
            "They run the poster's code at a small size; what holds for them need not hold for "
            "Stable Diffusion."
        )
    if source == "phantom":
        limits.append(
            "The “real” slices are computed phantoms, not patients. Scores tell how near the "
            "generator comes to phantoms."
        )
    if features == "efficientnet_lite0":
        limits.append(
            "KID and FID are computed on efficientnet_lite0 features. They are not the FID and "
            "KID of Inception features that papers report, nor the poster's VGG-16 distances, "
            "and can be compared with neither."
        )
    if not has_subjects:
        limits.append(
            "The source names no subjects. Near-duplicates are kept on one side of the split, "
            "but different slices of one patient can fall on both; intervals resample slices "
            "or clusters, not patients."
        )
    limits += [
        "One run seed: intervals cover which slices were drawn, not what another training run "
        "would give.",
        (
            "Whether a tumour lies where the prompt asks is read by a network trained on real "
            "slices. How well it reads generated ones is not known: its row through the VAE comes "
            "nearest to them."
            if has_location
            else "Whether a tumour lies where the prompt asks is not measured."
        ),
        (
            "The search for copies finds whole slices, shifted, mirrored or recoloured; a copied "
            "part or a turned slice passes it, so look before images leave the machine."
            if has_copies
            else "Whether the generator memorised training slices is not measured; look before "
            "images leave the machine."
        ),
        "No radiologist judged these images. Grids show slices of the source as they are: mind "
        "its terms before passing the page on.",
    ]
    return limits
