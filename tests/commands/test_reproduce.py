"""Every artifact, end to end, on models that share a few runs; failures, resuming and the plan."""

import csv
import json
import re
import shutil

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from conftest import NEEDLE_FAST, ROOT
from lfvit.commands.reproduce import reproduce
from lfvit.commands.train import train
from lfvit.errors import ConfigError, TrainingError
from lfvit.results.old.comparisons import WAYS

FAST = [
    *(o for o in NEEDLE_FAST if not o.startswith(("trainer", "schedule", "data.batch"))),
    "data.batch_size=16",
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
]
SMALL = (
    f"scale.overrides={json.dumps(FAST)}",
    "scale.speed_images=2",
    "scale.speed_repeats=1",
    "scale.probe_images=6",
    "scale.leave_out={}",
)
KEYS = ("name", "title", "question", "paper", "kind", "scale", "label", "columns", "rows", "notes")
ORIGIN = ("command", "commit", "machine", "written")


@pytest.fixture(autouse=True)
def configs():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield


def configured(out, *overrides):
    cfg = compose("reproduce", [*SMALL, f"output_dir={out}", *overrides])
    OmegaConf.set_struct(cfg, False)  # tests shorten it
    return cfg


def share_runs(cfg):
    """Every run of a kind becomes the same one, which is then made once."""
    for name, run in cfg.runs.items():
        run.pop("train", None)
        if "recipe" in run:
            small, reduced = run.recipe[:1], name.startswith(("evit", "frequency", "dynamic_vit"))
            run.recipe = ["vit"] if reduced or small == ["frequency"] else small
            run.pop("start", None)
        else:
            run.start = "lf_vit" if name.startswith("lf_vit") else "vit"
    return cfg


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """The folder of a finished run of all artifacts, and what it returned."""
    out = tmp_path_factory.mktemp("all")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        told = reproduce(share_runs(configured(out)))
    return out, told


with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
    NAMES = list(compose("reproduce").artifact)


@pytest.mark.parametrize("name", NAMES)
def test_every_artifact_is_made(everything, name):
    out, told = everything
    folder = out / "artifacts" / name
    found = json.loads((folder / "artifact.json").read_text())
    assert found == told[name]
    assert list(found) == [*KEYS, *ORIGIN]
    assert found["scale"] == "smoke"
    assert found["rows"]
    keys = [column["key"] for column in found["columns"]]
    assert all(set(column) == {"key", "title", "unit", "digits"} for column in found["columns"])
    assert all(list(row) == keys for row in found["rows"])
    assert not any(
        note.startswith(("Not made", "Run failed", "Left out")) for note in found["notes"]
    )
    with (folder / f"{name}.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(found["rows"])
    text = (folder / f"{name}.md").read_text()
    assert found["label"] in text
    for kind in ("png", "svg"):
        assert (folder / f"{name}.{kind}").exists() == (found["kind"] == "figure")


def test_artifacts_are_listed_in_order_and_runs_shared(everything):
    out, told = everything
    assert json.loads((out / "artifacts" / "index.json").read_text()) == list(told) == NAMES
    assert all(f"artifacts/{name}/{name}.md" in (out / "README.md").read_text() for name in told)
    runs = {path.name for path in (out / "runs").iterdir() if (path / "seed0").exists()}
    trained = {"lf_vit", "cf_vit", "vit", "lv_vit", "cf_vit_lv_vit"}
    untrained = {name for name in compose("reproduce").runs if name.endswith("_as_is")}
    assert runs == trained | untrained | {"tome", "lf_vit_tome"}


def test_published_figures_stand_beside_ours_without_differences(everything):
    _, told = everything
    rows = told["lf_vit_table3"]["rows"]
    assert [row["model"] for row in rows if row["source"] == "published only"] == [
        *("IA-RED2", "PS-ViT", "Evo-ViT", "A-ViT-S", "PVT-S", "SaiT-S")
    ]
    deit = rows[0]
    assert deit["top1_paper"] == 79.8
    assert 0 <= deit["top1"] <= 100
    assert not any(key.endswith("_difference") for key in deit)
    assert any("Not comparable" in note for note in told["lf_vit_table3"]["notes"])


def test_figure7_splits_the_right_answers_by_pass(everything):
    for row in everything[1]["lf_vit_figure7"]["rows"]:
        assert row["right_first"] + row["right_second"] == pytest.approx(row["top1"])
    assert everything[1]["lf_vit_figure7"]["rows"][0]["right_second"] == 0


def test_objects_are_grouped_by_size(everything):
    rows = everything[1]["question_region_choice"]["rows"]
    ngca = [row for row in rows if (row["image"], row["selector"]) == ("normal", "ngca")]
    whole, *thirds = ngca
    assert [row["object"] for row in ngca] == ["all", "small", "medium", "large"]
    assert sum(row["images"] for row in thirds) == whole["images"]


def test_probes_of_a_one_pass_model(everything):
    rows = everything[1]["frequency_figure2"]["rows"]
    blocks, noise = ([row for row in rows if row[key] is not None] for key in ("block", "strength"))
    assert [row["block"] for row in blocks] == list(range(6))
    assert [row["strength"] for row in noise] == [0, 0.5, 1, 2, 4]
    whole = everything[1]["frequency_figure6"]["rows"][0]["whole"]
    assert noise[0]["high"] == noise[0]["low"] == whole  # on the same images
    by_block = everything[1]["frequency_figure6"]["rows"]
    assert [row["block"] for row in by_block] == [1, 2, 3, 4, 5]
    assert all(0 < row["overlap"] < 1 for row in by_block)


def test_the_page_has_the_names_and_the_measured_speeds(everything):
    out, told = everything
    text = (out / "report.html").read_text()
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    ours = {e["name"]: e for e in json.loads(data)["series"] if not e["published"]}
    assert set(ours) == {path.parts[-4] for path in (out / "runs").rglob("evaluate.json")}
    featured = [name for name, entry in ours.items() if entry["featured"]]
    assert featured == ["lf_vit", "vit", "cf_vit", "lf_vit_tome", "tome"]
    assert list(ours)[:5] == featured
    timed = json.loads((out / "artifacts" / "methods" / "benchmark.json").read_text())
    rows = told["methods"]["rows"]
    speeds = [row["throughput"] for row in rows]
    assert [row["images_per_second"] for row in timed["rows"]] == speeds
    for name, reducer in (("vit", "none"), ("tome", "tome")):  # the same weights
        (point,) = ours[name]["points"]
        stated = [(json.loads(row["settings"]), row) for row in timed["rows"]]
        assert point["speed"] in [
            row["images_per_second"]
            for settings, row in stated
            if (settings["name"], settings["reducer"]["name"]) == ("vit", reducer)
        ]
        assert "interpolated" not in point["how"]
    for name in ("lf_vit", "cf_vit", "lf_vit_tome"):
        assert all(point["speed"] is not None for point in ours[name]["points"])


def test_differences_are_those_of_the_accuracies(everything):
    told = everything[1]["question_reducers"]
    assert [row["images"] for row in told["rows"]] == [16] * 6
    for row in told["rows"]:
        assert row["difference"] == pytest.approx(row["top1"] - row["other_top1"])
        assert row["low"] <= row["difference"] <= row["high"]
    rows = {
        (row["model"], row["way"]): row for row in everything[1]["question_equal_accuracy"]["rows"]
    }
    ways = {way for _, way in rows}
    assert ways == {WAYS[way] for way in ("equal", "budget", "both")}
    assert rows["CF-ViT", WAYS["equal"]]["images"] == 8
    notes = everything[1]["question_equal_accuracy"]["notes"]
    assert sum("The threshold chosen for equal accuracy costs" in note for note in notes) == 4


def test_runs_side_by_side_give_what_they_give_alone(tmp_path, capsys, everything):
    rows = [{"model": name, "run": name} for name in ("vit", "lf_vit", "lf_vit_tome")]
    table = {"title": "t", "question": "q", "kind": "table", "measures": ["top1"], "rows": rows}
    cfg = configured(tmp_path, "jobs=2")
    cfg.scale.remarks, cfg.artifact = {}, {"both": table}
    broken = ["optimizer.lr=1e30", "lr_scheduler.warmup_epochs=0"]
    cfg.runs = {
        "lf_vit": {"recipe": ["lf_vit"], "train": broken},
        "vit": {"recipe": ["vit"]},
        "lf_vit_tome": dict(cfg.runs.lf_vit_tome),
    }
    with pytest.raises(TrainingError, match=r"lf_vit: .*the loss is nan.*error.txt") as raised:
        reproduce(cfg)
    assert "lf_vit_tome: starts from lf_vit/seed0, which failed" in str(raised.value)
    told = json.loads((tmp_path / "artifacts" / "both" / "artifact.json").read_text())["rows"]
    alone = {row["model"]: row["top1"] for row in everything[1]["methods"]["rows"]}
    assert [row["top1"] for row in told] == [alone["ViT"], None, None]
    out = capsys.readouterr().out
    assert "vit, seed 0: done after" in out
    assert "lf_vit_tome, seed 0: failed after" in out
    assert "trained in" in (tmp_path / "runs" / "vit" / "seed0.txt").read_text()


def test_finished_trainings_are_taken(tmp_path, capsys):
    made = tmp_path / "made"
    settings = [*FAST, "experiment=needle", "logger=none", "data.batch_size=16"]
    for seed in (0, 1):
        cfg = compose("train", [*settings, "method=vit", f"seed={seed}"])
        cfg.run_dir = str(made / str(seed))
        if seed == 0:
            train(cfg)
    other = tmp_path / "other"
    shutil.copytree(made / "0", other / "unfinished")
    (other / "unfinished" / "run.json").write_text('{"status": "running"}')
    rows = [{"model": "ViT", "run": "vit"}]
    table = {"title": "t", "question": "q", "kind": "table", "measures": ["top1"], "rows": rows}

    def again(out, *overrides):
        cfg = configured(tmp_path / out, *overrides)
        cfg.scale.remarks, cfg.artifact = {}, {"one": table}
        cfg.runs = {"vit": {"recipe": ["vit"]}}
        reproduce(cfg)
        return capsys.readouterr().out

    out = again("taken", f"reuse=[{other},{made}]", "scale.seeds=[0,1]")
    assert out.count("is taken from") == 1
    assert f"vit/seed0 is taken from {made / '0'}" in out.replace("\n", "")
    assert out.count("trained in") == 1
    assert "already done" in again("taken", "scale.seeds=[0]")
    assert "is taken from" not in again("lr", f"reuse=[{made}]", 'overrides=["optimizer.lr=0.002"]')
    with pytest.raises(ConfigError, match=r"reuse=.*nowhere: no such folder"):
        again("no", f"reuse=[{tmp_path / 'nowhere'}]")


def test_what_the_scale_asks_first_is_made_first(tmp_path, monkeypatch):
    asked = "scale.artifacts=[question_reducers,lf_vit_table7,frequency_figure1]"
    cfg = configured(tmp_path, "plan=true", "scale.seeds=[0,1]", asked)
    cfg.artifact.question_reducers.rows = [{"model": "ToMe", "run": "tome"}]
    monkeypatch.setattr("lfvit.results.artifacts.plan.Timer.seconds", lambda *_: (1.0, 1.0))
    order = [row["run"] for row in reproduce(cfg)["runs"]]
    reducers = ["vit, seed 0", "tome, seed 0", "vit, seed 1", "tome, seed 1"]
    table = [f"{name}, seed {seed}" for seed in (0, 1) for name in ("lf_vit_ce_ce", "lf_vit")]
    assert order == reducers + table


TWO = "artifacts=[overview]"


def test_seeds_are_averaged_and_an_interrupted_run_goes_on(tmp_path, capsys, monkeypatch):
    cfg = configured(tmp_path, "scale.seeds=[0,1]", "artifacts=[lf_vit_table7]")
    cfg.runs.lf_vit_ce_ce.recipe = ["vit"]
    cfg.runs.lf_vit_ce_ce.train = []
    cfg.runs.lf_vit.recipe = ["vit"]  # the same: one model, two seeds
    rows = reproduce(cfg)["lf_vit_table7"]["rows"]
    assert capsys.readouterr().out.count("trained in") == 2
    each = [
        json.loads(path.read_text())["first"]["top1"]
        for path in sorted((tmp_path / "runs").glob("lf_vit/seed*/evaluation/evaluate.json"))
    ]
    assert len(each) == 2
    assert rows[0]["first"] == pytest.approx(sum(each) / 2)
    assert rows[0]["first_spread"] == pytest.approx(abs(each[0] - each[1]) / 2**0.5)
    folder = tmp_path / "runs" / "lf_vit" / "seed1"
    shutil.rmtree(folder / "evaluation")
    (folder / "metrics.json").unlink()  # as if stopped before its end
    resumed = []

    def spy(config):
        resumed.append(config.ckpt_path)
        return train(config)

    monkeypatch.setattr("lfvit.results.artifacts.runs.train", spy)
    reproduce(cfg)
    assert resumed == [str(folder / "checkpoints" / "last.ckpt")]
    out = capsys.readouterr().out
    assert out.count("already done") == 1
    assert out.count("trained in") == 1


def test_what_started_from_a_repeated_run_is_repeated(tmp_path, capsys):
    runs = {"vit": {"recipe": ["vit"]}, "tome": {"start": "vit", "evaluate": ["reducer=tome"]}}
    rows = [{"run": "vit"}, {"run": "tome"}]
    table = {"title": "t", "question": "q", "kind": "table", "measures": ["top1"], "rows": rows}

    def again(*more):
        capsys.readouterr()
        cfg = configured(tmp_path)
        cfg.runs, cfg.artifact = runs, {"both": table}
        cfg.scale.remarks, cfg.overrides = {}, more
        reproduce(cfg)
        return capsys.readouterr().out

    assert again().count("trained in") == 1
    assert again().count("already done") == 2
    shutil.rmtree(tmp_path / "runs" / "vit")
    assert again().count("already done") == 1  # it ended with the same weights
    shutil.rmtree(tmp_path / "runs" / "vit")
    assert "tome is repeated" in again("data.train_images=48")


def test_what_fails_does_not_lose_the_others(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError("no space left")

    monkeypatch.setattr("lfvit.results.artifacts.probe_figures.plot_passes", broken)
    words = "artifacts=[lf_vit_table7,lf_vit_figure7,overview,frequency_figure1]"
    cfg = configured(tmp_path, words)
    cfg.runs.lf_vit_ce_ce = cfg.runs.lf_vit
    cfg.runs.vit.train = ["optimizer.lr=1e30", "lr_scheduler.warmup_epochs=0"]
    with pytest.raises(
        TrainingError, match=r"2 failed, the rest is made.*\n  vit: .*error.txt"
    ) as raised:
        reproduce(cfg)
    assert "artifact lf_vit_figure7: OSError: no space left" in str(raised.value)
    assert "Traceback" in (tmp_path / "runs" / "vit" / "seed0" / "error.txt").read_text()

    def told(name):
        return json.loads((tmp_path / "artifacts" / name / "artifact.json").read_text())

    assert told("lf_vit_figure7")["notes"] == ["Not made: no space left"]
    assert {row["source"] for row in told("overview")["rows"]} == {"measured", "failed"}
    assert any(note.startswith("Run failed: vit, ") for note in told("overview")["notes"])
    assert {row["source"] for row in told("lf_vit_table7")["rows"]} == {"measured"}
    assert told("frequency_figure1")["rows"] == []
    assert not (tmp_path / "artifacts" / "frequency_figure1" / "frequency_figure1.png").exists()


def test_the_plan_runs_nothing(tmp_path, capsys):
    cfg = configured(tmp_path / "out", "plan=true", "artifacts=frequency_table3")
    cfg.artifact.frequency_table3.rows = [{"run": "frequency"}, {"run": "lf_vit"}]
    told = reproduce(cfg)
    assert not (tmp_path / "out").exists()
    rows = {row["run"]: row for row in told["runs"]}
    assert set(rows) == {"lf_vit, seed 0", "vit, seed 0", "frequency, seed 0"}
    for row in rows.values():
        assert row["artifacts"] == ["frequency_table3"]  # vit, since frequency starts from it
        assert (row["state"], row["steps"]) == ("to do", 2)
        assert row["hours"] == pytest.approx(row["steps"] * row["seconds_per_step"] / 3600)
        assert row["seconds_per_step"] > 0
    assert "device-hours" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["artifacts=tabel2"], "artifacts='tabel2' is unknown; close: table2"),
        (["data_root=/photos"], "scale=smoke generates its images; leave DATA out"),
        (["scale.seeds=[]"], r"scale.seeds=\[\] runs nothing"),
        (["+scale.starts.nobody=vit"], "scale.starts has no setting 'nobody'"),
        (["+scale.starts.vit=nobody"], "scale.starts.vit='nobody' is unknown"),
        (["+scale.leave_out.nobody=why"], "scale.leave_out has no setting 'nobody'"),
        (["runs.lf_vit.recipe=[lfvit]", TWO], "recipe='lfvit' is unknown; valid: lf_vit"),
        (["+runs.lf_vit.start=nobody", TWO], "runs.lf_vit.start='nobody' trains no weights"),
        (["+runs.lf_vit.start=tome", TWO], "runs.lf_vit.start='tome' trains no weights"),
        (["+runs.vit.start=vit", TWO], "vit start from each other"),
        (["+runs.vit.trian=[]", TWO], "runs.vit has no setting 'trian'"),
        (["~runs.tome.start", "artifacts=methods"], "runs.tome needs a recipe, or start"),
        (['overrides=["method.alpha=2"]', TWO], "run lf_vit: alpha=2 is out of range"),
        (['runs.tome.evaluate=["reducer.keep_rate=7"]', "artifacts=methods"], "is no reducer"),
        (["+artifact.overview.colour=red"], "artifact.overview has no setting 'colour'"),
        (["artifact.overview.draw=pie"], "artifact.overview.draw='pie' is unknown"),
        (["artifact.lf_vit_table7.measures=[speed]"], "measures='speed' is unknown"),
        (
            ["artifact.lf_vit_table7.published=lf_vit.table8"],
            "published='lf_vit.table8' is unknown",
        ),
        (["artifact.lf_vit_table7.rows=[{run:nobody}]"], "rows.run='nobody' is unknown"),
        (["artifact.lf_vit_table7.rows=[{run:vit,eta:0.333}]"], "rows.eta=0.333 must be one of"),
        (["artifact.question_eta.x=etta"], "artifact.question_eta.x='etta' is unknown"),
        (["artifact.frequency_figure1.panels=[All]"], "panels='All' is unknown"),
    ],
)
def test_everything_is_checked_before_the_first_run(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        reproduce(configured(tmp_path / "out", *overrides))
    assert not (tmp_path / "out").exists()
