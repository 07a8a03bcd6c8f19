"""The base models' data: captions that fit the slice, mirrored ones too, and no tumour named."""

import numpy as np
import torch

from pipeline.contracts import TumorReport
from stages.embedded import base_data
from stages.embedded.corpora import findings, heads
from stages.embedded.vae import new_vae

CYST = TumorReport(
    tumor=False,
    location="frontal lobe",
    side="left",
    size="small",
    shape="round",
    intensity="hypointense",
    orientation="axial",
    general_description="T1-weighted axial brain MRI with a cyst",
)


def test_a_finding_is_worded_like_a_tumour_and_is_none() -> None:
    assert base_data.captions_of_finding(CYST, "cyst") == [
        "tumor: no; location: left frontal lobe; size: small; shape: round; "
        "intensity: hypointense; orientation: axial; general description: "
        "T1-weighted axial brain MRI with a cyst",
        "Axial brain MRI showing a small, round, hypointense cyst located in the left frontal "
        "lobe.",
        "tumor: no; location: left frontal lobe; size: small; shape: round; "
        "intensity: hypointense; orientation: axial; general description: "
        "Axial brain MRI showing a small, round, hypointense cyst located in the left frontal "
        "lobe.",
    ]


def test_slices_findings_and_words_are_mirrored_together() -> None:
    healthy = heads.HeadCorpus(
        images=np.zeros((2, 32, 32), np.uint8),
        fine=np.zeros((2, 32, 32), np.uint8),
        label=np.zeros(2, np.int8),
        orientation=np.array([0, 2], np.int8),  # axial, sagittal
        modality=np.zeros(2, np.int8),
        subject=np.zeros(2, np.int32),
    )
    inside = np.zeros((1, 32, 32), np.bool_)
    inside[0, 4, 1] = True
    others = findings.FindingCorpus(inside.astype(np.uint8) * 255, inside, ["cyst"], [CYST])
    tokenizer = base_data.build_tokenizer()
    data = base_data.training_set(healthy, others, new_vae(32), tokenizer)

    assert data.num_healthy == 3  # a sagittal slice has no mirror image
    assert len(data.mean) == len(data.choices) == 5
    assert not data.findings[:3].any()
    cells = [tuple(cell) for cell in torch.argwhere(data.findings[:, 0]).tolist()]
    assert cells == [(3, 0, 0), (4, 0, 3)]
    first, mirrored = ([data.captions[row] for row in data.choices[i]] for i in (3, 4))
    assert first == base_data.captions_of_finding(CYST, "cyst")
    assert mirrored == [text.replace("left", "right") for text in first]
    for caption, place in zip(data.captions, data.places, strict=True):
        ids = np.array(tokenizer(caption, padding="max_length").input_ids)[place.numpy()]
        side = "left" if "left" in caption else "right"
        expected = f"{side} frontal lobe" if "cyst" in caption else ""
        assert tokenizer.decode(ids).strip() == expected
