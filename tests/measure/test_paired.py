"""Paired comparisons against slow counting, and what an evaluation leaves for them."""

import json
from itertools import product

import numpy as np
import pandas as pd
import pytest

from conftest import NEEDLE_FAST, write_photographs
from lfvit.commands.evaluate import evaluate
from lfvit.commands.train import train
from lfvit.errors import DataError
from lfvit.measure.paired import (
    as_accurate_as,
    choose,
    compare,
    interval,
    mcnemar,
    reported_part,
    within,
)
from lfvit.measure.predictions import read_predictions, right_at
from lfvit.measure.thresholds import cheapest_at


def answers(bits, names="abcdefghijklmnopqrstuvwxyz"):
    return pd.Series([bit == "1" for bit in bits], index=list(names[: len(bits)]))


@pytest.mark.parametrize(("ours", "theirs"), [(0, 0), (3, 3), (1, 6), (9, 2), (0, 8)])
def test_mcnemar_counts_every_way_the_images_could_have_split(ours, theirs):
    n = ours + theirs
    uneven = [abs(2 * sum(way) - n) >= abs(ours - theirs) for way in product((0, 1), repeat=n)]
    assert mcnemar(ours, theirs) == pytest.approx(sum(uneven) / len(uneven))


def test_mcnemar_of_many_images():
    assert mcnemar(1500, 1500) == 1
    assert 0 < mcnemar(1000, 2000) < 1e-70


def test_a_comparison_counts_images():
    ours = [answers("110110"), answers("111100")]
    theirs = [answers("100111"), answers("110000")]
    found = compare(ours, theirs)
    assert found.per_seed == pytest.approx([0, 100 / 3])
    assert found.difference == pytest.approx(100 / 6)
    assert found.spread == pytest.approx(np.std([0, 100 / 3], ddof=1))
    assert (found.only_ours, found.only_theirs) == ([1, 2], [1, 0])
    assert (found.top1, found.other_top1) == pytest.approx((400 / 6, 300 / 6))
    assert found.p_values == [1.0, 0.5]
    assert found.low <= found.difference <= found.high


def test_images_are_matched_by_name_and_parts_are_compared():
    ours = answers("10", names="ca")
    theirs = answers("011", names="abc")
    found = compare([ours], [theirs])
    assert (found.images, found.difference) == (2, 0)
    assert (found.only_ours, found.only_theirs) == ([0], [0])
    with pytest.raises(DataError, match="'z' and 0 others were seen by one"):
        compare([answers("10", names="az")], [theirs])
    with pytest.raises(DataError, match="1 seeds of one model and 2"):
        compare([ours], [theirs, theirs])


def test_the_interval_is_that_of_drawing_images_anew():
    rng = np.random.default_rng(1)
    sample = rng.choice([-1.0, -1 / 3, 0.0, 1 / 3, 1.0], 200, p=[0.05, 0.1, 0.6, 0.15, 0.1])
    slow = [rng.choice(sample, 200).mean() for _ in range(20_000)]
    assert interval([sample]) == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.004)
    other = rng.choice([-1.0, 0.0, 1.0], 100)
    slow = [(rng.choice(sample, 200).mean() + rng.choice(other, 100).mean()) / 2 for _ in slow]
    both = interval([sample, other])
    assert both == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.006)
    assert interval([np.zeros(5)]) == (0, 0)


def test_the_interval_covers_what_other_images_would_give():
    rng = np.random.default_rng(2)
    met = 0
    for _ in range(300):
        low, high = interval([rng.choice([-1, 0, 1], 400, p=[0.08, 0.8, 0.12])], draws=1000)
        met += low <= 0.04 <= high
    assert 0.91 <= met / 300 <= 0.985


def test_seeds_with_images_of_their_own_are_independent_samples():
    bits = ("1010110111", "0110100101")
    same = compare([answers(b) for b in bits], [answers("0101110110")] * 2)
    names = ("abcdefghij", "klmnopqrst")
    ours = [answers(b, n) for b, n in zip(bits, names, strict=True)]
    apart = compare(ours, [answers("0101110110", n) for n in names])
    assert apart.difference == same.difference
    assert (apart.low, apart.high) != (same.low, same.high)


@pytest.fixture(scope="module")
def evaluated(trained_run, composed, tmp_path_factory):
    """evaluate.json and the predictions of a tiny LF-ViT on 16 generated images."""
    folder = tmp_path_factory.mktemp("evaluated")
    checkpoint = f"ckpt_path={trained_run / 'checkpoints' / 'last.ckpt'}"
    settings = ["data.num_workers=0", "trainer.accelerator=cpu", f"run_dir={folder}"]
    found = evaluate(composed("evaluate", checkpoint, *settings, "max_gmacs=0.009"))
    return found, read_predictions(folder / "predictions.parquet")


def test_every_threshold_comes_out_of_the_file(evaluated):
    found, rows = evaluated
    assert len(rows) == rows.index.nunique() == 16
    for point in found["curve"]:
        assert 100 * right_at(rows, point["threshold"]).mean() == pytest.approx(point["top1"])
    assert 100 * right_at(rows).mean() == pytest.approx(found["second"]["top1"])
    assert 100 * right_at(rows, 0).mean() == pytest.approx(found["first"]["top1"])


def macs_of(found):
    first, both = (1e9 * found[key]["gmacs"] for key in ("first", "second"))
    return first, both - first


def test_thresholds_are_chosen_as_evaluate_does(evaluated):
    found, rows = evaluated
    (budget,) = (r for r in found["calibration"]["rules"] if r["name"] == "max_gmacs")
    ours = choose(rows, macs_of(found), within(0.009))
    assert len(ours.right) == found["calibration"]["reported_images"]
    assert ours.gmacs <= 0.0095
    assert ours.met == (budget["threshold"] is not None)


def test_the_calibrated_accuracy_comes_out_of_the_file(evaluated):
    found, rows = evaluated
    rest = reported_part(rows, found["calibration"]["share"], found["calibration"]["seed"])
    right = right_at(rest, found["calibrated"]["threshold"])
    assert 100 * right.mean() == pytest.approx(found["calibrated"]["top1"])


def test_as_accurate_as_another_model(evaluated):
    found, rows = evaluated
    macs = macs_of(found)
    nothing = pd.Series(False, index=rows.index)
    first_alone = choose(rows, macs, as_accurate_as(nothing))
    assert (first_alone.met, first_alone.exit_fraction) == (True, 1.0)
    assert first_alone.gmacs == pytest.approx(found["first"]["gmacs"])
    everything = choose(rows, macs, as_accurate_as(~nothing))
    assert not everything.met
    assert cheapest_at(found["curve"], 100.0) is None
    assert not choose(rows, macs, within(0.0001)).met


def test_photographs_are_named_by_their_place_in_the_folder(composed, tmp_path):
    photos = write_photographs(tmp_path / "photos", per_class=6)
    settings = ["data=imagefolder", f"data.root={photos}", "data.val_fraction=0.5", "method=vit"]
    fast = [o for o in NEEDLE_FAST if not o.startswith(("data.train", "data.val"))]
    small = ["image_size=32", "backbone.depth=2", "trainer.max_epochs=1"]
    run = tmp_path / "run"
    train(composed("train", *fast, *settings, *small, f"run_dir={run}"))
    held = [f"{c}/{i:02d}" for c in ("apple", "pear", "plum") for i in range(6)]
    checkpoint = f"ckpt_path={run / 'checkpoints' / 'last.ckpt'}"

    def evaluation():
        asked = [checkpoint, "data.num_workers=0", f"run_dir={tmp_path / 'out'}"]
        found = evaluate(composed("evaluate", *asked, "data.on_error=skip"))
        rows = read_predictions(tmp_path / "out" / "predictions.parquet")
        assert len(rows) == found["images"]
        return rows

    rows = evaluation()
    assert len(rows) == 9
    assert all(name.rpartition(".")[0] in held for name in rows.index)
    assert "second" not in rows
    assert [name.partition("/")[0] for name in rows.index] == [
        ("apple", "pear", "plum")[target] for target in rows["target"]
    ]
    broken = photos / rows.index[4]
    broken.write_bytes(broken.read_bytes()[:40])
    again = evaluation()
    assert list(again.index) == [name for name in rows.index if name != rows.index[4]]
    pd.testing.assert_frame_equal(again, rows.drop(rows.index[4]), atol=1e-5)


def test_an_evaluation_from_before_says_what_to_do(tmp_path):
    (tmp_path / "evaluate.json").write_text(json.dumps({}))
    with pytest.raises(DataError, match="evaluate again"):
        read_predictions(tmp_path / "predictions.parquet")
