"""Every artifact, end to end, on models that share a few runs; failures, resuming and the plan."""

import csv
import json
import os
import re
import shutil
import signal
import threading
import time

import pytest
from omegaconf import OmegaConf

from conftest import NEEDLE_FAST
from lfvit.commands import jobs
from lfvit.commands.reproduce import reproduce
from lfvit.commands.reproduce_runs import number_of_jobs
from lfvit.commands.train import train
from lfvit.errors import ConfigError, TrainingError
from lfvit.runs.configs import compose_config
from lfvit.runs.resume import last_of
from lfvit.utils.atomic_io import read_json
from lfvit.utils.signals import Stopped

FAST = [
    *(o for o in NEEDLE_FAST if not o.startswith(("trainer", "schedule", "data.batch"))),
    "data.batch_size=16",
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
]
SMALL = (
    "scale=smoke",
    "jobs=1",
    f"scale.overrides={json.dumps(FAST)}",
    "scale.speed_images=2",
    "scale.speed_repeats=1",
    "scale.probe_images=6",
)
KEYS = ("name", "title", "question", "paper", "kind", "scale", "label", "columns", "rows", "notes")
ORIGIN = ("command", "commit", "machine", "written")
BROKEN = ["optimizer.lr=1e30", "lr_scheduler.warmup_epochs=0"]


def configured(out, *overrides):
    cfg = compose_config("reproduce", [*SMALL, f"output_dir={out}", *overrides])
    OmegaConf.set_struct(cfg, False)  # tests shorten it
    return cfg


def one_table(out, runs, *overrides):
    """A single table, of these runs."""
    cfg = configured(out, *overrides)
    rows = [{"model": name, "run": name} for name in runs]
    table = {"title": "t", "question": "q", "measures": ["top1"], "rows": rows}
    cfg.scale.remarks, cfg.artifact, cfg.runs = {}, {"one": table}, runs
    return cfg


def artifact_of(out, name):
    return json.loads((out / "artifacts" / name / "artifact.json").read_text())


def stand_in(name, run):
    """The run that is made instead: one of each kind."""
    if "evaluate" in run:
        return "lf_vit_tome" if name.startswith("lf_vit") else "tome"
    if name.startswith("lf_vit_"):  # has to differ from lf_vit, beside which it is shown
        return "lf_vit_m4"
    kinds = ("lf_vit", "cf_vit_lv_vit", "cf_vit", "dvt", "lv_vit")
    return next((kind for kind in kinds if name.startswith(kind)), "vit")


def with_few_runs(cfg):
    """A config whose artifacts are all there, of `stand_in` runs."""
    for artifact in cfg.artifact.values():
        for row in [*artifact.rows, *artifact.get("yardsticks", [])]:
            row.run = stand_in(row.run, cfg.runs[row.run])
    return cfg


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """The folder of all artifacts, and what was returned."""
    out = tmp_path_factory.mktemp("all")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lfvit.results.plots.plot_evaluation", lambda *_: None)
        return out, reproduce(with_few_runs(configured(out)))


@pytest.fixture(autouse=True)
def without_page(monkeypatch, without_plots):
    """The page is written with all artifacts alone."""
    monkeypatch.setattr("lfvit.results.page.write_page", lambda *_, **__: None)


def test_every_artifact_is_made(everything):
    out, contents = everything
    assert list(contents) == list(compose_config("reproduce").artifact)
    assert (out / "report.html").exists()
    for name, content in contents.items():
        folder = out / "artifacts" / name
        assert artifact_of(out, name) == content
        assert list(content) == [*KEYS, *ORIGIN]
        assert content["scale"] == "smoke"
        assert content["rows"]
        keys = [column["key"] for column in content["columns"]]
        assert all(
            set(column) == {"key", "title", "unit", "digits"} for column in content["columns"]
        )
        assert all(list(row) == keys for row in content["rows"])
        wrong = ("Not made", "Run failed", "Left out")
        assert not any(note.startswith(wrong) for note in content["notes"])
        with (folder / f"{name}.csv").open() as file:
            assert len(list(csv.DictReader(file))) == len(content["rows"])
        assert content["label"] in (folder / f"{name}.md").read_text()
        for kind in ("png", "svg"):
            assert (folder / f"{name}.{kind}").exists() == (content["kind"] == "figure")


def test_published_figures_stand_beside_ours_without_differences(everything):
    _, contents = everything
    rows = contents["lf_vit_table3"]["rows"]
    assert [row["model"] for row in rows if row["source"] == "published only"] == [
        *("IA-RED2", "PS-ViT", "PVT-S", "SaiT-S")
    ]
    deit = rows[0]
    assert deit["top1_paper"] == 79.8
    assert 0 <= deit["top1"] <= 100
    assert not any(key.endswith("_difference") for key in deit)
    assert any("Not comparable" in note for note in contents["lf_vit_table3"]["notes"])


def count_trainings(monkeypatch):
    """Checkpoints that trainings continue, None for one from the beginning."""
    trained = []
    monkeypatch.setattr(jobs, "train", lambda cfg: (trained.append(cfg.ckpt_path), train(cfg))[1])
    return trained


def test_runs_side_by_side_give_what_they_give_alone_and_a_signal_stops_them(
    tmp_path, everything, monkeypatch
):
    """Two at a time: four that end, and of three long ones the last is not begun."""
    epochs = "trainer.max_epochs=1000"
    long = {n: {"train": ["vit", epochs, f"optimizer.lr=0.00{n}"]} for n in "123"}
    runs = {
        "lf_vit": {"train": ["lf_vit", *BROKEN]},
        "vit": {"train": ["vit"]},
        "lf_vit_tome": {"start": "lf_vit", "evaluate": ["reducer=tome"]},
        "taught": {"teacher": "vit", "train": ["lf_vit", "schedule.distill_weight=1"]},
    }

    def send():
        while not all(last_of(tmp_path / "runs" / n / "seed0").exists() for n in "12"):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send, daemon=True).start()
    with pytest.raises(Stopped, match="SIGTERM"):
        reproduce(one_table(tmp_path, {**runs, **long}, "jobs=2"))
    found = {path.parents[1].name: read_json(path) for path in tmp_path.glob("runs/*/*/run.json")}
    statuses = {name: record["status"] for name, record in found.items()}
    ended = {"vit": "done", "taught": "done", "1": "stopped", "2": "stopped"}
    assert statuses == {"lf_vit": "failed", **ended}
    trained = count_trainings(monkeypatch)
    with pytest.raises(TrainingError, match=r"run lf_vit: ") as raised:
        reproduce(one_table(tmp_path, runs))
    assert len(trained) == 1  # what failed
    assert "lf_vit_tome: TrainingError: needs lf_vit/seed0, which failed" in str(raised.value)
    alone = {row["model"]: row["top1"] for row in everything[1]["methods"]["rows"]}
    *before, taught = [row["top1"] for row in artifact_of(tmp_path, "one")["rows"]]
    assert before == [None, alone["ViT"], None]
    assert taught is not None
    config = OmegaConf.load(tmp_path / "runs" / "taught" / "seed0" / "config.yaml")
    assert config.schedule.teacher == str(last_of(tmp_path / "runs" / "vit" / "seed0"))


def test_as_many_runs_as_cores_go_side_by_side_unless_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert (number_of_jobs("auto"), number_of_jobs(3)) == (2, 3)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert number_of_jobs("auto") == 1


def test_finished_trainings_are_found_elsewhere(tmp_path, monkeypatch):
    vit = {"vit": {"train": ["vit"]}}
    reproduce(one_table(tmp_path / "made", vit))
    trained = count_trainings(monkeypatch)
    reuse = f"reuse=[{tmp_path / 'made' / 'runs'}]"
    reproduce(one_table(tmp_path / "again", vit, reuse, "scale.seeds=[0,1]"))
    assert trained == [None]  # the other seed
    reproduce(one_table(tmp_path / "lr", vit, reuse, 'overrides=["optimizer.lr=0.002"]'))
    assert trained == [None, None]
    with pytest.raises(ConfigError, match=r"reuse=.*nowhere: no such folder"):
        reproduce(one_table(tmp_path / "no", vit, f"reuse=[{tmp_path / 'nowhere'}]"))


def test_seeds_are_averaged_and_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    trained = count_trainings(monkeypatch)
    runs = {"vit": {"train": ["vit"]}, "tome": {"start": "vit", "evaluate": ["reducer=tome"]}}
    cfg = one_table(tmp_path, runs, "scale.seeds=[0,1]")
    rows = reproduce(cfg)["one"]["rows"]
    assert trained == [None, None]
    paths = sorted((tmp_path / "runs").glob("vit/seed*/evaluation/evaluate.json"))
    each = [json.loads(path.read_text())["passes"][0]["top1"] for path in paths]
    assert len(each) == 2
    assert rows[0]["top1"] == pytest.approx(sum(each) / 2)
    assert rows[0]["top1_spread"] == pytest.approx(abs(each[0] - each[1]) / 2**0.5)
    folder = tmp_path / "runs" / "vit" / "seed1"
    shutil.rmtree(folder / "evaluation")
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "status": "running"}))  # as if killed
    trained.clear()
    assert reproduce(cfg)["one"]["rows"] == rows
    assert trained == [str(folder / "checkpoints" / "last.ckpt")]
    reproduce(OmegaConf.merge(cfg, {"fresh": True}))
    assert trained[1:] == [None, None]
    with pytest.raises(ConfigError, match="seed0 holds something else than this run; pass another"):
        reproduce(OmegaConf.merge(cfg, {"overrides": ["data.train_images=48"]}))


def test_what_fails_does_not_lose_the_others(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError("no space left")

    monkeypatch.setattr("lfvit.results.artifacts.figures.plot_panels", broken)
    cfg = configured(
        tmp_path, "artifacts=[lf_vit_table7,lf_vit_figure7,overview,frequency_figure1]"
    )
    cfg.runs.lf_vit_ce_ce = cfg.runs.lf_vit
    cfg.runs.vit.train = ["vit", *BROKEN]
    with pytest.raises(TrainingError, match=r"2 failed, the rest is made.*\n  run vit: ") as raised:
        reproduce(cfg)
    assert "artifact lf_vit_figure7: OSError: no space left" in str(raised.value)
    assert artifact_of(tmp_path, "lf_vit_figure7")["notes"] == ["Not made: no space left"]
    overview = artifact_of(tmp_path, "overview")
    assert {row["source"] for row in overview["rows"]} == {"measured", "failed"}
    assert any(note.startswith("Run failed: vit, ") for note in overview["notes"])
    rows = artifact_of(tmp_path, "lf_vit_table7")["rows"]
    assert {row["source"] for row in rows} == {"measured"}
    assert artifact_of(tmp_path, "frequency_figure1")["rows"] == []
    assert not (tmp_path / "artifacts" / "frequency_figure1" / "frequency_figure1.png").exists()


def test_where_every_run_fails_each_says_why(tmp_path):
    cfg = configured(tmp_path, "artifacts=[lf_vit_table7]", f"overrides={json.dumps(BROKEN)}")
    with pytest.raises(TrainingError, match="failed, the rest is made") as raised:
        reproduce(cfg)
    assert "run lf_vit: " in str(raised.value)


def test_a_few_trainings_make_what_they_can_of_every_artifact(tmp_path):
    names = ["lf_vit_table7", "lf_vit_table4", "cf_vit_table1", "lf_vit_figure7"]
    few = ["scale.trainings=[lf_vit]", f"scale.artifacts={json.dumps(names)}"]
    cfg = configured(tmp_path, *few)
    contents = reproduce(cfg)
    assert list(contents) == names
    assert [path.name for path in (tmp_path / "runs").glob("*/seed0")] == ["seed0"]
    table = contents["lf_vit_table7"]
    assert [row["source"] for row in table["rows"]] == ["left out", "measured"]
    assert any("Left out at this scale: lf_vit_ce_ce: not among" in note for note in table["notes"])
    command = "scale=smoke artifacts=lf_vit_table7"
    assert any(note.endswith(command) for note in table["notes"])
    assert {row["source"] for row in contents["cf_vit_table1"]["rows"]} == {"left out"}
    assert not any("Left out" in note for note in contents["lf_vit_figure7"]["notes"])
    asked = reproduce(configured(tmp_path, *few, "artifacts=lf_vit_table7"))
    assert {row["source"] for row in asked["lf_vit_table7"]["rows"]} == {"measured"}
    again = reproduce(cfg)  # and what is made stays
    assert again["lf_vit_table7"]["rows"] == asked["lf_vit_table7"]["rows"]


def test_the_plan_runs_nothing(tmp_path, capsys):
    cfg = configured(tmp_path / "out", "plan=true", "artifacts=frequency_table3")
    names = ["frequency", "lf_vit_taught"]  # by a teacher that is not there yet
    cfg.artifact.frequency_table3.rows = [{"run": name} for name in names]
    cfg.scale.parts.frequency.append("trainer.limit_train_batches=1")
    planned = reproduce(cfg)
    assert not (tmp_path / "out").exists()
    rows = {row["run"]: row for row in planned["runs"]}
    assert {key: (row["state"], row["steps"]) for key, row in rows.items()} == {
        "lf_vit_taught/seed0": ("to do", 2),
        "vit/seed0": ("to do", 2),
        "frequency/seed0": ("to do", 1),
    }
    for row in rows.values():
        assert row["hours"] == pytest.approx(row["steps"] * row["step"] / 3600)
        assert row["step"] > 0
    assert "device-hours" in capsys.readouterr().out


def test_every_run_of_trained_weights_as_they_are_can_be_planned(tmp_path, monkeypatch):
    monkeypatch.setattr("lfvit.commands.reproduce.print_plan", lambda planned, scale: planned)
    every = configured(tmp_path).runs
    runs = {name: run for name, run in every.items() if "evaluate" in run}
    cfg = one_table(tmp_path, runs, "plan=true")
    cfg.runs = every
    planned = reproduce(cfg)
    assert {f"{name}/seed0" for name in runs} <= planned.keys()


def test_nothing_is_removed_that_it_did_not_write(tmp_path):
    precious = tmp_path / "runs" / "vit" / "seed0" / "precious.txt"
    precious.parent.mkdir(parents=True)
    precious.touch()
    for fresh in ("true", "false"):
        with pytest.raises(ConfigError, match="seed0 holds something else than this run"):
            reproduce(one_table(tmp_path, {"vit": {"train": ["vit"]}}, f"fresh={fresh}"))
    assert precious.exists()


TWO = "artifacts=[overview]"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["artifacts=tabel2"], "artifacts='tabel2' is unknown; close: table2"),
        (["data_root=/photos"], "scale=smoke generates its images; leave DATA out"),
        (["+scale.starts.nobody=vit"], "scale.starts='nobody' is unknown"),
        (["runs.lf_vit.train=[lfvit]", TWO], "train='lfvit' is unknown; did you mean lf_vit"),
        (["+runs.lf_vit.start=nobody", TWO], "runs.lf_vit.start='nobody' is unknown"),
        (["+runs.vit.start=vit", TWO], "vit start from each other"),
        (["+runs.vit.trian=[]", TWO], "runs.vit.trian is no setting; did you mean train"),
        (["~runs.tome.start", "artifacts=methods"], "a run needs train, or start and evaluate"),
        (['overrides=["method.alpha=2"]', TWO], "run lf_vit: .*alpha=2"),
        (['overrides="method.alpha=2"', TWO], "run lf_vit: .*alpha=2"),
        (
            ['overrides=["augment.mixpu=1"]', TWO],
            "run lf_vit: augment.mixpu is no setting",
        ),
        (['overrides=["seed=3"]'], "every run has its own seed; pass scale.seeds="),
        (['overrides=["method=vit"]'], "every run has its own method"),
        (['overrides=["reducer.name=tome"]'], r"every run has its own reducer\.name"),
        (["reuse=/nowhere"], "reuse=/nowhere: no such folder"),
        (["scale.seeds=[0,0]"], "a seed is named twice"),
        (["+artifact.overview.colour=red"], "artifact.overview.colour is no setting"),
        (["artifact.lf_vit_table7.published=[lf_vit.table8]"], "published='lf_vit.table8' is unkn"),
        (["artifact.lf_vit_table7.rows=[{run:vitt}]"], "rows.run='vitt' is unknown; did you mean"),
    ],
)
def test_everything_is_checked_before_the_first_run(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=re.compile(message)):
        reproduce(configured(tmp_path / "out", *overrides))
    assert not (tmp_path / "out").exists()
