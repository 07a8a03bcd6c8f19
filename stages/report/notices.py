"""Notices of the page: limits and licences, chosen by what the run used."""

from collections.abc import Iterable

from pipeline.contracts import Licence, Part
from stages.report.arms import Arm

CODE = Licence(part="mrisynth", terms="MIT.")


def list_licences(arms: Iterable[Arm], others: Iterable[Part] = ()) -> list[Licence]:
    """List the terms of all parts once: this project's, base models', captioners', others'."""
    given = list(arms)
    bases = {arm.base_model or "": arm.base for arm in given if arm.base is not None}
    captioners = {arm.vlm or "": arm.captioner for arm in given if arm.captioner is not None}
    parts = [
        *sorted((bases[name] for name in sorted(bases)), key=lambda part: not part.is_embedded),
        *(captioners[name] for name in sorted(captioners)),
        *others,
    ]
    return [CODE, *dict.fromkeys(part.licence for part in parts if part.licence is not None)]


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
    tiny = sorted({arm.base_model or "" for arm in arms if arm.base and arm.base.is_embedded})
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
