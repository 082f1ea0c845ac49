"""Images are prepared as the weights expect: timm's, a checkpoint's, or what the settings say."""

import json

import pandas as pd
import pytest
import timm
import torch
from timm.data import IMAGENET_DEFAULT_STD, create_transform, resolve_data_config

import lfvit
from conftest import NEEDLE_FAST
from lfvit.commands import benchmark, diagnose
from lfvit.commands.evaluate import evaluate
from lfvit.commands.export import describe
from lfvit.commands.predict import predict
from lfvit.commands.train import train
from lfvit.data.images import images_of, read_image
from lfvit.data.settings import Preprocessing
from lfvit.errors import CheckpointError, ConfigError
from lfvit.models.checkpoints import RECORD
from lfvit.runs.configs import check_settings
from lfvit.runs.datasets import open_data
from lfvit.runs.models import build_model, load_trained, timm_preprocessing, with_preprocessing
from lfvit.runs.record import make_record, model_overrides
from lfvit.runtime import Runtime
from small_vits import randomise

HALF = [0.5, 0.5, 0.5]
KINDS = [
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "vit_base_patch16_clip_224.openai",
    "vit_so400m_patch14_siglip_378.webli",  # both sides squashed
]
VIT = ("method=vit", "backbone.timm=vit_tiny_patch16_224", "image_size=64")


@pytest.fixture(params=KINDS)
def foreign(request, monkeypatch, tmp_path):
    """A small model with timm's description of another, its weights in a file, and timm's images
    for it.
    """
    known = timm.get_pretrained_cfg(request.param)
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: known)
    model = lfvit.create_model(
        "vit", backbone="vit_tiny_patch16_224", image_size=64, num_classes=3
    ).eval()
    randomise(model.head, seed=0)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    config = resolve_data_config(pretrained_cfg=known.to_dict())
    transform = create_transform(**{**config, "input_size": (3, 64, 64)})
    return model, tmp_path / "weights.pth", transform, config


def test_every_command_prepares_images_as_timm_does(
    foreign, photographs, composed, tmp_path, monkeypatch, without_plots
):
    model, weights, transform, config = foreign
    paths = images_of(photographs)
    images = torch.stack([transform(read_image(path)) for path in paths])
    with torch.inference_mode():
        expected = model(images).softmax(1)

    described = (f"ckpt_path={weights}", *VIT)
    data = ("data=imagefolder", f"data.root={photographs}", "data.num_workers=0")
    evaluation = evaluate(
        composed(
            "evaluate",
            *described,
            *data,
            "trainer=cpu",
            "trainer.precision=32-true",
            f"run_dir={tmp_path / 'evaluate'}",
        )
    )
    table = pd.read_parquet(tmp_path / "evaluate" / "predictions.parquet")
    confidence = torch.tensor(table["confidence_1"].to_numpy())
    torch.testing.assert_close(confidence, expected.amax(1), atol=2e-2, rtol=0)  # grey levels
    assert (torch.tensor(table["prediction_1"].to_numpy()) == expected.argmax(1)).sum() >= 23
    assert evaluation.preprocessing.mean == config["mean"]

    shown = (f"image={photographs}", "pictures=false", "precision=fp32")
    predicted = composed("predict", *described, *shown, f"run_dir={tmp_path / 'p'}")
    top = [entry["top"][0]["probability"] for entry in predict(predicted)]
    torch.testing.assert_close(torch.tensor(top), expected.amax(1), atol=2e-2, rtol=0)

    trained = load_trained(weights, model_overrides(predicted))
    runtime = Runtime(json.loads(json.dumps(describe(trained))), [])
    std = torch.tensor(config["std"])[:, None, None]
    for path, image in zip(paths, images, strict=True):
        difference = (torch.tensor(runtime.prepare(path)) - image).abs() * std
        assert difference.max() < 2.01 / 255

    used = []
    real = diagnose.normalize
    monkeypatch.setattr(diagnose, "normalize", lambda *a: used.append(a[1]) or real(*a))
    diagnose.diagnose(
        composed("diagnose", *described, *data, f"run_dir={tmp_path / 'd'}", "images=4")
    )
    assert used[0] == evaluation.preprocessing == trained.record.preprocessing


def test_every_vit_of_timm_is_known():
    for name in timm.list_pretrained(["vit*", "deit*"]):
        settings = {"backbone": {"timm": name}, "method": {"name": "vit"}}
        preprocessing = Preprocessing(**timm_preprocessing(settings))
        config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
        assert preprocessing.model_dump().items() <= config.items()
        settings["method"]["name"] = "lf_vit"
        assert timm_preprocessing(settings) == {key: config[key] for key in ("mean", "std")}
    settings["backbone"]["timm"] = "vit_tiny_patch16_224.nosuch"
    with pytest.raises(ConfigError, match=r"Invalid pretrained tag \(nosuch\)"):
        build_model({**settings, "image_size": 224}, 2)
    assert timm_preprocessing(settings)["std"] == IMAGENET_DEFAULT_STD


@pytest.fixture(scope="module")
def half(tmp_path_factory, composed):
    """A checkpoint that was trained with mean = std = 0.5."""
    run_dir = tmp_path_factory.mktemp("half")
    said = (f"data.mean={HALF}", f"data.std={HALF}")
    train(composed("train", *NEEDLE_FAST, *said, "trainer.max_epochs=1", f"run_dir={run_dir}"))
    return run_dir / "checkpoints" / "last.ckpt"


def test_a_checkpoint_keeps_its_own(half, composed, monkeypatch, tmp_path, caplog):
    record = load_trained(half).record
    assert record.preprocessing == Preprocessing(mean=HALF, std=HALF)
    assert open_data(None, record).preprocessing == record.preprocessing
    used = []
    real = benchmark.normalize
    monkeypatch.setattr(benchmark, "normalize", lambda *a: used.append(a[1]) or real(*a))
    small = ("models={vit:{name:vit}}", "batch_sizes=[2]", "repeats=1", "accelerator=cpu")
    benchmark.benchmark(composed("benchmark", f"ckpt_path={half}", *small, f"run_dir={tmp_path}"))
    assert set(used) == {record.preprocessing}

    def loaded(*overrides):
        cfg = composed("evaluate", f"ckpt_path={half}", *overrides)
        return load_trained(half, model_overrides(cfg)).record.preprocessing

    assert loaded("data.mean=[0.4,0.4,0.4]").mean == (0.4, 0.4, 0.4)
    assert "trained with another mean" in caplog.text
    assert loaded("augment.crop_pct=0.875") == record.preprocessing
    with pytest.raises(ConfigError, match=r"augment\.crop_pct=0\.5: .* validated with 0\.875"):
        loaded("augment.crop_pct=0.5")


@pytest.mark.parametrize(
    ("overrides", "mean"),
    [
        ([], (0.485, 0.456, 0.406)),
        (["backbone.timm=vit_tiny_patch16_224"], (0.5, 0.5, 0.5)),
        (["backbone.timm=deit_tiny_patch16_224"], (0.485, 0.456, 0.406)),
        (["backbone.timm=vit_tiny_patch16_224", "data.mean=[0.1,0.2,0.3]"], (0.1, 0.2, 0.3)),
        (["init_from=half"], (0.5, 0.5, 0.5)),
        (["backbone.timm=deit_tiny_patch16_224", "init_from=half"], (0.5, 0.5, 0.5)),
        (["init_from=half", "data.mean=[0.1,0.2,0.3]"], (0.1, 0.2, 0.3)),
        (["init_from=weights"], (0.485, 0.456, 0.406)),
        (["init_from=weights", "backbone.timm=vit_tiny_patch16_224"], (0.5, 0.5, 0.5)),
    ],
)
def test_a_training_takes_those_of_its_weights(composed, half, tmp_path, overrides, mean):
    torch.save({}, tmp_path / "weights.pth")
    files = {"init_from=half": half, "init_from=weights": tmp_path / "weights.pth"}
    overrides = [f"init_from={files[o]}" if o in files else o for o in overrides]
    cfg = with_preprocessing(composed("train", *overrides), None)
    assert cfg.data.mean == list(mean)
    assert make_record(cfg, ["a", "b"])["preprocessing"]["mean"] == mean


def test_a_training_goes_on_with_its_own(half, composed, tmp_path):
    record = load_trained(half).record
    cfg = composed("train", f"ckpt_path={half}")
    assert with_preprocessing(cfg, record).data.std == HALF
    with pytest.raises(CheckpointError, match=r"not trained with data\.mean=\[0\.1,0\.1,0\.1\]"):
        with_preprocessing(composed("train", f"ckpt_path={half}", "data.mean=[.1,.1,.1]"), record)
    distilled = ("schedule.distill_weight=0.5", f"schedule.teacher={half}", "method=vit")
    cfg = composed("train", *NEEDLE_FAST, *distilled, f"run_dir={tmp_path}")
    with pytest.raises(ConfigError, match=r"teacher=.* was trained with data\.mean=\[0\.5, 0\.5"):
        train(cfg)


def test_older_records_say_what_was_usual(half):
    content = torch.load(half, weights_only=True)
    del content[RECORD]["preprocessing"]
    content[RECORD]["data"]["augment"] |= {"crop_pct": 0.9, "interpolation": "random"}
    older = half.with_name("older.ckpt")
    torch.save(content, older)
    assert load_trained(older).record.preprocessing == Preprocessing(crop_pct=0.9)


def test_a_mean_is_three_numbers(composed):
    for value, message in (("[0.5]", "mean"), ("[0.5,0.5,a]", "mean")):
        with pytest.raises(ConfigError, match=message):
            train(composed("train", f"data.mean={value}"))
    with pytest.raises(ConfigError, match=r"data\.std.*greater than 0"):
        train(composed("train", "data.std=[0,1,1]"))


def test_other_settings_of_images_are_refused(composed):
    for override in ("data.mean=[1]", "data.std=[0,1,1]", "augment.crop_pct=2"):
        cfg = composed("predict", "image=x", override)
        with pytest.raises(ConfigError, match=override.partition("=")[0]):
            model_overrides(cfg)
    with pytest.raises(ConfigError, match="data has no setting 'root'"):
        composed("predict", "image=x", "data.root=elsewhere")
    for name in ("+seed=3", "trainer.devices=2"):
        with pytest.raises(ConfigError, match=r"is no setting of predict"):
            check_settings(composed("predict", "image=x", name), "predict")
    for command in ("evaluate", "diagnose", "benchmark"):
        check_settings(composed(command, "ckpt_path=x", "data=imagefolder"), command)
