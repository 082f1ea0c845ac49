"""Tables from evaluations: what stands beside what, and when differences mean something."""

from pathlib import Path

import pytest

from lfvit.errors import DataError
from lfvit.measure.schemas import FORMAT, parse_evaluation
from lfvit.results.artifacts.figures import cost_curves
from lfvit.results.artifacts.settings import Artifact, Row, Scale
from lfvit.results.artifacts.tables import Results, make_table, operating_point
from lfvit.results.collect import Run
from lfvit.runs.configs import compose_config
from lfvit.utils.validation import plain


def point(rule, threshold, top1, exit_fraction, gmacs):
    return {
        **{"rule": rule, "threshold": threshold, "top1": top1, "exit_fraction": exit_fraction},
        **{"gmacs": gmacs, "consistency": 0.9, "images": 10, "chosen_on": 0, "reason": None},
        "reference_top1": 81.0,
    }


def evaluation(passes, points, curve=()):
    return {
        **{"format": FORMAT, "checkpoint": "last.ckpt", "method": {"name": "x"}, "backbone": "y"},
        **{"reducer": {"name": "none"}, "image_size": 224, "seed": 0, "data": "z", "images": 10},
        **{"precision": "32-true", "skipped_images": 0, "temperature": None, "localisation": None},
        **{"settings": {}, "environment": {}, "curve": list(curve), "operating_points": points},
        "passes": [{"top1": t, "top5": 99.0, "gmacs": g} for t, g in passes],
    }


CURVE = [
    {"threshold": 0.47, "top1": 79.0, "exit_fraction": 0.8, "gmacs": 1.7},
    {"threshold": 1.01, "top1": 80.9, "exit_fraction": 0.0, "gmacs": 3.8},
]
TWO_PASS = evaluation(
    [(76.0, 1.1), (81.0, 3.8)],
    [
        point("pass 1", None, 76.0, 1.0, 1.1),
        point("pass 2", None, 81.0, 0.0, 3.8),
        point("max_loss=0.5", 0.47, 79.1, 0.79, 1.75),
    ],
    CURVE,
)
ONE_PASS = evaluation([(79.9, 4.6)], [point("pass 1", None, 79.9, 0.0, 4.6)])


def results_of(comparable=True, **evaluations):
    """Evaluations by run, one for every seed."""
    scale = Scale(**{**plain(compose_config("reproduce").scale), "comparable": comparable})
    runs = {
        name: [Run(Path(), "", parse_evaluation(content, "")) for content in seeds]
        for name, seeds in evaluations.items()
    }
    return Results(scale, runs, {}, {"gone": "no reason"}, {})


def artifact(*rows, **settings):
    settings = {"measures": ["top1", "gmacs"], "published": [], **settings}
    rows = [Row(**row) for row in rows]
    return Artifact(name="name", title="A title", question="Why?", rows=rows, **settings)


ROWS = (
    {"model": "DeiT-S", "run": "vit"},
    {"model": "LF-ViT", "m": 5, "eta": 0.47, "run": "lf_vit"},
    {"model": "Mine", "run": "gone"},
)


def test_published_rows_keep_their_order_and_ours_stand_beside():
    results = results_of(vit=[ONE_PASS], lf_vit=[TWO_PASS])
    table = make_table(artifact(*ROWS, published=["lf_vit.table3_token_slimming"]), results)
    deit, dynamic, *_ = table.rows
    assert (deit["model"], deit["top1"], deit["top1_paper"]) == ("DeiT-S", 79.9, 79.8)
    assert deit["top1_difference"] == pytest.approx(0.1)
    assert (dynamic["model"], dynamic["source"]) == ("DynamicViT", "published only")
    assert dynamic["top1"] is dynamic["top1_difference"] is None
    (ours,) = [row for row in table.rows if row["eta"] == 0.47]
    assert (ours["top1"], ours["gmacs"], ours["source"]) == (79.0, 1.7, "measured")
    assert ours["gmacs_difference"] == pytest.approx(0)
    last = table.rows[-1]
    assert (last["model"], last["top1"], last["source"]) == ("Mine", None, "left out")


def test_differences_are_given_at_a_comparable_scale_alone():
    results = results_of(comparable=False, vit=[ONE_PASS])
    table = make_table(artifact(ROWS[0], published=["lf_vit.table3_token_slimming"]), results)
    keys = [column.key for column in table.columns]
    assert keys == ["model", "m", "eta", "top1", "top1_paper", "gmacs", "gmacs_paper", "source"]


def test_seeds_become_mean_and_spread():
    other = evaluation([(79.5, 4.6)], [point("pass 1", None, 79.5, 0.0, 4.6)])
    row = make_table(artifact(ROWS[0]), results_of(vit=[ONE_PASS, other])).rows[0]
    assert row["top1"] == pytest.approx(79.7)
    assert row["top1_spread"] == pytest.approx(0.4 / 2**0.5)
    assert row["gmacs_spread"] == 0


@pytest.mark.parametrize(
    ("row", "top1"),
    [
        ({}, 81.0),
        ({"at": "pass 1"}, 76.0),
        ({"at": "max_loss=0.5"}, 79.1),
        ({"eta": 0.47}, 79.0),
        ({"eta": 1.0}, 80.9),
    ],
)
def test_operating_points(row, top1):
    found = parse_evaluation(TWO_PASS, "")
    assert operating_point(found, Row(run="x", **row)).top1 == top1
    with pytest.raises(DataError, match="no operating point 'pass 3'; there are pass 1, pass 2"):
        operating_point(found, Row(run="x", at="pass 3"))


def test_curves_are_means_over_seeds(tmp_path):
    other = {**TWO_PASS, "curve": [{**p, "top1": p["top1"] + 1} for p in CURVE]}
    rows = (ROWS[1] | {"eta": None}, ROWS[1] | {"eta": None, "at": "pass 2", "model": "Both"})
    results = results_of(lf_vit=[TWO_PASS, other])
    settings = {"published": ["frontier.thinkingvit"], "measures": []}
    table = cost_curves(artifact(*rows, **settings), results)
    points = {
        name: [row for row in table.rows if row["model"] == name] for name in ("LF-ViT", "Both")
    }
    assert [row["top1"] for row in points["LF-ViT"]] == [79.5, 81.4]
    assert [(row["threshold"], row["top1"]) for row in points["Both"]] == [(None, 81.0)]
    assert table.rows[-1]["source"] == "published only"
    table.plot([tmp_path / "figure.svg"], "a footnote")
    assert "ThinkingViT (paper)" in (tmp_path / "figure.svg").read_text()
