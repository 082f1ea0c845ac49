"""The contributor's guide, followed to the letter in a copy of the project."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the project with the files of the guide in their places."""
    copy = tmp_path_factory.mktemp("project")
    for name in ("conf", "src", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    files = re.findall(r"`([\w/.]+)`:\n\n```\w+\n(.*?)```", guide, re.DOTALL)
    assert [path for path, _ in files] == [
        "src/lfvit/models/selectors/center.py",
        "conf/method/lf_vit_center.yaml",
        "src/lfvit/models/reducers/pairs.py",
        "conf/reducer/pairs.yaml",
    ]
    for path, text in files:
        assert not (copy / path).exists()
        (copy / path).write_text(text)
    return copy


def run(extended, *arguments):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=extended,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(extended / "src"), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


NEW = [
    ["method=lf_vit_center"],
    ["method=vit", "reducer=pairs"],
    ["method=cf_vit", "reducer=pairs", "reducer.passes=first"],
]
TRAIN_ALL = """
import json, runpy, sys
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["train.py", *arguments]
    runpy.run_path("train.py", run_name="__main__")
"""


def test_the_new_options_train(extended, tmp_path):
    """One after the other in one process, which imports everything once."""
    fast = ["debug=fast", "callbacks.progress=null", "trainer.accelerator=cpu", "logger=none"]
    fast += ["data.batch_size=4"]
    lines = [[*new, *fast, f"run_dir={tmp_path / str(i)}"] for i, new in enumerate(NEW)]
    run(extended, "-c", TRAIN_ALL, json.dumps(lines))
    for i, wanted in enumerate(("selector: center", "name: pairs", "name: pairs")):
        assert wanted in (tmp_path / str(i) / "config.yaml").read_text()


COMPILED = "test_a_compiled_model_says_the_same"  # half of the time
QUICK = ("tests/models/test_registry.py", f"(pairs or center) and not {COMPILED}")
EVERYWHERE = pytest.param("tests/models", "pairs or center", marks=pytest.mark.chaos)


@pytest.mark.parametrize(("where", "which"), [QUICK, EVERYWHERE])
def test_the_parametrised_tests_pick_them_up(extended, where, which):
    out = run(extended, "-m", "pytest", where, "-vv", "-k", which)
    passed = re.findall(r"::(test_\w+)\[(\S*(?:pairs|center)\S*)\] PASSED", out)
    names = {name for name, _ in passed}
    assert {
        "test_every_parameter_learns",
        "test_macs_are_those_of_the_operations",
        "test_early_exit_is_one_of_the_two_passes",
        "test_every_selector_finds_its_cells_behind_a_reducer",
    } <= names
    assert (COMPILED in names) == (COMPILED not in which)
    assert {"vit-vit-pairs", "lf_vit-vit-pairs", "cf_vit-vit-pairs"} <= {case for _, case in passed}
