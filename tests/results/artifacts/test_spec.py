"""The shipped artifacts, runs and scales: complete, findable, and documented."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from conftest import ROOT
from lfvit.errors import ConfigError
from lfvit.results.artifacts.__main__ import current
from lfvit.results.artifacts.content import _same
from lfvit.results.artifacts.figures import BUILDERS
from lfvit.results.artifacts.measures import labels_of
from lfvit.results.artifacts.runs import compose_runs, distinct, left_out
from lfvit.results.artifacts.spec import DRAW, choose, published, read_artifacts

SCALES = sorted(path.stem for path in (ROOT / "conf" / "scale").glob("*.yaml"))


@pytest.fixture(scope="module")
def artifacts():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("reproduce")
    return read_artifacts(cfg.artifact, map(str, cfg.runs))


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("overview", ["overview"]),
        ("table2 figure7", ["lf_vit_table2", "lf_vit_figure7", "cf_vit_table2"]),
        (["table7", "question_eta"], ["lf_vit_table7", "question_eta"]),
        ("lf_vit_table1", ["lf_vit_table1"]),
        ("frequency,methods", ["methods", *(f"frequency_{n}" for n in ("table1", "table3"))]),
    ],
)
def test_artifacts_are_found_by_whole_parts_of_their_names(artifacts, words, names):
    found = [artifact.name for artifact in choose(artifacts, words)]
    assert found[: len(names)] == names
    assert all("figure" in name for name in found[len(names) :])
    assert choose(artifacts, None) == list(artifacts.values()) == choose(artifacts, "")


@pytest.mark.parametrize(
    ("word", "close"), [("tabel2", "table2"), ("qestion_eta", "question_eta"), ("zzz", "overview")]
)
def test_an_unknown_word_names_the_close_ones(artifacts, word, close):
    with pytest.raises(ConfigError, match=f"artifacts='{word}' is unknown; .*{close}"):
        choose(artifacts, ["overview", word])


def test_every_table_and_figure_of_the_papers_is_there(artifacts):
    papers = {artifact.paper for artifact in artifacts.values()}
    fatr = "Frequency-aware token reduction"
    assert {f"LF-ViT, Table {n}" for n in range(1, 8)} <= papers
    assert {f"LF-ViT, Figure {n}" for n in range(4, 8)} <= papers
    assert {f"CF-ViT, Table {n}" for n in range(1, 6)} <= papers
    assert {f"{fatr}, {name}" for name in ("Table 1", "Table 3")} <= papers
    assert {f"{fatr}, Figure {n}" for n in (1, 2, 4, 6)} <= papers


def test_rows_of_tables_meet_their_published_ones(artifacts):
    """Only what the paper prints elsewhere has no published row."""
    alone = []
    for artifact in artifacts.values():
        if artifact.kind == "table" and artifact.published:
            papers = artifact.published_rows()
            rows = [labels_of(row) for row in artifact.rows]
            assert sum(any(_same(row, paper) for row in rows) for paper in papers) >= 2
            alone += [
                (artifact.name, row["model"])
                for row in rows
                if sum(_same(row, paper) for paper in papers) != 1
            ]
    assert alone == [("cf_vit_table3", "CF-ViT")] * 2


def test_every_run_is_needed_and_every_way_of_drawing_exists(artifacts):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("reproduce")
    needed = {name for artifact in artifacts.values() for name in artifact.runs}
    assert needed == set(cfg.runs)
    assert set(DRAW) == set(BUILDERS)


RECIPES = [
    *("lf_vit", "cf_vit_lv_vit", "lf_vit_large", "vit_half", "evit_tiny", "tome"),
    *("dynamic_vit", "frequency_o1", "frequency_lv_vit"),
]


EVERY_RUN = pytest.param("needle", True, marks=pytest.mark.chaos)


@pytest.mark.parametrize(("scale", "whole"), [*((scale, False) for scale in SCALES), EVERY_RUN])
def test_runs_of_every_scale_can_be_built(scale, whole, tmp_path):
    """One run of each recipe, or all of them; no two are the same under two names."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        one = ["scale.seeds=[0]", f"output_dir={tmp_path}"]
        cfg = compose("reproduce", [f"scale={scale}", *one])
        every = [name for name in cfg.runs if name not in left_out(cfg)]
        chosen = every if whole else [n for n in RECIPES if n in every]
        runs = compose_runs(cfg, chosen)
    assert len(distinct(runs)) == len(runs) >= len(chosen)
    assert all(run.state == "to do" for run in runs.values())


def test_trainings_start_where_the_scale_says(tmp_path):
    """Runs of one part do, that have no start of their own; other sizes begin at random weights."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        settings = ["scale=needle", "scale.seeds=[3]", f"output_dir={tmp_path}"]
        starts = ["+scale.starts.vit=vit_half", "+scale.starts.lf_vit=vit_half"]
        cfg = compose("reproduce", [*settings, *starts])
        names = ["lf_vit_random", "lf_vit_large", "vit_tiny", "cf_vit", "frequency", "tome"]
        runs = compose_runs(cfg, names)
    assert {key: run.start for key, run in runs.items()} == {
        "vit_half/seed3": None,
        "vit/seed3": "vit_half/seed3",
        "lf_vit_random/seed3": "vit_half/seed3",
        "lf_vit_large/seed3": None,
        "vit_tiny/seed3": None,
        "cf_vit/seed3": None,
        "frequency/seed3": "vit/seed3",
        "tome/seed3": "vit/seed3",
    }
    keys = list(runs)
    assert keys.index("vit_half/seed3") < keys.index("vit/seed3") < keys.index("frequency/seed3")
    start = runs["vit_half/seed3"].folder / "checkpoints" / "last.ckpt"
    assert runs["lf_vit_random/seed3"].train.init_from == str(start)


def test_patterns_leave_out_all_runs_that_they_match():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("reproduce")
    OmegaConf.set_struct(cfg, False)
    cfg.scale.leave_out = {"*_tiny": "small", "lf_vit": "why", "*_m4": "so"}
    found = left_out(cfg)
    assert found["vit_tiny"] == found["tome_tiny"] == "small"
    assert found["lf_vit"] == "why"
    assert found["lf_vit_large_m4"] == "so"
    assert "frequency_tiny_o1" not in found


def test_published_rows_are_those_of_the_papers():
    assert published("lf_vit.table7_loss") == [
        {"loss": "ce_ce", "first": 76.1, "second": 80.4},
        {"loss": "ce_kl", "first": 76.1, "second": 80.8},
    ]
    with pytest.raises(ConfigError, match=r"lf_vit.figure4' is unknown; valid: lf_vit.table1_deit"):
        published("lf_vit.figure4")  # words, no rows


def test_the_list_of_artifacts_is_up_to_date():
    written = (ROOT / "docs" / "reproduce.md").read_text()
    assert written == current(), "run: python -m lfvit.results.artifacts"
