"""Every command and every Python example of the documentation runs, at small size."""

import re
import runpy
import shlex
import shutil
import subprocess
import sys
import types

import pytest
import torch

from conftest import NEEDLE_FAST, ROOT, run_python, run_script, write_shards
from lfvit.cli import main
from lfvit.commands.evaluate import evaluate
from lfvit.models.registry import REDUCERS, SELECTORS

# test_sweeps.py, test_search.py, test_wandb_page.py and test_distributed_page.py
ELSEWHERE = ("sweeps.md", "wandb.md", "distributed.md")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in ELSEWHERE),
]
SMALL_FOLDER = (
    *("image_size=64", "data.batch_size=4", "data.num_workers=0", "trainer.precision=32-true"),
    *("trainer.max_epochs=1", "schedule.selection_start=0", "lr_scheduler.warmup_epochs=0"),
    "callbacks.progress=null",
    *(
        "backbone=vit_mini",
        "backbone.embed_dim=24",
        "backbone.depth=4",
        "backbone.num_heads=2",
        "backbone.patch_size=8",
    ),
    *("trainer=cpu", "trainer.accelerator=cpu", "logger=csv"),
)
SHORT = ("trainer.max_epochs=1", "data.train_images=16", "data.val_images=8")
SMALL = {
    "evaluate.py": ("data.num_workers=0",),
    "predict.py": ("accelerator=cpu",),
    "diagnose.py": ("data.num_workers=0",),
    "benchmark.py": (
        *("backbone=vit_micro", "image_size=112", "num_classes=8", "batch_sizes=[1,2]"),
        *("repeats=1", "warmup=0", "accelerator=cpu", "compile=false"),
    ),
    "export.py": ("agreement=0",),
}
INSTEAD = {
    "pretrained=true": "schedule.layer_decay=1",  # weights are not fetched
    " backbone.timm=vit_small_patch14_dinov2": "",
    "method.region_size=4,5,6 method.alpha=0.5,0.88 seed=0,1,2": "method.alpha=0.5,0.88",
    "reducer.keep_rate=0.5,0.7,0.9": "reducer.keep_rate=0.5",
    "lfvit export ckpt_path=zoo:default": "lfvit export ckpt_path=FILE",
}
MAKE = re.compile(r"make( [\w-]+| [A-Z]+=(\"[^\"]*\"|\S+))*")


def commands(page):
    """The command lines of a page's shell examples, without comments."""
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.split(r"\s+#\s", line)[0].strip().replace(".venv/bin/", "")
            if command:
                yield command


def alike(command):
    """Pages that differ in the places of their files alone run the same."""
    places = r"(ckpt_path|image)=\S+| hydra\.run\.dir=\S+|(?<=lfvit\.runtime ).*"
    return re.sub(places, r"\1", command)


def shown() -> list[tuple[str, str]]:
    """The commands of all pages, each with the first page that has it."""
    found: dict[str, tuple[str, str]] = {}
    for page in PAGES:
        for command in commands(page):
            found.setdefault(alike(command), (page.name, command))
    return list(found.values())


ALL = shown()


@pytest.fixture(scope="module")
def example(tmp_path_factory, composed, trained_run, photographs):
    """What the placeholders stand for, and a folder to run in."""
    evaluated, other = (tmp_path_factory.mktemp("runs") / name for name in ("one", "other"))
    for run in (evaluated, other):
        shutil.copytree(trained_run, run)
        weights = f"ckpt_path={run / 'checkpoints' / 'last.ckpt'}"
        settings = ["data.num_workers=0", f"run_dir={run / 'evaluation'}"]
        evaluate(composed("evaluate", weights, *settings))
    shards = tmp_path_factory.mktemp("shards")
    write_shards(photographs, shards)
    return {
        "FILE_OR_FOLDER": str(photographs / "pear"),
        "DIR_OR_PHOTO": str(photographs / "pear"),
        "IMAGE...": str(photographs / "pear" / "00.jpg"),
        "IMAGENET": str(photographs),
        "PHOTO": str(photographs / "pear" / "00.jpg"),
        "FILE": str(trained_run / "checkpoints" / "last.ckpt"),
        "DIR": str(photographs),
        "SHARDS": str(shards),
        "outputs/sweep other/run": f"{evaluated} {other}",
        "outputs": str(evaluated.parent),
        "cwd": tmp_path_factory.mktemp("docs"),
    }


def typed(command, example, monkeypatch):
    """Run a command line in this process, as far as it is one of the project's scripts."""
    program, script, *arguments = shlex.split(command if " " in command else f"{command} --help")
    assert program in ("python", "lfvit")
    monkeypatch.chdir(example["cwd"])
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", example["cwd"] / "cache")
    if script == "-m":
        module, *arguments = arguments
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        runpy.run_module(module, run_name="__main__")
        return
    small = SMALL.get(script, ())
    if script == "train.py":
        folder = any(argument.startswith("data.root=") for argument in arguments)
        small = SMALL_FOLDER if folder else (*NEEDLE_FAST, *SHORT)
        if "init_from=zoo:" in command:  # whose model has a size
            small = [each for each in small if not each.startswith(("backbone", "image_size"))]
    if program == "lfvit":
        monkeypatch.setattr(sys, "argv", [program, script, *arguments])
        main()
        return
    assert run_script(script.removesuffix(".py"), *arguments, *small) == 0


@pytest.mark.parametrize(("page", "command"), ALL, ids=[f"{p}: {c}" for p, c in ALL])
def test_a_command_of_the_documentation(
    page, command, example, exported, quick_export, without_plots, monkeypatch
):
    for word, other in INSTEAD.items():
        command = command.replace(word, other)
    if command.startswith("make"):
        assert MAKE.fullmatch(command), command
        plan = ["make", "-n", *shlex.split(command)[1:]]
        subprocess.run(plan, cwd=ROOT, check=True, capture_output=True)
        return
    # runs that earlier lines of a page would have left behind
    command = re.sub(r"outputs/(?!export)[\w/]+/checkpoints/last\.ckpt", "FILE", command)
    for word in sorted(example.keys() - {"cwd"}, key=len, reverse=True):
        command = re.sub(rf"(?<![\w/]){re.escape(word)}(?![\w/])", example[word], command)
    if "lfvit.runtime" in command:
        command = re.sub(r"outputs/export\S*", str(exported), command)
    typed(command, example, monkeypatch)


def test_the_site_builds_without_warnings(tmp_path):
    """mkdocs.yml is strict: a broken link or a missing docstring target fails."""
    run_python("-m", "mkdocs", "build", "--site-dir", tmp_path / "site", cwd=ROOT)
    configuration = (tmp_path / "site" / "configuration.html").read_text()
    for path in (ROOT / "conf").rglob("*.yaml"):
        group = path.parent.relative_to(ROOT / "conf").as_posix()
        title = f"{path.stem}.py" if group == "." else f"{group}={path.stem}"
        assert f">{title}<" in configuration
    assert "http" not in "".join(
        re.findall(r'<(?:script|img)[^>]+src="([^"]+)"', configuration)
    )  # the pages open without a network


def python_examples(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


WHOLE = [page for page in PAGES if page.name != "CONTRIBUTING.md" and python_examples(page)]


@pytest.fixture
def registered():
    """Names that an example registers are forgotten after it."""
    before = [(registry, set(registry)) for registry in (SELECTORS, REDUCERS)]
    yield
    for registry, names in before:
        for name in set(registry) - names:
            del registry._items[name]


@pytest.mark.parametrize("page", WHOLE, ids=lambda page: page.name)
def test_the_python_examples_of_a_page_run_one_after_the_other(
    page, trained_run, registered, monkeypatch
):
    """Names they take for granted: images, a checkpoint, and weights that would be fetched."""
    import timm

    import lfvit

    original = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, pretrained=False, **kw: original(name, **kw)
    )
    loaded = []
    monkeypatch.setattr(
        lfvit, "load_checkpoint", lambda model, source: loaded.append(source), raising=False
    )
    scope = {
        "lfvit": lfvit,
        "images": torch.randn(1, 3, 224, 224),
        "MySource": types.SimpleNamespace,
    }
    for example in python_examples(page):
        exec(compile(example, page.name, "exec"), scope)


def test_the_tests_that_show_what_happens_exist():
    named = re.findall(
        r"`([\w/]*\.?p?y?)::(test_\w+)", (ROOT / "docs" / "reliability.md").read_text()
    )
    assert len(named) > 60
    path = ""
    for said, name in named:
        path = said or path  # "::test_name" is in the file named before
        assert f"def {name}(" in (ROOT / path).read_text(), f"{path}::{name}"


LINK = re.compile(r"\]\(([^)\s#]*)(?:#([^)\s]+))?\)")
FILE = re.compile(r"`((?:src|conf|docs|tests|zoo|scripts)/[\w./*-]+)`")
PLACEHOLDERS = {"NAME.py", "OPTION.yaml", "center.py", "pairs.py", "pairs.yaml"}
WRITTEN = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "zoo").rglob("*.md"), *ROOT.glob("*.md")]


def headings(page):
    """The anchors of a page, as mkdocs and GitHub make them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = (re.sub(r"\]\([^)]*\)", "", title) for title in re.findall(r"(?m)^#+ (.*)", text))
    return {re.sub(r"[^\w\s-]", "", t).strip().lower().replace(" ", "-") for t in titles}


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page):
    broken = []
    for path, anchor in LINK.findall(page.read_text()):
        target = page.parent / path if path else page
        if path.startswith("http"):
            continue
        if not target.exists() or (anchor and anchor not in headings(target)):
            broken.append(f"{path}#{anchor}")
    for name in FILE.findall(page.read_text()):
        if not list(ROOT.glob(name.rstrip("/"))) and name.rpartition("/")[2] not in PLACEHOLDERS:
            broken.append(name)
    assert not broken
