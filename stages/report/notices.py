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


Limit = tuple[str, str]  # what the run cannot show, and why


def list_limits(
    *,
    arms: Iterable[Arm],
    source: Part,
    features: str | None,
    has_subjects: bool,
    has_copies: bool = False,
    has_location: bool = False,
) -> list[Limit]:
    """List what the run cannot show, each in a few words and in full."""
    limits: list[Limit] = []
    tiny = sorted({arm.base_model or "" for arm in arms if arm.base and arm.base.is_embedded})
    if tiny:
        limits.append(
            (
                "what Stable Diffusion would do",
                f"{' and '.join(tiny)} are models of a few million parameters made for this "
                "project. They run the poster's code at a small size; what holds for them need "
                "not hold for Stable Diffusion.",
            )
        )
    if source.limit:
        what, _, why = source.limit.partition(": ")
        limits.append((what, why))
    if features == "efficientnet_lite0":
        limits.append(
            (
                "distances as papers report them",
                "KID and FID are computed on efficientnet_lite0 features. They are not the FID "
                "and KID of Inception features that papers report, nor the poster's VGG-16 "
                "distances, and can be compared with neither.",
            )
        )
    if not has_subjects:
        limits.append(
            (
                "other patients",
                "The source names no subjects. Near-duplicates are kept on one side of the split, "
                "but different slices of one patient can fall on both; intervals resample slices "
                "or clusters, not patients.",
            )
        )
    limits.append(
        (
            "what another training would give",
            "One run seed, and one training an arm: intervals cover which slices were drawn.",
        )
    )
    limits.append(
        (
            "how well the judge reads what is generated",
            "Whether a tumour lies where the prompt asks is read by a network trained on "
            f"{source.slices}. How well it reads generated ones is not known: its row through the "
            "VAE comes nearest to them.",
        )
        if has_location
        else (
            "whether prompts are followed",
            "Whether a tumour lies where the prompt asks is not measured.",
        )
    )
    limits.append(
        (
            "copies of parts",
            "The search for copies finds whole slices, shifted, mirrored or recoloured; a copied "
            "part or a turned slice passes it, so look before images leave the machine.",
        )
        if has_copies
        else (
            "whether training slices were copied",
            "Whether the generator memorised training slices is not measured; look before "
            "images leave the machine.",
        )
    )
    limits.append(
        (
            "what a radiologist would say",
            "None judged these images. Grids show slices of the source as they are: mind its "
            "terms before passing the page on.",
        )
    )
    return limits
