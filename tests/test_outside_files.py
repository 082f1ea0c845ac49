"""Files that somebody else wrote: nothing in them runs, leaks, or reaches out of its folder."""

import argparse
import ast
import csv
import json
import re
import secrets
import shutil
import struct
import zipfile
from collections import Counter

import numpy as np
import pytest
import torch

from conftest import ROOT
from lfvit.commands.evaluate import evaluate
from lfvit.errors import CheckpointError, LFViTError
from lfvit.models.checkpoints import extract_weights, read_file
from lfvit.results.artifacts.files import ArtifactFile, read_artifacts, to_page
from lfvit.results.collect import collect
from lfvit.results.page import write_page
from lfvit.results.provenance import without_paths
from lfvit.results.report import write_report
from lfvit.results.table import write_table
from lfvit.runs import sweeps
from lfvit.runs.datasets import open_data
from lfvit.runs.directory import inside
from lfvit.runs.models import load_trained
from lfvit.utils.atomic_io import write_json
from lfvit.utils.markdown import code, escape

SECRET = secrets.token_hex(16)
LEAK = "${oc.env:LFVIT_TEST_SECRET}"


@pytest.fixture(autouse=True)
def secret(monkeypatch):
    monkeypatch.setenv("LFVIT_TEST_SECRET", SECRET)


def everything_below(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


# --- weights ------------------------------------------------------------------------------------


class Call:
    """Unpickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


SCALAR = np.float64(0).__reduce__()[0]
CALLS = {
    "a command": Call(__import__("os").system, "touch exploded"),
    "eval": Call(eval, "open('exploded', 'w')"),
    "a file": Call(open, "exploded", "w"),
    "an import": Call(__import__, "antigravity"),
    "an attribute": Call(getattr, argparse.Namespace, "__init__"),
    "a scalar of objects": Call(SCALAR, np.dtype("O"), b"x"),
    "a scalar of 2 GB": Call(SCALAR, np.dtype("V2000000000")),
    "a config with a target": Call(dict, [("_target_", "os.system")]),
}


@pytest.mark.parametrize("form", ["zip", "zip, nested", "pickle"])
@pytest.mark.parametrize("call", CALLS)
def test_no_call_in_a_checkpoint_is_made(tmp_path, monkeypatch, call, form):
    monkeypatch.chdir(tmp_path)
    inner = argparse.Namespace(lr=CALLS[call]) if "nested" in form else CALLS[call]
    content = {"model": {"w": torch.zeros(2)}, "args": inner}
    torch.save(content, "evil.pth", _use_new_zipfile_serialization=form != "pickle")
    with pytest.raises(CheckpointError, match="evil.pth: holds more than weights"):
        read_file("evil.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pth"]


def test_what_training_scripts_store_beside_weights_stays_readable(tmp_path):
    beside = [argparse.Namespace(lr=0.1), np.float64(1), np.float32(2), np.int64(3)]
    torch.save({"model": {"w": torch.zeros(2)}, "beside": beside}, tmp_path / "x.pth")
    assert read_file(tmp_path / "x.pth")["beside"][1:] == [1, 2, 3]


def with_claim(path, numbers, count, compression=zipfile.ZIP_STORED):
    """A checkpoint of `numbers` values rewritten so that it says it had `count`."""
    torch.save({"w": torch.zeros(numbers)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    said = b"M" + struct.pack("<H", numbers)  # pickle's BININT2
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            assert not name.endswith("data.pkl") or said in content
            claim = b"\x8a\x08" + struct.pack("<q", count)  # LONG1
            archive.writestr(name, content.replace(said, claim) if "data.pkl" in name else content)


def test_claims_of_more_values_than_a_file_holds(tmp_path):
    """None of these takes memory: each would be terabytes."""
    with_claim(tmp_path / "claims.pth", 1000, 10**12)
    with pytest.raises(CheckpointError, match="claims.pth: truncated"):
        read_file(tmp_path / "claims.pth")
    with_claim(tmp_path / "packed.pth", 1000, 1000, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="packed.pth: holds compressed entries"):
        read_file(tmp_path / "packed.pth")
    for name, tensor in {
        "repeated": torch.zeros(1).expand(10**6, 10**6),
        "sparse": torch.sparse_coo_tensor(torch.zeros(2, 1).long(), torch.ones(1), (10**6, 10**6)),
        "empty": torch.zeros(10**6, 10**6, device="meta"),
    }.items():
        torch.save({"pos_embed": tensor}, tmp_path / "x.pth")
        with pytest.raises(
            CheckpointError, match=r"x: pos_embed claims \(1000000, 1000000\) values"
        ):
            extract_weights(read_file(tmp_path / "x.pth"), "x")
        assert name
    tensor = torch.arange(6.0)[2:].reshape(2, 2).T  # an ordinary view
    assert extract_weights({"w": tensor}, "x")["w"] is tensor


# --- what a checkpoint says of itself -----------------------------------------------------------


@pytest.fixture
def forged(trained_run, tmp_path):
    """A copy of a good checkpoint with another record."""

    def forge(**changes):
        content = torch.load(trained_run / "checkpoints" / "last.ckpt", weights_only=True)
        content["lfvit"] = {**content["lfvit"], **changes}
        torch.save(content, tmp_path / "forged.ckpt")
        return tmp_path / "forged.ckpt"

    return forge


CALL = {"_target_": "os.system", "command": "touch exploded", "_args_": ["touch exploded"]}

FOLDER = {"_target_": "lfvit.data.ImageFolder"}


@pytest.mark.parametrize(
    "changes",
    [
        {"method": {"name": "lf_vit", **CALL}},
        {"method": {"name": CALL}},
        {"method": {"name": "lf_vit", "pretrained": True}},
        {"backbone": CALL},
        {"backbone": {"timm": "hf-hub:somebody/something"}},
        {"backbone": {"timm": "local-dir:/etc"}},
        {"reducer": {"name": "tome", **CALL}},
        {"data": CALL},
        {"data": {"dataset": CALL}},
        {"data": {"dataset": {"_target_": "lfvit.data.NeedleSet"}, "val_images": CALL}},
        {"data": {"dataset": {"_target_": "lfvit.data.NeedleSet", "val_images": CALL}}},
        {"data": {"dataset": FOLDER, "root": "x", "augment": CALL}},
        {"threshold": CALL},
    ],
)
def test_no_target_in_a_record_is_called(forged, composed, changes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = forged(**changes)
    with pytest.raises((LFViTError, TypeError, ValueError)):
        open_data(None, load_trained(checkpoint).record)
    assert not (tmp_path / "exploded").exists()


def test_records_are_plain_values(forged, composed, tmp_path):
    """What looks like an interpolation is text: it is neither resolved nor written resolved."""
    words = {"id": LEAK, "project": LEAK, "tags": {"method": LEAK}}
    checkpoint = forged(recipe={"schedule": LEAK}, tracking=words, commit=LEAK)
    cfg = composed(
        *("evaluate", f"ckpt_path={checkpoint}", "data.num_workers=0"),
        *("logger=[csv,tensorboard]", "logged_images=2", "trainer.accelerator=cpu"),
        f"run_dir={tmp_path / 'run'}",
    )
    assert evaluate(cfg).images == 16
    written = everything_below(tmp_path / "run")
    assert SECRET.encode() not in written
    record = load_trained(checkpoint).record
    record = record.model_copy(update={"data": {"dataset": FOLDER, "root": LEAK, "batch_size": 8}})
    with pytest.raises(LFViTError, match=r"oc\.env:LFVIT_TEST_SECRET.*no such folder") as error:
        open_data(cfg.data, record)
    assert SECRET not in str(error.value)


# --- run folders --------------------------------------------------------------------------------

NASTY = "</script><img src=x onerror=alert(1)>|`a`[b](javascript:alert(2))\"'$x_{$=1+1"


@pytest.fixture(scope="module")
def evaluated(composed, trained_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    checkpoint = trained_run / "checkpoints" / "last.ckpt"
    settings = ("data.num_workers=0", "trainer.accelerator=cpu")
    evaluate(composed("evaluate", f"ckpt_path={checkpoint}", *settings, f"run_dir={folder}"))
    return folder


@pytest.fixture
def foreign(evaluated, trained_run, tmp_path):
    """A run folder with its evaluation, as if it had been downloaded, with nasty words in it."""
    run = tmp_path / "down" / "<img src=y onerror=alert(2)>" / "run"
    run.mkdir(parents=True)
    for file in trained_run.iterdir():  # without what other tests evaluated there
        if file.is_file():
            shutil.copy(file, run)
    shutil.copytree(trained_run / "checkpoints", run / "checkpoints")
    shutil.copytree(evaluated, run / "evaluation")
    path = run / "evaluation" / "evaluate.json"
    found = json.loads(path.read_text())
    found["checkpoint"] = str(run / "checkpoints" / "last.ckpt")
    found["method"] = {**found["method"], "name": NASTY}
    found["environment"]["command"] = f"python evaluate.py {NASTY}"
    write_json(path, found)
    write_json(run / "environment.json", {**found["environment"], "commit": NASTY})
    write_json(tmp_path / "down" / "run.json", {"status": "failed", "error": NASTY})
    return run


def test_a_page_shows_words_as_words(foreign, tmp_path):
    page = tmp_path / "page.html"
    write_page([tmp_path / "down"], page, title=NASTY, intro=NASTY, examples=0)
    text = page.read_text()
    assert text.count("</script>") == 3
    assert not re.search("<img src=[xy]", text)
    assert 'href="javascript:' not in text
    inside_script = text.split('id="spec">')[1].split("</script>")[0]
    assert json.loads(inside_script)["datasets"]["curves"][0]["model"] == NASTY


def test_a_page_of_markdown_shows_words_as_words(foreign, tmp_path):
    write_report(collect([tmp_path / "down"]), tmp_path / "results.md")
    text = (tmp_path / "results.md").read_text()
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert set(Counter(line.replace("\\|", "").count("|") for line in tables)) <= set(range(5, 15))
    assert "<img" not in text.replace("`", "\0").split("\0", 1)[0]
    assert not re.search(r"(?<!\\)\]\(javascript", text.split("## How")[0])
    told = {"title": "t", "question": "q", "paper": None, "label": "l", "kind": "table"}
    columns = [{"key": "model", "title": "model", "unit": None, "digits": 0}]
    about = {"columns": columns, "rows": [{"model": NASTY}], "notes": [], "command": NASTY}
    text = to_page(ArtifactFile(**told, **about, commit="c", machine="m"))
    assert "| &lt;/script>&lt;img src=x onerror=alert(1)>\\|\\`a\\`[b\\](javascript" in text
    assert "`` </script>" in text  # a command, in code


def test_escaping():
    assert escape("LF-ViT, keep_rate=[0.5, 0.7] <= 3 & more") == (
        "LF-ViT, keep_rate=[0.5, 0.7] <= 3 & more"  # as it was: nothing begins in it
    )
    assert escape("a|b\nc\\") == "a\\|b c\\\\"
    assert escape("&lt;b>") == "&amp;lt;b>"
    assert code("a ``b`` c") == "``` a ``b`` c ```"
    assert code("plain") == "`plain`"
    assert without_paths("python 'unfinished") == "python 'unfinished"


def test_a_run_folder_cannot_read_the_environment(foreign, tmp_path):
    """The page opens the data that an evaluation names: as plain values."""
    path = foreign / "evaluation" / "evaluate.json"
    found = json.loads(path.read_text())
    write_json(path, {**found, "method": {"name": "lf_vit"}})
    config = foreign / "evaluation" / "config.yaml"
    data = {"dataset": FOLDER, "root": f"/nowhere/{LEAK}", "batch_size": 8}
    config.write_text(json.dumps({"data": data}))  # JSON is YAML
    write_page([tmp_path / "down"], tmp_path / "page.html", examples=4)
    text = (tmp_path / "page.html").read_text()
    assert f"/nowhere/{LEAK}: no such folder" in text
    assert SECRET.encode() not in everything_below(tmp_path)


def test_yaml_of_a_run_folder_makes_no_objects(foreign, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = foreign / "config.yaml"
    config.write_text('!!python/object/apply:os.system ["touch exploded"]')
    found = collect([tmp_path / "down"])
    assert any("config.yaml: could not determine a constructor" in s.reason for s in found.skipped)
    assert not (tmp_path / "exploded").exists()


def test_paths_in_records_stay_below_their_root(evaluated, tmp_path):
    job = tmp_path / "root" / "outputs" / "sweep" / "0"
    job.mkdir(parents=True)
    hidden = tmp_path / "hidden"
    shutil.copytree(evaluated, hidden)
    ways = ("../../../../hidden/evaluate.json", str(hidden / "evaluate.json"))
    (job / "link").symlink_to(hidden)
    for way in (*ways, "link/evaluate.json"):
        assert inside(job, way) is None
        about = {"job": 0, "overrides": [], "status": "done", "evaluation": way, "directory": way}
        write_json(job / "job.json", about)
        assert collect([tmp_path / "root"]).runs == []
        (row,) = sweeps.collect(job.parent)
        assert row["evaluation"] is row["top1"] is None
        assert "hidden" not in row["directory"]
    beside = shutil.copytree(evaluated, tmp_path / "root" / "outputs" / "run" / "evaluation")
    write_json(job / "job.json", {**about, "evaluation": "../../run/evaluation/evaluate.json"})
    (row,) = sweeps.collect(job.parent)
    assert row["top1"] is not None
    assert {run.folder for run in collect([job]).runs} == {beside}


@pytest.mark.parametrize("name", ["../secret", "/etc", "..", "a/b", ""])
def test_lists_of_files_name_what_lies_beside_them(tmp_path, name):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "artifact.json").write_text(json.dumps({"title": SECRET}))
    folder = tmp_path / "artifacts"
    folder.mkdir()
    write_json(folder / "index.json", [name])
    (found,) = read_artifacts(folder)
    assert "may only name folders beside it" in found["fault"]


def test_csv_files_are_data(foreign, tmp_path):
    """Cells are not changed for spreadsheets: a name that begins with "=" is kept as it is."""
    path = foreign / "evaluation" / "evaluate.json"
    found = json.loads(path.read_text())
    write_json(path, {**found, "method": {"name": "=1+1"}})
    write_table(collect([tmp_path / "down"]), tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        assert {row["model"] for row in csv.DictReader(file)} == {"=1+1"}


# --- the code -----------------------------------------------------------------------------------

RUNS_WHAT_IT_READS = {
    "eval",
    "exec",
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
}
UNPACKS = {"extractall", "unpack_archive", "extract"}


def calls_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


def test_no_file_of_the_project_reads_in_a_way_that_executes():
    calls = [call for path in (ROOT / "src").rglob("*.py") for call in calls_of(path)]
    assert len(calls) > 5000
    for name, options in calls:
        first, last = name.split(".")[0], name.split(".")[-1]
        assert first not in RUNS_WHAT_IT_READS, name
        assert last not in UNPACKS, name
        if name == "torch.load":
            assert options.get("weights_only") == "True"
        if first == "yaml":
            assert last in ("safe_load", "safe_dump", "parse"), name  # parse: events, no objects
        if name in ("np.load", "numpy.load"):
            assert options.get("allow_pickle", "False") == "False"
