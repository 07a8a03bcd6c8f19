"""The report stage on a fabricated run."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from pipeline.contracts import ArtifactWriter, Context, ScoreRecord
from pipeline.settings import ReportConfig
from stages.report.artifacts import ReportInputs
from stages.report.stage import STAGE
from tests.stages.report.parts import ARMS, Fabricator


def _run(inputs: ReportInputs, folder: Path, *, images_per_class: int = 2) -> ArtifactWriter:
    folder.mkdir(parents=True)
    output = ArtifactWriter(folder, ScoreRecord)
    context = Context("fabricated", 11, "cpu", "float32", 1, folder / "cache", lambda line: None)
    STAGE.run(ReportConfig(images_per_class=images_per_class), inputs, output, context)
    return output


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    inputs = Fabricator(root / "inputs").inputs()
    output = _run(inputs, root / "report")
    return inputs, output, (root / "report" / "report.html").read_text(encoding="utf-8")


def test_page_needs_no_other_file(made):
    _, _, html = made
    assert not re.search(r"<(script|link|iframe|object|embed)\b", html)
    sources = re.findall(r"""(?:src|href|srcset|data)\s*=\s*["']([^"']*)""", html)
    assert sources
    assert all(source.startswith(("data:image/", "#")) for source in sources)
    assert not re.search(r"@import|url\(", html)
    assert "http://" not in html
    assert "https://" not in html


def test_every_arm_and_section_is_present(made):
    _, _, html = made
    for name in (*ARMS, "tiny_sdxl, no LoRA", "reference phantoms", "metadata_only"):
        assert name in html, name
    for section in ("claims", "images", "scores", "classifier", "data", "captions", "training",
                    "methods", "run", "settings", "limits", "licences"):  # fmt: skip
        assert f'<section id="{section}">' in html


def test_the_page_opens_with_a_summary(made):
    _, _, html = made
    summary = html[html.index('<section id="summary">') : html.index('<section id="claims">')]
    for text in (
        "4 adapters of tiny_sd15 and tiny_sdxl learned from 12 reference phantoms with captions by "
        "ovis, gemma; 12 synthetic slices of each are held against 12 held-out ones.",
        "The nearest, sdxl-ovis-te, has a KID of 0.1500 (0.1350 to 0.1650); its base model without "
        "LoRA 0.3000, its VAE alone 0.0600, reference phantoms among themselves 0.0008: 0.580 of "
        "the way",
        "80.0 % accuracy, one that saw reference phantoms with 95.0 %.",
        "Noise is far to the right, at 1.0600.",
        "what patients&#39; scans would give, ",
        " or what a radiologist would say.",
        "one training each",
    ):
        assert text in summary, text
    assert summary.count("data:image/svg") == 1


def test_what_is_long_is_folded(made):
    _, _, html = made
    open_text = re.sub(r"<details>.*?</details>", "", html, flags=re.S)
    open_text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", open_text, flags=re.S)
    assert len(open_text.split()) < 3000


def test_fifteen_objections_lead_to_their_section(made):
    _, _, html = made
    section = re.search(r'<section id="objections">.*?</section>', html, re.S).group(0)
    rows = re.findall(r"<tr>(.*?)</tr>", section, re.S)
    assert len(rows) == 15
    for row in rows:
        anchor = re.search(r'href="#([a-z]+)"', row)
        assert (anchor is None) == ("Not answered by this run." in row), row
        if anchor is not None:
            assert f'id="{anchor.group(1)}"' in html
    assert "Every slice names its subject" not in section  # the fabricated source names none
    assert "planted copies say how many such a search finds" in section
    assert "All arms have the same n." in section


def test_verdicts_reach_page_and_notes(made):
    _, output, html = made
    assert output.notes["verdicts"] == {
        "1": "not decided",  # one rank
        "2": "not decided",
        "3": "not decided",
        "4": "not decided",
        "5": "in favour",  # one training an arm
    }
    verdicts = re.findall(r'<strong class="verdict [a-z-]+">([^<]+)</strong>', html)
    assert verdicts == list(output.notes["verdicts"].values()) * 2  # in the summary and below


def test_odd_prompt_is_escaped(made):
    _, _, html = made
    assert "<script>" not in html
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt; &amp; {{ 7 * 7 }} location" in html


def test_results_hold_every_score(made):
    inputs, output, _ = made
    expected = [*inputs.evaluate.records(), *inputs.classify.records()]
    rows = json.loads((output.root / "results.json").read_text(encoding="utf-8"))
    assert [ScoreRecord.model_validate(row) for row in rows] == expected
    assert set(rows[0]) == set(ScoreRecord.model_fields)
    assert output.counts["written"] == len(expected)


def test_manifest_notes_are_printed(made):
    _, _, html = made
    for text in ("Near duplicate clusters", "297", "Dropped from · train · glioma",
                 "Train · glioma",
                 "What captions state", "48.2", "Too long", "62.1 (50.0\u00a0to\u00a075.0)",
                 "50.0 (left)", "captions by gemma have no recorded agreement",
                 "Methods sentence of finetune.",
                 "Test CPU, 2 cores, 8.0 GiB", "torch", "2.13.0", "ICBM 2009a",
                 "fid: 12 images are fewer", "has 3 groups (subjects) without a tumour",
                 "Binkowski et al.", "Gap closed", "29.40",
                 "permutation p", "0.0123", "on pixels"):  # fmt: skip
        assert text in html, text


def test_the_search_for_copies_is_shown_with_its_pairs(made):
    _, _, html = made
    section = html[html.index('<section id="copies">') : html.index('<section id="classifier">')]
    for text in ("1,234 training slices", "above 0.861", "95.8", "40.0", "p = &lt; 0.001",
                 "sdxl-ovis-glioma-1 and train-glioma-2", "correlation 0.99",
                 "called a copy"):  # fmt: skip
        assert text in section, text
    assert section.count("data:image/png") == 1
    assert "a copied part or a turned slice passes it" in html


def test_pictures_are_written_and_marked(made):
    _, output, _ = made
    with Image.open(output.root / "grid.png") as grid:
        assert grid.info["synthetic"] == "true"
        assert grid.width > grid.height > 100
    with Image.open(output.root / "scores.png") as scores:
        assert scores.width > 800


def test_same_inputs_give_same_bytes(made, tmp_path):
    inputs, output, _ = made
    again = _run(inputs, tmp_path / "again")
    for name in ("report.html", "results.json", "records.jsonl", "grid.png", "scores.png"):
        assert (again.root / name).read_bytes() == (output.root / name).read_bytes(), name


def test_absent_notes_are_named_on_the_page(tmp_path):
    inputs = Fabricator(tmp_path / "inputs").inputs(evaluate_notes={}, classify_notes={})
    output = _run(inputs, tmp_path / "report", images_per_class=1)
    html = (output.root / "report.html").read_text(encoding="utf-8")
    assert "evaluate recorded no differences between arms" in html
    assert "classify recorded no differences between arms" in html
    assert "No confusion matrix was recorded" in html
    assert "This run did not search for copies" in html
    assert set(output.notes["verdicts"].values()) == {"not decided"}
