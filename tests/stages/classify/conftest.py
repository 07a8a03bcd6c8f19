"""Slices and two arms, one of which shows no tumours."""

import pytest

from stages.classify import stage as classify
from tests.stages.classify.parts import write_arm, write_slices


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    return classify.ClassifyInputs(
        preprocess=write_slices(root / "preprocess", {"train": 20, "val": 10, "test": 10}),
        generate={
            "good": write_arm(root / "good"),
            "poor": write_arm(root / "poor", is_faithful=False),
        },
    )
