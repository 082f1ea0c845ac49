"""Tables from evaluations: what stands beside what, and when differences mean something."""

import pytest
from omegaconf import OmegaConf

from lfvit.results.artifacts.content import Findings, table
from lfvit.results.artifacts.figures import cost_at
from lfvit.results.artifacts.measures import MEASURES, operating_point
from lfvit.results.artifacts.spec import Artifact
from lfvit.results.artifacts.write import format_value, markdown

CURVE = [
    {"threshold": 0.47, "top1": 79.0, "exit_fraction": 0.8, "gmacs": 1.7},
    {"threshold": 1.0, "top1": 80.9, "exit_fraction": 0.0, "gmacs": 3.8},
]
TWO_PASS = {
    "first": {"top1": 76.0, "gmacs": 1.1},
    "second": {"top1": 81.0, "gmacs": 3.8},
    "curve": CURVE,
    "calibrated": {"threshold": 0.47, "top1": 79.1, "exit_fraction": 0.79, "gmacs": 1.75},
}
ONE_PASS = {"first": {"top1": 79.9, "gmacs": 4.6}, "second": None, "curve": []}


def findings(tmp_path, comparable=True, **evaluations):
    scale = OmegaConf.create({"comparable": comparable})
    return Findings(scale, evaluations, {"gone": "no reason"}, frozenset(), {}, tmp_path)


def artifact(*rows, **settings):
    settings = {"kind": "table", "measures": ["top1", "gmacs"], **settings}
    return Artifact("name", "A title", "Why?", rows=list(rows), **settings)


ROWS = (
    {"model": "DeiT-S", "run": "vit"},
    {"model": "LF-ViT", "m": 5, "eta": 0.47, "run": "lf_vit"},
    {"model": "Mine", "run": "gone"},
)


def test_published_rows_keep_their_order_and_ours_stand_beside(tmp_path):
    source = ["lf_vit.table3_token_slimming"]
    found = findings(tmp_path, vit=[ONE_PASS], lf_vit=[TWO_PASS])
    content = table(artifact(*ROWS, published=source), found)
    deit, dynamic, *_ = content.rows
    assert (deit["model"], deit["top1"], deit["top1_paper"]) == ("DeiT-S", 79.9, 79.8)
    assert deit["top1_difference"] == pytest.approx(0.1)
    assert (dynamic["model"], dynamic["source"]) == ("DynamicViT", "published only")
    assert dynamic["top1"] is dynamic["top1_difference"] is None
    (ours,) = [row for row in content.rows if row["eta"] == 0.47]
    assert (ours["top1"], ours["gmacs"], ours["source"]) == (79.0, 1.7, "measured")
    assert ours["gmacs_difference"] == pytest.approx(0)
    last = content.rows[-1]
    assert (last["model"], last["top1"], last["source"]) == ("Mine", None, "left out")


def test_differences_are_given_at_a_comparable_scale_alone(tmp_path):
    found = findings(tmp_path, comparable=False, vit=[ONE_PASS])
    content = table(artifact(ROWS[0], published=["lf_vit.table3_token_slimming"]), found)
    keys = [column["key"] for column in content.columns]
    assert keys == ["model", "m", "eta", "top1", "top1_paper", "gmacs", "gmacs_paper", "source"]


def test_seeds_become_mean_and_spread(tmp_path):
    other = {**ONE_PASS, "first": {"top1": 79.5, "gmacs": 4.6}}
    row = table(artifact(ROWS[0]), findings(tmp_path, vit=[ONE_PASS, other])).rows[0]
    assert row["top1"] == pytest.approx(79.7)
    assert row["top1_spread"] == pytest.approx(0.4 / 2**0.5)
    assert row["gmacs_spread"] == 0


@pytest.mark.parametrize(
    ("row", "top1"),
    [
        ({}, 81.0),
        ({"at": "both"}, 81.0),
        ({"at": "first"}, 76.0),
        ({"at": "calibrated"}, 79.1),
        ({"eta": 0.47}, 79.0),
        ({"eta": 1.0}, 80.9),
    ],
)
def test_operating_points(row, top1):
    assert operating_point(TWO_PASS, row)["top1"] == top1


def test_measures_of_both_passes():
    values = {
        key: measure.of(TWO_PASS, operating_point(TWO_PASS, {"eta": 0.47}))
        for key, measure in MEASURES.items()
        if measure.of is not None
    }
    assert values == pytest.approx(
        {
            **{"top1": 79.0, "gmacs": 1.7, "first": 76.0, "second": 81.0},
            **{"exits": 80.0, "second_share": 20.0, "threshold": 0.47},
        }
    )
    assert MEASURES["second"].of(ONE_PASS, ONE_PASS["first"]) is None


def test_cost_at_equal_accuracy():
    line = [
        {"top1": 72.0, "gmacs": 1.0},
        {"top1": 80.0, "gmacs": 5.0},
        {"top1": 81.0, "gmacs": 9.0},
    ]
    assert cost_at(line, 76.0) == pytest.approx(3.0)
    assert cost_at(line, 80.5) == pytest.approx(7.0)
    assert cost_at(line, 81.0) == pytest.approx(9.0)
    assert cost_at(line, 71.9) is cost_at(line, 81.1) is None


def test_values_are_shown_with_their_digits():
    difference = {"key": "top1_difference", "unit": "%", "digits": 2}
    assert format_value(0.1, difference) == "+0.10"
    assert format_value(None, difference) == ""
    assert format_value(3, {"key": "m", "unit": None, "digits": 0}) == "3"
    assert format_value(0.47, {"key": "eta", "unit": None, "digits": 0}) == "0.47"
    assert format_value(1234.5, {"key": "throughput", "unit": "images/s", "digits": 0}) == "1234"


def test_a_page_says_where_it_came_from(tmp_path):
    content = table(artifact(ROWS[0]), findings(tmp_path, vit=[ONE_PASS]))
    text = markdown(
        {
            **{"name": "n", "title": "A title", "question": "Why?", "paper": "LF-ViT, Table 9"},
            **{"kind": "table", "label": "A label.", "notes": ["A note."], "commit": "abc"},
            **{"columns": content.columns, "rows": content.rows, "command": "c", "machine": "m"},
        }
    )
    assert "# A title\n\nWhy? (LF-ViT, Table 9)\n\n**A label.**" in text
    assert "| model | top-1 (%) | GMACs | source |\n|---|--:|--:|---|\n" in text
    assert "| DeiT-S | 79.90 | 4.6000 | measured |\n\n- A note.\n\n`c`, commit abc, m.\n" in text
