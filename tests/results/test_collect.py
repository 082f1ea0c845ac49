"""From run directories to one tidy table."""

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfvit.errors import DataError
from lfvit.results.collect import collect, write_table
from lfvit.results.frame import over_seeds, pareto

pytest_plugins = ("report_runs",)


def evaluation_of(runs, name):
    return json.loads((runs / name / "evaluation" / "evaluate.json").read_text())


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture
def copied(runs, tmp_path):
    """Runs that a test may change."""
    return shutil.copytree(runs, tmp_path / "runs")


def test_one_row_per_run_and_operating_point(runs):
    found = collect([runs])
    assert found.skipped == []
    table = found.table
    places = {f"{runs.name}/{name}/evaluation" for name in ("lf_0", "lf_1", "cf_0", "vit_0")}
    assert set(table["place"]) == places
    assert not table.duplicated(["place", "run"]).any()
    for name in ("lf_0", "lf_1", "cf_0"):
        expected = evaluation_of(runs, name)
        rows = table[table["place"] == f"{runs.name}/{name}/evaluation"].set_index("run")
        assert len(rows) == 3 + 2 + 6  # passes and threshold, rules, certificates
        for run, key in (("first pass alone", "first"), ("both passes", "second")):
            for measure in ("top1", "top5", "gmacs"):
                assert rows.loc[run, measure] == expected[key][measure]
        point = expected["operating_point"]
        for key, value in point.items():
            assert rows.loc["early exit, η = 0.7", key] == value
        assert rows.loc["first pass alone", "gap"] == expected["curve"][0]["gap"]
        assert rows.loc["early exit, calibrated", "images"] == 8
    (row,) = table[table["place"] == f"{runs.name}/vit_0/evaluation"].to_dict("records")
    assert row["run"] == "one pass"
    assert row["config.data.train_images"] == 32
    assert row["commit"] == row["evaluation_commit"]


def test_what_differs_in_the_seed_alone_is_one_model(runs):
    found = collect([runs])
    groups = {run.place.split("/")[1]: run.group for run in found.runs}
    assert groups["lf_0"] == groups["lf_1"]
    assert len(set(groups.values())) == 3
    assert {run.name for run in found.runs} == {"LF-ViT, seed 0", "LF-ViT, seed 1", "CF-ViT", "ViT"}
    means = over_seeds(found.table).set_index(["model", "run"])
    tops = [evaluation_of(runs, name)["second"]["top1"] for name in ("lf_0", "lf_1")]
    row = means.loc[("LF-ViT", "both passes")]
    assert row["seeds"] == 2
    assert row["top1_mean"] == pytest.approx(sum(tops) / 2)
    assert row["top1_std"] == pytest.approx(abs(tops[0] - tops[1]) / math.sqrt(2))
    assert np.isnan(means.loc[("ViT", "one pass")]["top1_std"])
    rows = found.table[(found.table["model"] == "LF-ViT") & (found.table["run"] == "both passes")]
    assert set(rows["top1_mean"]) == {row["top1_mean"]}


def test_a_seed_counts_once_however_often_it_was_run(copied):
    shutil.copytree(copied / "lf_0", copied / "lf_0_again")
    means = over_seeds(collect([copied]).table).set_index(["model", "run"])
    tops = [evaluation_of(copied, name)["second"]["top1"] for name in ("lf_0", "lf_1")]
    assert means.loc[("LF-ViT", "both passes")]["seeds"] == 2
    assert means.loc[("LF-ViT", "both passes")]["top1_mean"] == pytest.approx(sum(tops) / 2)


def test_settings_that_differ_are_in_the_name(copied):
    config = copied / "lf_1" / "config.yaml"
    config.write_text(config.read_text().replace("lr: 0.001\n", "lr: 0.002\n"))
    names = {run.model for run in collect([copied]).runs}
    assert names == {"LF-ViT, lr=0.001", "LF-ViT, lr=0.002", "CF-ViT", "ViT"}


def test_names_leave_out_what_follows_from_other_settings(copied):
    """A method set again at the evaluation, and settings of the weights that one started from."""
    again = copied / "lf_1" / "evaluation"
    edit(again / "evaluate.json", lambda content: content["method"].update(selector="random"))
    config = again / "config.yaml"
    config.write_text(config.read_text() + "method: {selector: random}\n")
    started = copied / "vit_1"
    shutil.copytree(copied / "vit_0", started)
    weights = str(started / "checkpoints" / "last.ckpt")
    edit(started / "evaluation/evaluate.json", lambda content: content.update(checkpoint=weights))
    text = (started / "config.yaml").read_text()
    assert "init_from: null" in text
    text = text.replace("init_from: null", f"init_from: {copied}/vit_0/checkpoints/last.ckpt")
    (started / "config.yaml").write_text(text.replace("lr: 0.001\n", "lr: 0.002\n"))
    names = {run.model for run in collect([copied]).runs}
    assert names == {
        *("LF-ViT, selector=ngca", "LF-ViT, selector=random", "CF-ViT"),
        *("ViT, lr=0.001", "ViT, lr=0.002"),
    }


def test_a_run_that_says_it_started_from_itself(copied):
    config = copied / "vit_0" / "config.yaml"
    weights = f"{copied}/vit_0/checkpoints/last.ckpt"
    config.write_text(config.read_text().replace("init_from: null", f"init_from: {weights}"))
    assert "ViT" in {run.model for run in collect([copied]).runs}


def test_a_reducer_that_training_did_not_know_is_as_is(copied):
    evaluated = copied / "vit_0" / "evaluation" / "evaluate.json"
    edit(evaluated, lambda content: content.update(reducer={"name": "evit"}))
    (run,) = collect([copied / "vit_0"]).runs
    assert run.model == "ViT + EViT as is"


def test_broken_runs_do_not_stop_the_others(copied):
    (copied / "cf_0" / "evaluation" / "evaluate.json").write_text('{"first": {')
    edit(copied / "lf_1" / "evaluation" / "evaluate.json", lambda content: content.pop("first"))
    started = copied / "started"
    started.mkdir()
    shutil.copy(copied / "lf_0" / "config.yaml", started)
    failed = copied / "failed"
    failed.mkdir()
    (failed / "run.json").write_text('{"status": "failed", "reason": "the loss is not finite"}')
    shutil.rmtree(copied / "vit_0" / "evaluation")
    (copied / "speed").mkdir()
    (copied / "speed" / "benchmark.json").write_text('{"rows": [{"batch_size": 1}]}')
    found = collect([copied])
    assert [run.place for run in found.runs] == ["runs/lf_0/evaluation"]
    reasons = dict(found.skipped)
    assert reasons["runs/cf_0/evaluation"].startswith("evaluate.json: Expecting property name")
    assert "not as evaluate.py writes it (first is missing)" in reasons["runs/lf_1/evaluation"]
    assert reasons["runs/started"] == "not finished: holds no metrics.json of train.py"
    assert reasons["runs/speed"] == (
        "benchmark.json: not as benchmark.py writes it (rows[0].images_per_second is missing)"
    )
    assert reasons["runs/failed"] == "failed: the loss is not finite"
    assert reasons["runs/vit_0"].startswith(
        "not evaluated: python evaluate.py ckpt_path=runs/vit_0"
    )


def test_files_from_before_risks_were_measured(copied):
    def age(content):
        for point in content["curve"]:
            del point["consistency"], point["gap"]
        del content["calibration"]

    edit(copied / "lf_0" / "evaluation" / "evaluate.json", age)
    table = collect([copied / "lf_0"]).table.set_index("run")
    assert list(table.index[-2:]) == ["early exit, η = 0.7", "early exit, calibrated"]
    assert np.isnan(table.loc["first pass alone", "gap"])


def test_an_evaluation_without_its_training(copied):
    shutil.rmtree(copied / "lf_0" / "checkpoints")
    (copied / "lf_0" / "metrics.json").unlink()
    evaluation = copied / "lf_0" / "evaluation"
    edit(evaluation / "evaluate.json", lambda content: content.update(checkpoint="gone/a/b.ckpt"))
    (run,) = collect([evaluation]).runs
    assert run.metrics == run.config == {}
    assert run.place == "evaluation"


def test_csv_and_parquet_hold_the_same(runs, tmp_path):
    found = collect([runs])
    for name in ("t.csv", "t.parquet"):
        write_table(found, tmp_path / name)
    write_table(found, tmp_path / "mean.csv", mean=True)
    from_csv, from_parquet = (
        pd.read_csv(tmp_path / "t.csv"),
        pd.read_parquet(tmp_path / "t.parquet"),
    )
    assert list(from_csv) == list(from_parquet)
    numbers = ["top1", "gmacs", "threshold", "seed", "top1_mean", "images"]
    expected = from_parquet[numbers].astype("float64")
    pd.testing.assert_frame_equal(from_csv[numbers].astype("float64"), expected)
    assert list(from_csv["run"]) == list(from_parquet["run"])
    means = pd.read_csv(tmp_path / "mean.csv")
    assert len(means) == len(from_csv.drop_duplicates(["group", "run"]))


def test_nothing_to_collect(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        collect([tmp_path / "nowhere"])
    with pytest.raises(DataError, match="no evaluated run"):
        write_table(collect([tmp_path]), tmp_path / "t.csv")


points = st.tuples(st.integers(0, 5), st.integers(0, 5), st.sampled_from(["a", "b"]))


@given(st.lists(points, min_size=1, max_size=14))
@settings(max_examples=60, deadline=None)
def test_pareto_frontier(rows):
    frame = pd.DataFrame(rows, columns=["top1", "gmacs", "data"]).astype({"top1": float})
    for (top1, gmacs, data), flag in zip(rows, pareto(frame), strict=True):
        beaten = any(
            d == data and t >= top1 and g <= gmacs and (t > top1 or g < gmacs) for t, g, d in rows
        )
        assert flag == (not beaten)


def benchmark(folder, evaluation, speeds, settings, **config):
    """A benchmark.json with these images per second by exit fraction."""
    ends = evaluation["first"]["gmacs"], evaluation["second"]["gmacs"]
    rows = [
        {
            "task": "inference",
            "model": "anything",
            "settings": json.dumps(settings),
            "exit_fraction": share,
            "gmacs": ends[0] + (1 - share) * (ends[1] - ends[0]),
            "batch_size": batch,
            "images_per_second": speed * batch,
        }
        for batch in (1, 8)
        for share, speed in speeds.items()
    ]
    folder.mkdir()
    content = {"environment": {"machine": "a machine"}, "rows": rows}
    (folder / "benchmark.json").write_text(json.dumps(content))
    config = {"backbone": evaluation["backbone"], "image_size": evaluation["image_size"], **config}
    (folder / "config.yaml").write_text(json.dumps(config))


def test_speed_from_a_benchmark(copied):
    evaluation = evaluation_of(copied, "lf_0")
    speeds = {0.0: 10.0, 0.5: 16.0, 1.0: 40.0}
    benchmark(copied / "speed", evaluation, speeds, {"name": "lf_vit"})
    table = collect([copied]).table
    for row in table[table["method"] == "lf_vit"].to_dict("records"):
        share = row["exit_fraction"]
        if math.isnan(share):
            continue
        low = 0.0 if share <= 0.5 else 0.5
        part = (share - low) / 0.5
        seconds = (1 - part) / speeds[low] + part / speeds[low + 0.5]
        assert row["images_per_second"] == pytest.approx(8 / seconds)
        assert row["throughput_from"].startswith("batch 8, fp32, a machine")
        assert ("interpolated" in row["throughput_from"]) == (share not in speeds)
    assert table[table["method"] != "lf_vit"]["images_per_second"].isna().all()


@pytest.mark.parametrize(
    ("settings", "config"),
    [
        ({"name": "cf_vit"}, {}),
        ({"name": "lf_vit", "alpha": 0.5}, {}),
        ({"name": "lf_vit", "reducer": "evit"}, {}),
        ({"name": "lf_vit"}, {"image_size": 224}),
        ({"name": "lf_vit"}, {"backbone": {"timm": "deit_small_patch16_224"}}),
        ({"name": "lf_vit", "ckpt_path": "another.ckpt"}, {}),
    ],
)
def test_speed_of_another_model_is_not_taken(copied, settings, config):
    benchmark(copied / "speed", evaluation_of(copied, "lf_0"), {0.0: 10.0}, settings, **config)
    assert collect([copied / "lf_0", copied / "speed"]).table["images_per_second"].isna().all()


def test_speed_of_the_trained_model_at_its_own_threshold(copied):
    evaluation = evaluation_of(copied, "lf_0")
    trained = {"name": "lf_vit", "ckpt_path": evaluation["checkpoint"]}
    benchmark(copied / "speed", evaluation, {0.4: 10.0}, trained)
    path = copied / "speed" / "benchmark.json"
    edit(path, lambda content: [r.update(exits="measured at eta=0.7") for r in content["rows"]])
    table = collect([copied]).table
    timed = table[table["images_per_second"].notna()]
    assert list(timed["place"]) == ["runs/lf_0/evaluation"]
    assert list(timed["run"]) == ["early exit, η = 0.7"]
    assert list(timed["images_per_second"]) == [80.0]


def test_speed_of_random_models_of_the_size_of_a_checkpoint(copied):
    evaluation = evaluation_of(copied, "lf_0")
    config = {"backbone": {"timm": "another"}, "ckpt_path": evaluation["checkpoint"]}
    benchmark(copied / "speed", evaluation, {0.0: 10.0}, {"name": "lf_vit"}, **config)
    table = collect([copied]).table
    timed = table[table["images_per_second"].notna()]
    assert set(timed["place"]) == {"runs/lf_0/evaluation"}


def test_speed_beyond_what_was_measured_is_not_known(copied):
    benchmark(copied / "speed", evaluation_of(copied, "lf_0"), {0.0: 1.0}, {"name": "lf_vit"})
    table = collect([copied]).table.set_index(["place", "run"])["images_per_second"]
    assert table[("runs/lf_0/evaluation", "both passes")] == pytest.approx(8)
    assert np.isnan(table[("runs/lf_0/evaluation", "first pass alone")])


def test_speed_at_the_share_of_exits_of_the_point_comes_before_that_of_the_timed_images(copied):
    """Few images were timed, and another share of them exits at this threshold."""
    evaluation = evaluation_of(copied, "lf_0")
    trained = {"name": "lf_vit", "ckpt_path": evaluation["checkpoint"]}
    share = evaluation["operating_point"]["exit_fraction"]
    other = 0.9 if share < 0.9 else 0.1
    benchmark(copied / "speed", evaluation, {0.0: 10.0, other: 16.0, 1.0: 40.0}, trained)

    def name_threshold(content):
        for row in content["rows"]:
            row["exits"] = "measured at eta=0.7" if row["exit_fraction"] == other else "stated"

    edit(copied / "speed" / "benchmark.json", name_threshold)
    table = collect([copied]).table
    row = (
        table[table["run"] == "early exit, η = 0.7"].set_index("place").loc["runs/lf_0/evaluation"]
    )
    shares, times = [0.0, other, 1.0], [1 / 80, 1 / 128, 1 / 320]
    assert row["images_per_second"] == pytest.approx(1 / np.interp(share, shares, times))


def test_speed_of_the_same_weights_with_a_reducer_is_another(copied):
    evaluation = evaluation_of(copied, "vit_0")
    evaluation["second"] = {"gmacs": evaluation["first"]["gmacs"]}  # for the rows below
    reduced = copied / "reduced"
    shutil.copytree(copied / "vit_0" / "evaluation", reduced)
    tome = {"name": "tome", "r": 0.1, "proportional": True, "passes": "both"}

    def reduce(content):
        content["reducer"] = tome
        content["first"]["gmacs"] *= 0.999  # as good as the same cost

    edit(reduced / "evaluate.json", reduce)
    trained = {"name": "vit", "ckpt_path": evaluation["checkpoint"]}
    without = {**trained, "reducer": {"name": "none"}}
    benchmark(copied / "speed_a", evaluation, {0.0: 10.0}, {**trained, "reducer": tome})
    benchmark(copied / "speed_b", evaluation, {0.0: 30.0}, without)
    table = collect([copied]).table.set_index("place")["images_per_second"]
    assert table["runs/reduced"] == pytest.approx(80)
    assert table["runs/vit_0/evaluation"] == pytest.approx(240)


def test_given_names_come_before_those_of_settings(runs):
    def name_of(folder):
        name = folder.relative_to(runs).parts[0].removesuffix("_0").removesuffix("_1")
        return None if name == "vit" else name.upper()

    found = collect([runs], name_of)
    assert {run.name for run in found.runs} == {"LF, seed 0", "LF, seed 1", "CF", "ViT"}
    assert len({run.group for run in found.runs}) == 3
    one_name = collect([runs], lambda folder: "one")
    models = {run.model for run in one_name.runs}
    assert len(models) == 3  # other settings are another model, whatever it is called
    assert all(model.startswith("one, ") for model in models)


def test_what_became_of_jobs(copied):
    """One failed before it trained, one after, one was killed, one found what is elsewhere."""
    jobs = {
        "early": {"job": 0, "status": "failed", "error": "region_size=9 does not fit\nand more"},
        "killed": {"job": 2, "status": "unfinished"},
        "found": {
            "job": 3,
            "status": "already done",
            "evaluation": "../../runs/lf_0/evaluation/evaluate.json",
        },
    }
    late = {"job": 1, "status": "failed", "error": "ZeroDivisionError: division by zero"}
    for name, content in jobs.items():
        (copied.parent / "sweep" / name).mkdir(parents=True)
        (copied.parent / "sweep" / name / "job.json").write_text(json.dumps(content))
    shutil.copytree(copied / "lf_1", copied.parent / "sweep" / "late")
    shutil.rmtree(copied.parent / "sweep" / "late" / "evaluation")
    (copied.parent / "sweep" / "late" / "job.json").write_text(json.dumps(late))
    found = collect([copied.parent / "sweep"])
    assert [run.folder for run in found.runs] == [copied / "lf_0" / "evaluation"]
    assert found.skipped == [
        ("sweep/early", "failed: region_size=9 does not fit"),
        ("sweep/killed", "unfinished job: still running, or stopped from outside"),
        ("sweep/late", "failed: ZeroDivisionError: division by zero"),
    ]
