"""What docs/extending.md promises: each kind of thing is added in so many files."""

import json
import os
import re
import shutil

import pytest

from conftest import ROOT, run_python

GUIDE = (ROOT / "docs" / "extending.md").read_text()
MINE = """
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger


class MyCallback(Callback):
    def on_fit_end(self, trainer, module):
        print("MyCallback ran")


class MyLogger(CSVLogger):
    pass
"""
# what is added -> command line, and what config.yaml then says
ADDED = {
    "an optimizer": (["optimizer._target_=torch.optim.NAdam"], "torch.optim.NAdam"),
    "a learning-rate scheduler": (
        [
            *("lr_scheduler=torch", "lr_scheduler.step_size=1"),
            "lr_scheduler._target_=torch.optim.lr_scheduler.StepLR",
        ],
        "step_size: 1",
    ),
    "a callback": (["callbacks.mine._target_=my_package.MyCallback"], "my_package.MyCallback"),
    "a logger": (
        ["logger.mine._target_=my_package.MyLogger", "logger.mine.save_dir=logs"],
        "my_package.MyLogger",
    ),
    "a backbone": (
        ["method=vit", "backbone.timm=test_vit", "image_size=64"],
        "timm: test_vit",
    ),
    "a data set": (["data.dataset._target_=stripes.Stripes", "data.dataset.count=12"], "stripes"),
    "a selector": (["method.selector=center"], "selector: center"),
    "a reducer": (["method=cf_vit", "reducer=pairs", "reducer.passes=first"], "name: pairs"),
}
TRAIN_ALL = """
import json, runpy, sys
lines, tests = map(json.loads, sys.argv[1:])
for arguments in lines:
    sys.argv = ["train.py", *arguments]
    runpy.run_path("train.py", run_name="__main__")
import pytest
sys.exit(pytest.main(tests))
"""


@pytest.fixture
def extended(tmp_path_factory):
    """A copy of the project with the files of the guide in their places."""
    copy = tmp_path_factory.mktemp("project")
    for name in ("conf", "src", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    files = dict(re.findall(r"`([\w/.]+)`[^`]*:\n\n```\w+\n(.*?)```", GUIDE, re.DOTALL))
    assert list(files) == [
        "src/lfvit/models/selectors/center.py",
        "src/lfvit/models/reducers/pairs.py",
        "conf/reducer/pairs.yaml",
        "stripes.py",
    ]
    for path, text in {**files, "my_package.py": MINE}.items():
        assert not (copy / path).exists()
        (copy / path).write_text(text)
    return copy


def run(extended, *arguments):
    path = os.pathsep.join([str(extended / "src"), str(extended)])
    return run_python(*arguments, cwd=extended, PYTHONPATH=path).stdout


def check_cases(out):
    """Tests over the registry took what was added."""
    passed = re.findall(r"::(test_\w+)\[(\S*(?:pairs|center)\S*)\] PASSED", out)
    cases = {case for _, case in passed}
    assert len({name for name, _ in passed}) > 3
    assert {"vit-vit-pairs", "lf_vit-vit-pairs", "cf_vit-vit-pairs"} <= cases


def test_every_kind_of_addition_trains_and_the_tests_over_the_registry_pick_it_up(
    extended, tmp_path
):
    """One after the other in one process, which imports everything once."""
    assert re.findall(r"^\| (an? [\w -]+?) \| \d", GUIDE, re.MULTILINE) == list(ADDED)
    fast = [
        "trainer.fast_dev_run=true",
        "callbacks.progress=null",
        "trainer.accelerator=cpu",
        "logger=none",
    ]
    fast += ["data.batch_size=4", "data.num_workers=0"]
    lines = [
        [*fast, *added, f"run_dir={tmp_path / str(i)}"]
        for i, (added, _) in enumerate(ADDED.values())
    ]
    quick = "(pairs or center) and not test_a_compiled_model_says_the_same"  # half of the time
    tests = ["tests/models/test_registry.py", "-vv", "-k", quick]
    out = run(extended, "-c", TRAIN_ALL, json.dumps(lines), json.dumps(tests))
    assert out.count("MyCallback ran") == 1
    for i, (name, (_, wanted)) in enumerate(ADDED.items()):
        assert wanted in (tmp_path / str(i) / "config.yaml").read_text(), name
    check_cases(out)


@pytest.mark.chaos
def test_all_tests_of_models_pick_them_up(extended):
    check_cases(run(extended, "-m", "pytest", "tests/models", "-vv", "-k", "pairs or center"))
