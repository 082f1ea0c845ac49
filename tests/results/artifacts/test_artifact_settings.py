"""The shipped artifacts, runs and scales: complete, named, and documented."""

import runpy
from functools import cache

import pytest
import torch

from lfvit.commands.reproduce_runs import plan_runs
from lfvit.errors import ConfigError
from lfvit.results.artifacts.settings import Run, Scale, choose, read_artifacts
from lfvit.results.artifacts.write import DRAWINGS, OF_ONE_RUN
from lfvit.runs.configs import compose_config
from lfvit.utils.paths import CHECKOUT
from lfvit.utils.validation import plain

LISTS = runpy.run_path(str(CHECKOUT / "scripts" / "artifact_list.py"))


@pytest.fixture(scope="module")
def cfg():
    return compose_config("reproduce")


@pytest.fixture(scope="module")
def artifacts(cfg):
    return read_artifacts(plain(cfg.artifact), plain(cfg.runs))


def runs_of(cfg):
    return {name: Run(**run) for name, run in plain(cfg.runs).items()}


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("overview", ["overview"]),
        ("table2 figure7", ["lf_vit_table2", "lf_vit_figure7", "cf_vit_table2"]),
        (["table7", "question_eta"], ["question_eta", "lf_vit_table7"]),
        ("lf_vit_table1", ["lf_vit_table1"]),
        ("frequency,methods", ["methods", *(f"frequency_{n}" for n in ("table1", "table3"))]),
    ],
)
def test_artifacts_are_chosen_by_whole_parts_of_their_names(artifacts, words, names):
    chosen = [artifact.name for artifact in choose(artifacts, words)]
    assert chosen[: len(names)] == names
    assert all("figure" in name for name in chosen[len(names) :])
    assert choose(artifacts, None) == list(artifacts.values()) == choose(artifacts, "")


@pytest.mark.parametrize(
    ("word", "close"), [("tabel2", "table2"), ("qestion_eta", "question_eta"), ("zzz", "overview")]
)
def test_an_unknown_word_names_the_close_ones(artifacts, word, close):
    with pytest.raises(ConfigError, match=f"artifacts='{word}' is unknown; close: .*{close}"):
        choose(artifacts, ["overview", word])


def test_every_table_and_figure_of_the_papers_is_there(artifacts):
    papers = {artifact.paper for artifact in artifacts.values()}
    frequency = "Frequency-aware token reduction"
    assert {f"LF-ViT, Table {n}" for n in range(1, 8)} <= papers
    assert {f"LF-ViT, Figure {n}" for n in range(4, 8)} <= papers
    assert {f"CF-ViT, Table {n}" for n in range(1, 6)} <= papers
    assert {f"{frequency}, Table {n}" for n in (1, 3)} <= papers
    assert {f"{frequency}, Figure {n}" for n in (1, 2, 4, 6)} <= papers


def test_rows_of_tables_meet_their_published_ones(artifacts):
    """Only what the paper prints elsewhere has no published row."""
    alone = []
    for artifact in artifacts.values():
        if artifact.draw is None and artifact.published:
            papers = [paper.items() for paper in artifact.published_rows()]
            counts = [sum(row.labels.items() <= p for p in papers) for row in artifact.rows]
            assert sum(counts) >= 2
            alone += [
                (artifact.name, row.title)
                for row, count in zip(artifact.rows, counts, strict=True)
                if count != 1
            ]
    assert alone == [("cf_vit_table3", "CF-ViT")] * 2


def test_every_run_is_needed_and_every_way_of_drawing_exists(artifacts, cfg):
    assert {name for artifact in artifacts.values() for name in artifact.runs} == set(cfg.runs)
    for artifact in artifacts.values():
        draw = artifact.draw
        assert draw is None or draw in {**DRAWINGS, **OF_ONE_RUN}


def planned_by(cfg, scale, names):
    """What is planned for a table of these runs."""
    table = {"title": "t", "question": "q", "rows": [{"run": name} for name in names]}
    runs = runs_of(cfg)
    artifacts = read_artifacts({"all": table}, runs).values()
    return plan_runs(cfg, scale, runs, artifacts, ())


@pytest.mark.parametrize("name", LISTS["SCALES"])
def test_runs_of_every_scale_can_be_built(name, tmp_path):
    """Every part of the scale, and the blocks that papers name."""
    settings = ["scale.trainings=null", "scale.seeds=[0]", f"output_dir={tmp_path}"]
    cfg = compose_config("reproduce", [*settings, f"scale={name}"])
    scale, runs = Scale(**plain(cfg.scale)), runs_of(cfg)
    scale.check_names(runs, read_artifacts(plain(cfg.artifact), runs))
    left_out, words, chosen = scale.left_out(runs), set(), []
    for run in ("frequency_tiny_o1", "frequency_base_o1", *runs):
        parts = {word for word in runs[run].train if "=" not in word}
        if run not in left_out and not parts <= words:
            words |= parts
            chosen.append(run)
    with torch.device("meta"):
        planned = planned_by(cfg, scale, chosen)
    keys = list(planned)
    for number, run in enumerate(planned.values()):
        assert run.start is None or keys.index(run.start) < number


def test_trainings_start_where_the_scale_says(tmp_path):
    """By the last part, whatever a run overrides; runs of other sizes begin at random weights."""
    starts = ["+scale.starts.vit=vit_half", "+scale.starts.lf_vit=vit_half", "scale.seeds=[3]"]
    cfg = compose_config("reproduce", [*starts, f"output_dir={tmp_path}"])
    scale = Scale(**plain(cfg.scale))
    names = ["lf_vit", "lf_vit_m4", "lf_vit_large", "vit_tiny", "cf_vit", "frequency", "tome"]
    planned = planned_by(cfg, scale, names)
    assert {key: run.start for key, run in planned.items()} == {
        "vit_half/seed3": None,
        "lf_vit/seed3": "vit_half/seed3",
        "lf_vit_m4/seed3": "vit_half/seed3",
        "lf_vit_large/seed3": None,
        "vit_tiny/seed3": None,
        "cf_vit/seed3": None,
        "vit/seed3": "vit_half/seed3",
        "frequency/seed3": "vit/seed3",
        "tome/seed3": "vit/seed3",
    }
    start = planned["vit_half/seed3"].folder / "checkpoints" / "last.ckpt"
    assert planned["lf_vit/seed3"].cfg.init_from == str(start)


@cache
def composed(overrides):
    return compose_config("train", overrides)


@pytest.mark.parametrize("name", ["imagenette", "imagenette_cpu", "finetune_cpu"])
def test_no_run_begins_at_random_weights_with_the_epochs_of_one_that_does_not(
    name, tmp_path, monkeypatch
):
    def shortened(_, overrides):  # to what decides on epochs
        return composed(tuple(o for o in overrides if o.startswith(("experiment=", "trainer."))))

    monkeypatch.setattr("lfvit.commands.reproduce_runs.compose_config", shortened)
    monkeypatch.setattr("lfvit.commands.reproduce_runs.check", lambda *_, **__: None)
    overrides = [f"scale={name}", "scale.seeds=[0]", "data_root=x", f"output_dir={tmp_path}"]
    cfg = compose_config("reproduce", overrides)
    scale, runs = Scale(**plain(cfg.scale)), runs_of(cfg)
    left_out = scale.left_out(runs)
    names = [name for name, run in runs.items() if run.train and name not in left_out]
    planned = planned_by(cfg, scale, names)
    begun = {key for key, run in planned.items() if run.start is None}
    epochs = {key: run.cfg.trainer.max_epochs for key, run in planned.items()}
    assert begun
    assert min(epochs[key] for key in begun) > max(epochs[k] for k in {*planned} - begun)


def test_patterns_leave_out_all_runs_that_they_match(cfg):
    patterns = {"*_tiny": "small", "lf_vit": "why", "*_m4": "so"}
    left_out = Scale(**{**plain(cfg.scale), "leave_out": patterns}).left_out(runs_of(cfg))
    assert left_out["vit_tiny"] == left_out["tome_tiny"] == "small"
    assert left_out["lf_vit"] == "why"
    assert left_out["lf_vit_large_m4"] == "so"
    assert "evit" not in left_out


def test_runs_beyond_the_few_trainings_are_left_out_unless_they_are_made(cfg):
    scale, runs = Scale(**{**plain(cfg.scale), "trainings": ["lf_vit", "vit"]}), runs_of(cfg)
    left_out = scale.left_out(runs)
    names = ("lf_vit", "vit", "lf_vit_tome", "tome", "evit_as_is")
    assert not left_out.keys() & {*names}
    more = ("evit", "evit_finetuned", "vit_tiny", "tome_tiny", "lf_vit_taught", "lf_vit_large")
    assert left_out.keys() >= {*more}
    made = scale.left_out(runs, ["vit_tiny", "lf_vit_taught", "tome_base"])
    gone = {"vit_tiny", "lf_vit_taught", "tome_tiny", "frequency_tiny", "tome_base"}
    assert gone - made.keys() == {"vit_tiny", "lf_vit_taught", "tome_tiny", "tome_base"}


def test_the_list_of_artifacts_is_up_to_date():
    page = LISTS["PAGE"].read_text()
    assert page == LISTS["updated_page"](), "run: python scripts/artifact_list.py"
