"""From run folders to one table, whatever the folders hold."""

import json
import shutil
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import edit, make_run, make_runs, write

from lfvit.errors import DataError
from lfvit.measure.schemas import read_evaluation
from lfvit.results.collect import collect
from lfvit.results.provenance import describe_start, run_folder, without_paths
from lfvit.results.table import mean_points, pareto, write_table


@pytest.fixture
def runs(tmp_path):
    return make_runs(tmp_path / "runs")


def set_config(folder, **changes):
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


def models(folder):
    return {run.model for run in collect([folder]).runs}


def test_one_row_per_run_and_operating_point(runs):
    collection = collect([runs])
    assert collection.skipped == []
    table = collection.table
    assert not table.duplicated(["path", "rule"]).any()
    for name in ("lf_0", "lf_1", "cf_0", "vit_0"):
        evaluation = read_evaluation(runs / name / "evaluation" / "evaluate.json")
        rows = table[table["path"] == f"runs/{name}/evaluation"].set_index("rule")
        assert list(rows.index) == [point.rule for point in evaluation.operating_points]
        for point in evaluation.operating_points:
            for key in ("threshold", "top1", "gmacs", "exit_fraction", "images", "chosen_on"):
                value = rows.loc[point.rule, key]
                assert (
                    pd.isna(value) if getattr(point, key) is None else value == getattr(point, key)
                )
        assert rows.loc["pass 1", "top5"] == evaluation.passes[0].top5
    row = table[table["method"] == "vit"].iloc[0]
    assert (row["config.optimizer.lr"], row["commit"], row["epochs"]) == (0.001, "abc", 2)


def test_runs_that_differ_in_their_seed_are_one_model(runs):
    shutil.copytree(runs / "lf_0", runs / "lf_0_again")  # a seed counts once
    collection = collect([runs])
    assert {run.model for run in collection.runs} == {"LF-ViT", "CF-ViT", "ViT"}
    names = {run.name for run in collection.runs}
    assert {"LF-ViT, seed 1", "CF-ViT", "ViT"} < names
    assert "LF-ViT, seed 0, runs/lf_0_again/evaluation" in names
    means = mean_points(collection).set_index(["model", "rule"])
    files = [runs / name / "evaluation" / "evaluate.json" for name in ("lf_0", "lf_1")]
    tops = [read_evaluation(file).passes[1].top1 for file in files]
    row = means.loc[("LF-ViT", "pass 2")]
    assert row["seeds"] == 2
    assert row["top1"] == pytest.approx(np.mean(tops))
    assert row["top1_std"] == pytest.approx(np.std(tops, ddof=1))
    assert np.isnan(means.loc[("ViT", "pass 1")]["top1_std"])


def test_seeds_have_their_own_starts_teachers_and_calibrated_thresholds(runs):
    """Also where all runs were moved together, and where the weights of one are evaluated anew."""
    make_run(runs / "vit_1", "vit", 1)
    for seed in (0, 1):
        weights, lf = f"/gone/runs/vit_{seed}/checkpoints/last.ckpt", runs / f"lf_{seed}"
        set_config(lf, init_from=weights, schedule={"teacher": weights})
        file = lf / "evaluation" / "evaluate.json"
        settings = json.loads(file.read_text())["settings"] | {"threshold": 0.6 + seed / 10}
        edit(file, settings=settings)
        shutil.copytree(lf / "evaluation", runs / f"tome_{seed}" / "evaluation")
        edit(
            runs / f"tome_{seed}" / "evaluation" / "evaluate.json",
            checkpoint=f"/gone/runs/lf_{seed}/checkpoints/last.ckpt",
            reducer={"name": "tome"},
        )
    collection = collect([runs])
    expected = {"LF-ViT": 2, "LF-ViT + ToMe": 2, "CF-ViT": 1, "ViT": 2}
    assert dict(Counter(run.model for run in collection.runs)) == expected
    set_config(runs / "vit_1", optimizer={"lr": 0.002})  # a start of other settings is another
    assert len({run.group for run in collect([runs]).runs}) == 7


def test_names_state_the_settings_that_differ(runs):
    set_config(runs / "lf_1", optimizer={"lr": 0.002})
    assert models(runs) == {"LF-ViT, lr=0.001", "LF-ViT, lr=0.002", "CF-ViT", "ViT"}


def test_settings_that_tell_runs_apart_come_first(runs):
    """Of more settings than a name holds."""
    others = {"beta": 0.5, "decay": 0.1, "gamma": 2}
    for name, lr in (("lf_2", 0.001), ("lf_3", 0.003)):
        make_run(runs / name, "lf_vit", optimizer={**others, "lr": lr})
    names = [name for name in models(runs) if name.startswith("LF-ViT")]
    assert len(names) == 3
    assert not any("runs/" in name for name in names)


def test_settings_of_the_initial_weights_come_last(runs):
    """A method overridden at the evaluation, and a training that started from another."""
    evaluation = runs / "lf_1" / "evaluation"
    edit(evaluation / "evaluate.json", method={"name": "lf_vit", "selector": "random"})
    start = str(runs / "vit_0" / "checkpoints" / "last.ckpt")
    make_run(runs / "vit_1", "vit", optimizer={"lr": 0.002}, init_from=start)
    names = models(runs)
    assert {"LF-ViT, selector=ngca", "LF-ViT, selector=random", "CF-ViT"} < names
    assert sum(name.startswith(("ViT, lr=0.001", "ViT, lr=0.002")) for name in names) == 2


def test_a_reducer_that_training_did_not_know_is_as_is(runs):
    set_config(runs / "vit_0", reducer={"name": "none"})
    edit(runs / "vit_0" / "evaluation" / "evaluate.json", reducer={"name": "evit"})
    assert models(runs / "vit_0") == {"ViT + EViT as is"}


def test_labels_come_before_names_from_settings(runs):
    def label(folder):
        name = folder.parent.name.partition("_")[0]
        return None if name == "vit" else name.upper()

    assert {run.name for run in collect([runs], label).runs} == {
        *("LF, seed 0", "LF, seed 1", "CF", "ViT")
    }
    same = {run.model for run in collect([runs], lambda folder: "one").runs}
    assert len(same) == 3  # other settings are another model, whatever the label
    assert all(model.startswith("one, ") for model in same)


def test_broken_runs_do_not_stop_the_others(runs):
    (runs / "cf_0" / "evaluation" / "evaluate.json").write_text('{"passes": [{')
    edit(runs / "lf_1" / "evaluation" / "evaluate.json", passes=None)
    old = make_run(runs / "old") / "evaluation" / "evaluate.json"
    write(old, {"first": {"top1": 1.0}, "second": None, "curve": []})
    shutil.rmtree(runs / "vit_0" / "evaluation")
    for name, content in {
        "failed": {"status": "failed", "error": "the loss is not finite\nand more"},
    }.items():
        (runs / name).mkdir()
        write(runs / name / "run.json", content)
    for name, text in {
        "started": "schedule: {selection_start: 1}",
        "objects": '!!python/object/apply:os.system ["touch exploded"]',
        "number": "1",
    }.items():
        (runs / name).mkdir()
        (runs / name / "config.yaml").write_text(text)
    (runs / "speed").mkdir()
    write(runs / "speed" / "benchmark.json", {"rows": [{"batch_size": 1}]})
    collection = collect([runs])
    assert [run.path for run in collection.runs] == ["runs/lf_0/evaluation"]
    reasons = {path.removeprefix("runs/"): reason for path, reason in collection.skipped}
    for path, reason in {
        "cf_0/evaluation": "evaluate.json: Expecting property name",
        "lf_1/evaluation": "evaluate.json: passes",
        "old/evaluation": "evaluate.json: written by another version of lfvit; run evaluate.py",
        "vit_0": "not evaluated: python evaluate.py ckpt_path=runs/vit_0",
        "failed": "failed: the loss is not finite",
        "started": "not finished: still running, or stopped from outside",
        "objects": "config.yaml: could not determine a constructor",
        "number": "config.yaml: not a mapping",
        "speed": "benchmark.json: not as this project writes it (rows.0.settings: Field required)",
    }.items():
        assert reasons[path].startswith(reason), reasons[path]
        assert "and more" not in reasons[path]


def test_what_became_of_jobs(runs):
    """One failed before it trained, one after, one was killed, one used what is elsewhere."""
    sweep = runs.parent / "sweep"
    shutil.copytree(runs / "lf_1", sweep / "late")
    shutil.rmtree(sweep / "late" / "evaluation")
    evaluation = "../../runs/lf_0/evaluation/evaluate.json"
    for name, record in {
        "early": {"status": "failed", "error": "region_size=9 does not fit"},
        "late": {"status": "failed", "error": "ZeroDivisionError: division by zero"},
        "killed": {"status": "unfinished"},
        "used": {"status": "already done", "evaluation": evaluation},
    }.items():
        (sweep / name).mkdir(exist_ok=True)
        write(sweep / name / "job.json", record)
    collection = collect([sweep])
    assert [run.folder for run in collection.runs] == [runs / "lf_0" / "evaluation"]
    assert collection.skipped == [
        ("sweep/early", "failed: region_size=9 does not fit"),
        ("sweep/killed", "not finished: still running, or stopped from outside"),
        ("sweep/late", "failed: ZeroDivisionError: division by zero"),
    ]


def test_an_evaluation_without_its_training(runs):
    evaluation = runs / "lf_0" / "evaluation"
    (runs / "lf_0" / "metrics.json").unlink()
    edit(evaluation / "evaluate.json", checkpoint="gone/a/b.ckpt")
    (run,) = collect([evaluation]).runs
    assert (run.metrics, run.config, run.path) == ({}, {}, "evaluation")


def test_csv_and_parquet_hold_the_same(runs, tmp_path):
    collection = collect([runs])
    for name in ("t.csv", "t.parquet"):
        write_table(collection, tmp_path / name)
    write_table(collection, tmp_path / "mean.csv", mean=True)
    csv, parquet = pd.read_csv(tmp_path / "t.csv"), pd.read_parquet(tmp_path / "t.parquet")
    assert list(csv) == list(parquet) == list(collection.table)
    numbers = ["top1", "gmacs", "threshold", "seed", "images"]
    pd.testing.assert_frame_equal(csv[numbers].astype(float), parquet[numbers].astype(float))
    means = pd.read_csv(tmp_path / "mean.csv")
    assert len(means) == len(csv.drop_duplicates(["group", "rule"]))


def test_nothing_to_collect(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        collect([tmp_path / "nowhere"])
    with pytest.raises(DataError, match="no evaluated run: evaluate.py writes"):
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


def add_benchmark(folder, speeds, settings):
    """A benchmark.json of the LF-ViT of `make_run`: images per second by share of exits."""
    rows = [
        {
            "task": "inference",
            "model": "anything",
            "settings": json.dumps(settings),
            "exit_fraction": share,
            "gmacs": 1 + (1 - share) * 2,
            "batch_size": batch,
            "images_per_second": speed * batch,
        }
        for batch in (1, 8)
        for share, speed in speeds.items()
    ]
    folder.mkdir()
    write(folder / "benchmark.json", {"environment": {"machine": "a machine"}, "rows": rows})


def test_throughput_is_interpolated_between_measured_shares_of_exits(runs):
    speeds = {0.0: 10.0, 0.5: 16.0, 0.9: 40.0}
    add_benchmark(runs / "speed", speeds, {"name": "lf_vit"})
    table = collect([runs]).table
    rows = table[table["method"] == "lf_vit"].dropna(subset=["exit_fraction"])
    seconds = np.interp(rows["exit_fraction"], list(speeds), [1 / s for s in speeds.values()])
    known = rows["exit_fraction"] <= 0.9
    assert rows["images_per_second"][known].to_numpy() == pytest.approx(8 / seconds[known])
    assert rows["images_per_second"][~known].isna().all()
    sources = rows["throughput_from"][known]
    assert sources.str.startswith("batch 8, fp32, a machine").all()
    exact = rows["exit_fraction"][known].isin(speeds)
    assert (sources.str.contains("interpolated") == ~exact).all()
    assert table[table["method"] != "lf_vit"]["images_per_second"].isna().all()


@pytest.mark.parametrize(
    ("settings", "gmacs", "same"),
    [
        ({"name": "lf_vit"}, 3.02, True),
        ({"name": "lf_vit", "ckpt_path": "CHECKPOINT"}, 3.0, True),
        ({"name": "cf_vit"}, 3.0, False),
        ({"name": "lf_vit"}, 3.1, False),
        ({"name": "lf_vit", "ckpt_path": "another.ckpt"}, 3.0, False),
    ],
)
def test_throughput_is_of_the_same_method_at_the_same_cost(runs, settings, gmacs, same):
    if settings.get("ckpt_path") == "CHECKPOINT":
        settings = {**settings, "ckpt_path": str(runs / "lf_0" / "checkpoints" / "last.ckpt")}
    add_benchmark(runs / "speed", {0.0: 10.0}, settings)
    content = json.loads((runs / "speed" / "benchmark.json").read_text())
    rows = [{**row, "gmacs": gmacs} for row in content["rows"]]
    write(runs / "speed" / "benchmark.json", {**content, "rows": rows})
    table = collect([runs / "lf_0", runs / "speed"]).table.set_index("rule")
    speed = table.loc["pass 2", "images_per_second"]
    assert speed == 80 if same else np.isnan(speed)


BEFORE = {"method": {"name": "vit"}, "image_size": 80}


@pytest.mark.parametrize(
    ("config", "before", "words"),
    [
        ({}, {}, "random weights"),
        ({"init_from": None, "pretrained": True}, {}, "timm's pretrained weights"),
        ({"init_from": "elsewhere/deit.pth"}, {}, "the weights deit.pth"),
        (
            {"init_from": "runs/half/checkpoints/last.ckpt"},
            BEFORE,
            "random weights, after 40 epochs of vit on 80 x 80 pixels (20 minutes)",
        ),
        (
            {"init_from": "runs/half/checkpoints/last.ckpt"},
            {**BEFORE, "init_from": "a/b.pth"},
            "the weights b.pth, after 40 epochs of vit on 80 x 80 pixels (20 minutes)",
        ),
    ],
)
def test_initial_weights_in_words(config, before, words):
    assert describe_start(config, before, {"epochs": 40, "train_seconds": 1210.0}) == words


def test_the_run_of_weights_is_searched_for_above_the_one_that_used_them(runs):
    found = [run_folder(path, runs / "lf_0") for path in ("vit_0/checkpoints/last.ckpt", "zoo:vit")]
    assert found == [runs / "vit_0", None]
    moved = f"/gone/{runs.parent.name}/{runs.name}/vit_0/checkpoints/last.ckpt"
    assert run_folder(moved, runs / "lf_0") == runs / "vit_0"


def test_commands_without_paths_of_a_machine():
    command = "python train.py experiment=x data.root=/home/me/photos method=vit /data/other"
    assert without_paths(command) == "python train.py experiment=x data.root=DIR method=vit DIR"
    command = "reproduce.py 'overrides=[a=1,init_from=/me/a b.pth,data.root=/x/y]' overrides=[/z]"
    same = "reproduce.py 'overrides=[a=1,init_from=DIR,data.root=DIR]' 'overrides=[DIR]'"
    assert without_paths(command) == same
    assert without_paths("python 'unfinished") == "python 'unfinished"
