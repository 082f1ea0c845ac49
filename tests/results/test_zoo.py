"""zoo:NAME: what is added there is what commands use, and its card is what evaluate.py measures."""

import json
import sys
from contextlib import redirect_stderr
from io import StringIO
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import NEEDLE_FAST, run_script
from lfvit.commands.evaluate import evaluate
from lfvit.commands.predict import predict
from lfvit.commands.train import train
from lfvit.errors import CheckpointError, ConfigError
from lfvit.measure.costs import count_macs
from lfvit.measure.schemas import parse_evaluation
from lfvit.models import zoo
from lfvit.models.checkpoints import read_file
from lfvit.results import zoo as results_zoo
from lfvit.results.zoo import add, format_card, main, read_card
from lfvit.runs.models import load_trained

MAX_BYTES = 25_000_000  # of all weights together: they are part of every clone
SMALL = (
    *(o for o in NEEDLE_FAST if not o.startswith(("data.train", "data.val"))),
    *("image_size=64", "backbone.depth=3", "backbone.patch_size=8", "method.gca_start=1"),
)


def evaluate_here(command, **_):
    """In place of a process that imports everything again."""
    assert command[:4] == [sys.executable, "-m", "lfvit", "evaluate"]
    messages = StringIO()
    with redirect_stderr(messages):
        status = run_script("evaluate", *command[4:])
    return SimpleNamespace(returncode=status, stderr=messages.getvalue())


@pytest.fixture(scope="module")
def filled(tmp_path_factory, composed, trained_run, photographs):
    """A zoo with a model of generated images and one of photographs, whose run is beside it."""
    folder = tmp_path_factory.mktemp("filled")
    settings = ["data=imagefolder", f"data.root={photographs}", "data.val_fraction=0.5"]
    train(composed("train", *SMALL, *settings, f"run_dir={folder / 'run'}"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "FOLDER", folder / "zoo")
        patch.setattr(results_zoo, "subprocess", SimpleNamespace(run=evaluate_here))
        main([str(trained_run), "--name", "needles"])
        add(folder / "run", "fruit", threshold=0.25)
    return folder


@pytest.fixture
def two(filled, monkeypatch):
    monkeypatch.setattr(zoo, "FOLDER", filled / "zoo")
    return filled / "zoo"


def test_the_card_is_what_evaluate_measures(two, composed, photographs, tmp_path):
    asked = ["ckpt_path=zoo:fruit", f"data.root={photographs}", f"run_dir={tmp_path / 'out'}"]
    settings = ["data.num_workers=0", "trainer.accelerator=cpu"]
    evaluate(composed("evaluate", *asked, *settings))
    measured = json.loads((tmp_path / "out" / "evaluate.json").read_text())
    card = read_card("zoo:fruit")
    own = ("environment", "checkpoint")  # command and commit
    same = [{k: v for k, v in d.items() if k not in own} for d in (measured, card["evaluation"])]
    assert same[0] == same[1]
    assert measured["images"] == 12
    text = (two / "fruit" / "README.md").read_text()
    assert text == format_card(card)
    assert "From random weights: 2 epochs over 12 images" in text
    evaluation = parse_evaluation(card["evaluation"], "card")
    for point in (*evaluation.passes, evaluation.configured):
        assert f"| {point.top1:.2f} |" in text
        assert f"| {point.gmacs:.4f} |" in text
    assert "apple, pear, plum" in text
    assert evaluation.configured.threshold == 0.25
    for path in (
        path for path in two.rglob("*") if path.is_file()
    ):  # nothing names a folder of this machine
        assert str(photographs.parent).encode() not in path.read_bytes()


def test_half_precision_is_stored_and_float32_used(two, trained_run):
    stored = load_file(two / "needles" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    model, _ = load_trained("zoo:needles")
    original, _ = load_trained(trained_run / "checkpoints" / "last.ckpt")
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, original.state_dict()[name].half().float())


def test_predict_uses_the_default_model(two, composed, photographs, tmp_path):
    assert zoo.default() == "needles"
    cfg = composed("predict", "accelerator=cpu", "pictures=false", f"run_dir={tmp_path}")
    cfg.image = str(photographs / "apple" / "00.jpg")
    (entry,) = predict(cfg)
    known = read_card("zoo:needles")["record"]["classes"]
    assert entry["top"][0]["class"] in known


def test_photographs_have_to_be_named(two, composed, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.root"):
        evaluate(composed("evaluate", "ckpt_path=zoo:fruit", f"run_dir={tmp_path}"))


def test_the_list(two, capsys):
    main([])
    assert capsys.readouterr().out.split() == ["zoo:fruit", "zoo:needles"]


@pytest.mark.parametrize("name", ["Fruit", "default", "fruit"])
def test_names_that_cannot_be_added(two, trained_run, name):
    with pytest.raises(ConfigError, match=f"--name '{name}' must be made of .* and be none of"):
        add(trained_run, name)


def test_what_cannot_be_added(two, filled, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="no such file"):
        add(tmp_path, "nothing")
    monkeypatch.setattr(results_zoo, "subprocess", SimpleNamespace(run=evaluate_here))
    with pytest.raises(CheckpointError, match=r"evaluate\.py failed:\n.*gone"):
        add(filled / "run", "moved", data_root=str(tmp_path / "gone"))
    assert zoo.names() == ["fruit", "needles"]


def test_a_record_that_is_none(tmp_path):
    for text in ("{", "[]"):
        save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors", {"lfvit": text})
        with pytest.raises(CheckpointError, match="its metadata 'lfvit' is no JSON mapping"):
            read_file(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", zoo.names())
def test_a_model_of_the_repository(name):
    """What is committed fits together, and loads."""
    card = read_card(f"zoo:{name}")
    assert (zoo.FOLDER / name / "README.md").read_text() == format_card(card)
    model, record = load_trained(f"zoo:{name}")
    assert record == type(record)(**card["record"])
    assert count_macs(model) / 1e9 == pytest.approx(card["evaluation"]["passes"][-1]["gmacs"])


def test_the_repository_is_small_and_has_a_default():
    assert sum(path.stat().st_size for path in zoo.FOLDER.glob("*/*.safetensors")) <= MAX_BYTES
    assert zoo.default() in zoo.names()
