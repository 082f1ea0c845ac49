"""The wheel by itself, from another folder: the commands, and what they import."""

import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from conftest import NEEDLE_FAST, ROOT, photograph, run_python

MINE = "# @package _global_\nname: mine\ntrainer: {max_epochs: 1}\n"
IMPORTS = """
import sys
import timm, torch
before = set(sys.modules)
import lfvit
model = lfvit.create_model("lf_vit", backbone="deit_tiny_patch16_224", reducer="evit").eval()
lfvit.load_checkpoint(model, model.state_dict())
with torch.inference_mode():
    model.infer(torch.zeros(1, 3, 224, 224), threshold=0.5)
names = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(names - set(sys.stdlib_module_names)))
"""
SEVERAL = """
import io, json, sys
from contextlib import redirect_stdout
from hydra.core.global_hydra import GlobalHydra
from lfvit.cli import main
said = []
for words in json.loads(sys.argv[1]):
    if words[0] == "HINT":  # as printed by the training before
        (hint,) = (line for line in said[-1].splitlines() if line.startswith("to evaluate: "))
        words = [*hint.removeprefix("to evaluate: lfvit ").split(), *words[1:]]
    sys.argv = ["lfvit", *words]
    GlobalHydra.instance().clear()
    with redirect_stdout(io.StringIO()) as printed:
        main()
    said.append(printed.getvalue())
print("SAID", json.dumps(said))
sys.modules["gradio"], sys.argv = None, ["lfvit", "demo"]
GlobalHydra.instance().clear()
main()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built as pip does."""
    build = pytest.importorskip("hatchling.builders.wheel", reason="hatchling builds the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    return Path(next(build.WheelBuilder(str(ROOT)).build(directory=str(folder))))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Run Python in a folder where only the wheel's content is lfvit."""
    site, cwd = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("elsewhere")
    zipfile.ZipFile(wheel).extractall(site)

    def run(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        return run_python("-W", "ignore", *arguments, cwd=cwd, status=status, PYTHONPATH=str(site))

    run.cwd = cwd  # type: ignore[attr-defined]
    return run


def test_everything_that_is_not_python_travels_in_it(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith(".py")}
    for folder in (ROOT / "conf", ROOT / "src" / "lfvit"):
        inside = "lfvit/conf" if folder.name == "conf" else "lfvit"
        for path in folder.rglob("*.*"):
            if path.is_file() and path.suffix in (".yaml", ".md", ".html", ".css", ".js", ".typed"):
                assert f"{inside}/{path.relative_to(folder).as_posix()}" in names
    assert any(name.startswith("lfvit/zoo/") and name.endswith(".safetensors") for name in names)
    (entry,) = (name for name in names if name.endswith("entry_points.txt"))
    assert zipfile.ZipFile(wheel).read(entry).decode().split("\n")[1] == "lfvit = lfvit.cli:main"
    assert all(name.startswith("lfvit") for name in names)


def test_commands_from_any_folder(installed):
    """A config of one's own, a training, its evaluation by the hint it prints, and the report.

    And an extra that is missing is named.
    """
    (installed.cwd / "my" / "experiment").mkdir(parents=True)
    (installed.cwd / "my" / "experiment" / "mine.yaml").write_text(MINE)
    photograph((90, 70), 0, 0).save(installed.cwd / "photo.jpg")
    own = ["--config-dir", "my", "experiment=mine"]
    commands = [
        ["train", *own, *NEEDLE_FAST, "trainer.max_epochs=1"],
        ["HINT", "data.num_workers=0", "hydra.run.dir=outputs/evaluated"],
        ["predict", "photo.jpg", "accelerator=cpu"],
        ["report", "outputs"],
    ]
    done = installed("-c", SEVERAL, json.dumps(commands), status=2)
    assert done.stderr.endswith("error: gradio is not installed; pip install 'lfvit[demo]'\n")
    said = json.loads(done.stdout.rpartition("SAID")[2])
    assert (installed.cwd / "outputs" / "evaluated" / "evaluate.json").exists()
    (run,) = installed.cwd.glob("outputs/mine/*")
    recorded = json.loads((run / "environment.json").read_text())["command"]
    assert recorded.startswith("lfvit train --config-dir my experiment=mine data.train_images=32")
    assert (run / "train.log").exists()
    assert list(installed.cwd.glob("outputs/predict/*/0000_photo.png"))
    assert "evaluations of" in said[-1]
    assert "no command 'trian'; did you mean train?" in (
        installed("-m", "lfvit", "trian", status=2).stderr
    )
    listed = installed("-m", "lfvit").stdout
    assert all(f"  {path.stem} " in listed for path in (ROOT / "conf").glob("*.yaml"))


def test_models_need_pytorch_timm_and_pydantic_alone(installed):
    imported = installed("-c", IMPORTS).stdout.split()
    assert set(imported) <= {
        *("lfvit", "pydantic", "pydantic_core", "annotated_types", "typing_inspection"),
    }
