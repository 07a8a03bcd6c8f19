"""The poster: set from facts alone, one page, the same bytes; text from data is text."""

import io
import json
import shutil

import pytest
from PIL import Image

from pipeline.contracts import ArtifactWriter, Context, ScoreRecord
from pipeline.errors import DataError
from pipeline.settings import ReportConfig
from stages.report.poster import set_poster, write_poster
from stages.report.stage import STAGE
from tests.stages.report.parts import Fabricator


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("poster")
    inputs = Fabricator(folder / "inputs").inputs()
    out = folder / "report"
    out.mkdir()
    context = Context("fabricated", 11, "cpu", "float32", 1, folder / "cache", lambda line: None)
    config = ReportConfig(images_per_class=1, title="Odd *title* #panic() $x$ 脳腫瘍")
    STAGE.run(config, inputs, ArtifactWriter(out, ScoreRecord), context)
    return out


def read_facts(root):
    return json.loads((root / "facts.json").read_text(encoding="utf-8"))


def test_the_report_writes_one_page_of_a1(root):
    assert (root / "poster.pdf").read_bytes().startswith(b"%PDF")
    with Image.open(root / "poster.png") as image:
        assert (image.width, image.height) == (1403, 1987)


def test_facts_hold_what_the_poster_shows(root):
    facts = read_facts(root)
    assert facts["counts"]["rows"][1] == ["glioma", "3", "3", "3"]
    assert facts["arms"]["rows"][0][0] == "sd15-ovis"
    assert facts["claims"][4]["verdict"] == "in favour"
    assert "0.1500 (0.1350 to 0.1650)" in facts["sentences"][1]


def test_a_changed_fact_changes_the_poster_and_nothing_else_does(root, tmp_path):
    again = shutil.copytree(root, tmp_path / "again")
    facts = read_facts(again)
    pictures = {path.name: path.read_bytes() for path in (again / "poster").iterdir()}
    write_poster(again, facts, pictures)
    assert (again / "poster.pdf").read_bytes() == (root / "poster.pdf").read_bytes()
    facts["counts"]["rows"][1][1] = "987,654"
    write_poster(again, facts, pictures)
    before, after = (
        Image.open(io.BytesIO((folder / "poster.png").read_bytes())).convert("L")
        for folder in (root, again)
    )
    assert before.tobytes() != after.tobytes()


def test_a_poster_that_does_not_fit_one_page_is_refused(root, tmp_path):
    again = shutil.copytree(root, tmp_path / "again")
    facts = read_facts(again)
    pictures = {path.name: path.read_bytes() for path in (again / "poster").iterdir()}
    facts["limits"] *= 40
    with pytest.raises(DataError, match="the poster of 4 arms does not fit one page"):
        write_poster(again, facts, pictures)
    assert len(set_poster(again, 2, 1, format="png", ppi=20)) > 1
