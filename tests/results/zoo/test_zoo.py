"""zoo:NAME: what is put there is what commands use, and what the card says is what comes out."""

import hashlib
import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import NEEDLE_FAST
from lfvit.commands.benchmark import benchmark
from lfvit.commands.evaluate import evaluate
from lfvit.commands.predict import predict
from lfvit.commands.train import build_module, train
from lfvit.errors import CheckpointError, ConfigError, DataError
from lfvit.measure.costs import count_macs
from lfvit.models import zoo
from lfvit.models.weight_files import read_file
from lfvit.results.collect import collect
from lfvit.results.page_examples import open_run
from lfvit.results.zoo import card as card_of
from lfvit.results.zoo.__main__ import main
from lfvit.results.zoo.add import LIMIT, add
from lfvit.results.zoo.cards import markdown
from lfvit.runs.identity import identity
from lfvit.runs.setup import load_trained

FIGURES = ("images", "first", "second", "curve", "operating_point", "calibrated", "calibration")
SMALL = (
    *(o for o in NEEDLE_FAST if not o.startswith(("data.train", "data.val"))),
    *("image_size=64", "backbone.depth=3", "backbone.patch_size=8", "method.gca_start=1"),
)


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """An empty zoo."""
    monkeypatch.setattr(zoo, "FOLDER", tmp_path / "zoo")
    return tmp_path / "zoo"


@pytest.fixture(scope="module")
def filled(tmp_path_factory, composed, trained_run, photographs):
    """A zoo with a model of generated images and one of photographs, whose run is beside it."""
    folder = tmp_path_factory.mktemp("filled")
    settings = ["data=imagefolder", f"data.root={photographs}", "data.val_fraction=0.5"]
    run = folder / "run"
    train(composed("train", *SMALL, *settings, f"run_dir={run}"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "FOLDER", folder / "zoo")
        patch.setattr(sys, "argv", ["zoo", "add", str(trained_run), "--name", "needles"])
        main()
        words = {"data": "three fruits", "remark": "Fruit from the garden alone."}
        add(run, "fruit", threshold=0.25, **words)
    return folder


@pytest.fixture
def two(filled, monkeypatch):
    monkeypatch.setattr(zoo, "FOLDER", filled / "zoo")
    return filled / "zoo"


def evaluated(composed, tmp_path, *overrides):
    settings = ["data.num_workers=0", "trainer.accelerator=cpu", f"run_dir={tmp_path / 'out'}"]
    return evaluate(composed("evaluate", *settings, *overrides))


def test_the_card_is_reproduced(two, composed, photographs, tmp_path):
    asked = ["ckpt_path=zoo:fruit", f"data.root={photographs}"]
    found = json.loads(json.dumps(evaluated(composed, tmp_path, *asked)))
    card = card_of("zoo:fruit")
    assert found["images"] == 12
    assert {key: found[key] for key in FIGURES} == {k: card["evaluation"][k] for k in FIGURES}
    assert card["sha256"] == hashlib.sha256((two / "fruit.safetensors").read_bytes()).hexdigest()
    text = (two / "fruit.md").read_text()
    assert text == markdown(card)
    assert "From random weights: 2 epochs over " in text
    for part in (found["first"], found["second"], found["calibrated"]):
        assert f"| {part['top1']:.2f} |" in text
        assert f"| {part['gmacs']:.4f} |" in text
    assert "three fruits" in text
    assert "Fruit from the garden alone." in text
    (run,) = collect([tmp_path / "out"]).runs
    assert open_run(run)[0].record["threshold"] == 0.25
    assert "apple, pear, plum" in text
    assert card["training"]["epochs"] == 2
    assert found["operating_point"]["threshold"] == 0.25


def test_nothing_in_the_zoo_names_a_place_of_this_machine(two, photographs, filled):
    for path in two.iterdir():
        content = path.read_bytes()
        for place in (photographs, filled, two):
            assert str(place).encode() not in content


def test_half_precision_is_stored_and_float32_used(two, trained_run):
    stored = load_file(two / "needles.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    model, record = load_trained("zoo:needles")
    original, before = load_trained(trained_run / "checkpoints" / "last.ckpt")
    assert record["classes"] == before["classes"]
    assert record["method"] == before["method"]
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, original.state_dict()[name].half().float())


def test_predict_uses_the_first_model_by_itself(two, composed, photographs, tmp_path):
    cfg = composed("predict", "accelerator=cpu", "pictures=false", f"run_dir={tmp_path}")
    assert zoo.default() == "needles"
    cfg.image = str(photographs / "apple" / "00.jpg")
    (entry,) = predict(cfg)
    assert entry["top"][0]["class"] in load_trained("zoo:needles").record["classes"]


def test_benchmark_and_training_take_it(two, composed, tmp_path):
    settings = ["batch_sizes=[2]", "repeats=1", "warmup=0", "accelerator=cpu", "num_classes=6"]
    sizes = ["image_size=112", "backbone=vit_micro", "ckpt_path=zoo:needles", "threshold=0.5"]
    cfg = composed("benchmark", *settings, *sizes, f"run_dir={tmp_path}")
    cfg.models = {"vit": {"name": "vit"}}
    rows = benchmark(cfg)
    (curve,) = (p for p in card_of("zoo:needles")["evaluation"]["curve"] if p["threshold"] == 0.5)
    assert curve["top1"] in [row["top1"] for row in rows]
    cfg = composed("train", *NEEDLE_FAST, "init_from=zoo:needles")
    module = build_module(cfg, ["a"] * 6)
    name, value = next(iter(load_trained("zoo:needles").model.state_dict().items()))
    assert torch.equal(module.model.state_dict()[name], value)
    by_path = composed("train", *NEEDLE_FAST, f"init_from={two / 'needles.safetensors'}")
    assert identity(cfg) == identity(by_path)


def test_photographs_have_to_be_named(two, composed, tmp_path):
    with pytest.raises(ConfigError, match=r"zoo:fruit does not say where its images are; pass dat"):
        evaluated(composed, tmp_path, "ckpt_path=zoo:fruit")


def test_the_list(two, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["zoo"])
    main()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("zoo:fruit: lf_vit, three fruits, top-1 ")
    assert second.startswith("zoo:needles (default): lf_vit, the needle set")


def test_an_unknown_name_lists_the_known(two):
    with pytest.raises(CheckpointError, match=r"zoo:pears: no such .*zoo:fruit, zoo:needles"):
        read_file("zoo:pears")


def test_an_empty_zoo_says_what_to_do(empty, composed, photographs, tmp_path, capsys, monkeypatch):
    cfg = composed("predict", f"image={photographs / 'apple'}", f"run_dir={tmp_path}")
    with pytest.raises(CheckpointError, match=r"zoo:default: is empty; pass the path"):
        predict(cfg)
    monkeypatch.setattr(sys, "argv", ["zoo"])
    main()
    assert "python -m lfvit.results.zoo add RUN_DIR" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("Fruit", ConfigError, "--name 'Fruit' must be made of"),
        ("default", ConfigError, "not be 'default'"),
        ("fruit", ConfigError, "is in the zoo already; pass --replace"),
        ("large", ConfigError, "large has 0.1 MB, all weights together would have"),
    ],
)
def test_what_cannot_be_added(two, trained_run, name, error, message, monkeypatch):
    monkeypatch.setattr("lfvit.results.zoo.add.LIMIT", 1000)
    with pytest.raises(error, match=message):
        add(trained_run, name)
    assert zoo.names() == ["fruit", "needles"]


def test_images_that_moved_have_to_be_named(two, filled, monkeypatch, tmp_path, capsys):
    run = filled / "run"
    command = ["zoo", "add", str(run), "--name", "moved", "--data-root", str(tmp_path / "gone")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "no such folder of images; pass --data-root DIR" in capsys.readouterr().err
    with pytest.raises(DataError):
        add(run, "moved", data_root=str(tmp_path / "gone"))


def test_only_finished_trainings(empty, tmp_path):
    with pytest.raises(CheckpointError, match="not a finished training"):
        add(tmp_path, "nothing")


def test_a_record_that_is_none(tmp_path):
    for text in ("{", "[]"):
        save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors", {"lfvit": text})
        with pytest.raises(CheckpointError, match="its metadata 'lfvit' is not"):
            read_file(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", zoo.names())
def test_a_model_of_the_repository(name):
    """What is committed fits together, and loads."""
    card = card_of(f"zoo:{name}")
    file = zoo.FOLDER / f"{name}.safetensors"
    assert card["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (zoo.FOLDER / f"{name}.md").read_text() == markdown(card)
    model, record = load_trained(f"zoo:{name}")
    assert record["classes"] == card["record"]["classes"]
    assert sum(p.numel() for p in model.parameters()) == card["training"]["parameters"]
    last = card["evaluation"]["second"] or card["evaluation"]["first"]
    assert count_macs(model) / 1e9 == pytest.approx(last["gmacs"])


def test_the_repository_is_small_and_has_a_default(composed, photographs, tmp_path):
    assert sum(path.stat().st_size for path in zoo.FOLDER.glob("*.safetensors")) <= LIMIT
    image = next((photographs / "pear").iterdir())
    (found,) = predict(composed("predict", f"image={image}", f"run_dir={tmp_path}"))
    record = card_of(f"zoo:{zoo.default()}")["record"]
    assert found["top"][0]["class"] in record["classes"]
    assert found["threshold"] == record["threshold"]
    assert (tmp_path / found["picture"]).stat().st_size > 1000
