import hashlib

import numpy as np
import pytest

from pipeline.contracts import SliceRecord
from pipeline.errors import DataError
from pipeline.settings import ProtectedConfig
from stages.classify import fairness
from stages.classify.diagnostics import Predictions

VALUES = ("f", "f", "f", "f", "m", "m", "m", "m", None)
TRUTH = np.array([1, 1, 0, 0, 1, 1, 0, 0, 1], bool)
ONCE = np.ones((1, 9))


def predictions(*called):
    return Predictions(np.asarray([called], float), TRUTH)


# f: both tumours and one false alarm; m: one tumour of two, no false alarm.
UNEQUAL = predictions(1, 1, 1, 0, 1, 0, 0, 0, 0)


def gap(predictions, criterion, weights=ONCE):
    return fairness.gap_draws(predictions, criterion, VALUES, weights)


def test_gaps_in_closed_form():
    assert gap(UNEQUAL, "independence")[0] == pytest.approx(3 / 4 - 1 / 4)
    assert gap(UNEQUAL, "separation")[0] == pytest.approx(1 - 1 / 2)
    # Predictive values: positive 2/3 and 1, negative 1 and 2/3.
    assert gap(UNEQUAL, "sufficiency")[0] == pytest.approx(1 / 3)


def test_equal_treatment_has_no_gap():
    equal = predictions(1, 0, 1, 0, 1, 0, 1, 0, 1)
    assert [gap(equal, name)[0] for name in fairness.CRITERIA] == [0, 0, 0]


def test_gaps_count_weights_and_the_operating_point():
    weights = np.array([[1, 1, 0, 1, 1, 0, 1, 1, 5]], float)
    assert gap(UNEQUAL, "independence", weights)[0] == pytest.approx(2 / 3 - 1 / 3)
    lenient = Predictions(UNEQUAL.probability, TRUTH, cuts=(0.0,))
    assert gap(lenient, "independence")[0] == 0


def test_a_group_with_nothing_to_count_has_no_gap():
    none = predictions(*[0] * 9)
    assert np.isnan(gap(none, "sufficiency")[0])
    assert gap(none, "independence")[0] == 0
    alone = fairness.gap_draws(none, "independence", ("f",) * 9, ONCE)
    assert np.isnan(alone[0])


def test_rates_stand_beside_the_gaps():
    table = fairness.table_rates(UNEQUAL, VALUES)
    assert table["f"] == {
        "n": 4,
        "tumours": 0.5,
        "called": 0.75,
        "sensitivity": 1.0,
        "false_positive_rate": 0.5,
        "positive_predictive_value": pytest.approx(2 / 3),
        "negative_predictive_value": 1.0,
    }
    assert (
        fairness.table_rates(predictions(*[0] * 9), VALUES)["m"]["positive_predictive_value"]
        is None
    )


def record(k):
    return SliceRecord(
        slice_id=f"s{k}",
        subject_id=f"p{k // 2}",
        group_id="g",
        source="test",
        split="test",
        label="glioma",
        image_path="x.png",
        original="x",
        original_width_px=8,
        original_height_px=8,
    )


RECORDS = [record(k) for k in range(4)]


def table(tmp_path, text, attribute="sex"):
    path = tmp_path / "table.csv"
    path.write_text(text)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return ProtectedConfig(attribute=attribute, table=str(path), sha256=digest)


def test_a_table_names_subjects_or_slices(tmp_path):
    by_subject = table(tmp_path, "subject_id,sex\np0,f\np1, m \n")
    assert fairness.read_attribute(by_subject, RECORDS) == ("f", "f", "m", "m")
    by_slice = table(tmp_path, "slice_id,sex\ns0,f\ns2,\n")
    assert fairness.read_attribute(by_slice, RECORDS) == ("f", None, None, None)


def test_tables_that_cannot_be_used_are_refused(tmp_path):
    good = table(tmp_path, "subject_id,sex\np0,f\n")
    (tmp_path / "table.csv").write_text("subject_id,sex\np0,m\n")
    with pytest.raises(DataError, match=r"sha256: .*table\.csv has [0-9a-f]{64}"):
        fairness.read_attribute(good, RECORDS)
    (tmp_path / "table.csv").unlink()
    with pytest.raises(DataError, match=r"no file '.*table\.csv'"):
        fairness.read_attribute(good, RECORDS)
    for text, message in (
        ("subject_id,age\np0,7\n", r"columns \['subject_id', 'age'\], expected 'sex'"),
        ("name,sex\np0,f\n", r"columns \['name', 'sex'\], expected 'sex' and one of"),
        ("subject_id,sex\np0,f\np0,m\n", "names 'p0' more than once in subject_id"),
        ("subject_id,sex\nq,f\n", "says nothing of the 4 test slices; .* looks like 'p0'"),
    ):
        with pytest.raises(DataError, match=message):
            fairness.read_attribute(table(tmp_path, text), RECORDS)
