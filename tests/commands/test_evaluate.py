"""evaluate.json: its contents, and that they do not depend on how the images were batched."""

import json
import shutil

import pytest
import torch

import lfvit
from conftest import NEEDLE_FAST
from lfvit.commands.evaluate import evaluate
from lfvit.commands.train import train
from lfvit.data.datamodule import normalize
from lfvit.errors import CheckpointError, ConfigError, DataError
from lfvit.measure.evaluation import collect
from lfvit.runs.setup import load_trained, open_data


@pytest.fixture
def run(composed, trained_run, tmp_path):
    def run_evaluate(*overrides, checkpoint=None):
        checkpoint = checkpoint or trained_run / "checkpoints" / "last.ckpt"
        cfg = composed(
            "evaluate",
            f"ckpt_path={checkpoint}",
            "data.num_workers=0",
            "trainer.accelerator=cpu",
            f"run_dir={tmp_path}",
            *overrides,
        )
        return evaluate(cfg)

    return run_evaluate


def test_contents(run, tmp_path, trained_run):
    found = run("threshold=0.2")
    assert json.loads((tmp_path / "evaluate.json").read_text()) == found
    assert (tmp_path / "evaluate.png").stat().st_size > 10_000
    assert {"top1", "top5", "gmacs"} == set(found["first"]) == set(found["second"])
    columns = {"threshold", "top1", "exit_fraction", "gmacs", "consistency", "gap"}
    assert columns == set(found["curve"][0])
    assert found["curve"][-1]["consistency"] == found["curve"][-1]["gap"] == 0
    assert found["curve"][0]["top1"] == pytest.approx(found["first"]["top1"])
    assert found["curve"][0]["gmacs"] == pytest.approx(found["first"]["gmacs"])
    assert found["curve"][-1]["top1"] == pytest.approx(found["second"]["top1"])
    assert found["curve"][-1]["gmacs"] == pytest.approx(found["second"]["gmacs"])
    assert found["operating_point"]["threshold"] == 0.2
    assert found["calibrated"]["calibration_images"] == found["calibrated"]["reported_images"] == 8
    assert found["macs_counter"] == "closed form, equal to fvcore"
    assert found["images"] == 16
    for part in found["localisation"].values():
        assert 0 <= part["whole"] <= part["covered"] <= 1
    # the weights that training validated last are the ones evaluated
    metrics = json.loads((trained_run / "metrics.json").read_text())
    assert found["second"]["top1"] == pytest.approx(metrics["val/top1"])
    assert found["first"]["top1"] == pytest.approx(metrics["val/first_top1"])


def test_operating_points(run, capsys):
    asked = ("max_gmacs=0.001", "min_top1=0", "max_second=0.5", "risk.eps=[0.3,0.01]")
    found = run(*asked, "risk.losses=consistency", "scaled_curve=true")["calibration"]
    outcomes = {rule["name"]: rule["outcome"] for rule in found["rules"]}
    assert list(outcomes) == ["max_loss", "max_gmacs", "min_top1", "max_second"]
    assert outcomes["min_top1"] == outcomes["max_second"] == "found"
    assert outcomes["max_gmacs"].startswith("none: the first pass alone costs")
    possible, impossible = found["risk"]["certificates"]
    assert possible["n"] == impossible["n"] == found["calibration_images"] == 8
    assert possible["guarantee"].startswith("with probability at least 0.9 over the draw of the 8")
    assert impossible["outcome"] == "none: needs at least 230 images"
    console = " ".join(capsys.readouterr().out.split())
    for text in ("max_second=0.5 *", "needs at least 230 images", "max_gmacs=0.001: none"):
        assert text in console


def test_rules_can_be_left_out(run, tmp_path, capsys):
    settings = ("budgeted_batch=null", "temperature=false", "risk=null")
    found = run(*settings, f"run_dir='{tmp_path}/[bold]x'")["calibration"]
    assert "/[bold]x" in capsys.readouterr().out  # a name, no markup
    assert [rule["name"] for rule in found["rules"]] == ["max_loss"]
    assert found["budgeted_batch"] is found["temperature"] is found["risk"] is None


def numbers(found, path=""):
    """Every value of a nested result by its place."""
    if isinstance(found, dict):
        found = found.items()
    elif isinstance(found, list):
        found = enumerate(found)
    else:
        return {path: found}
    return {k: v for key, value in found for k, v in numbers(value, f"{path}/{key}").items()}


@pytest.fixture
def collected(monkeypatch):
    """What the model said in every evaluation of a test."""
    kept = []

    def keep(*arguments):
        kept.append(collect(*arguments))
        return kept[-1]

    monkeypatch.setattr("lfvit.commands.evaluate.collect", keep)
    return kept


@pytest.mark.parametrize("selector", ["ngca", "random"])
def test_batch_size_and_workers_change_nothing(run, collected, selector):
    """Workers not one bit. The batch size rounds sums differently: the last digits of float32."""
    quick = ("verify_macs=false", f"method.selector={selector}", "threshold=0.2")
    sizes = (7, 1, 64) if selector == "ngca" else (7, 64)
    found = [run(*quick, f"data.batch_size={size}") for size in sizes]
    found.append(run(*quick, "data.batch_size=7", "data.num_workers=2"))
    del found[0]["environment"], found[-1]["environment"]
    assert found[-1] == found[0]
    assert all(
        torch.equal(a, b) for a, b in zip(collected[0], collected[-1], strict=True) if a is not None
    )
    for outputs, other in zip(collected[1:-1], found[1:-1], strict=True):
        for field in ("targets", "cells", "boxes", "covered"):
            assert torch.equal(getattr(outputs, field), getattr(collected[0], field))
        for logits, expected in zip(outputs[:2], collected[0][:2], strict=True):
            torch.testing.assert_close(logits.softmax(1), expected.softmax(1), rtol=0, atol=1e-6)
            assert torch.equal(logits.argmax(1), expected.argmax(1))
        ours = {k: v for k, v in numbers(found[0]).items() if not k.startswith("/environment")}
        theirs = numbers(other)
        for key, value in ours.items():
            near = "temperature" in key or key.endswith("/threshold")  # confidences, fitted on them
            exact = not isinstance(value, float) or not near
            assert theirs[key] == (value if exact else pytest.approx(value, rel=1e-4)), key


def test_early_exit_gives_the_answers_of_the_evaluation(run, collected, trained_run, composed):
    """In whatever order images come, in whatever batches, alone, or filled up to a bucket."""
    run("verify_macs=false", "data.batch_size=7")
    (expected,) = collected
    model, record = load_trained(trained_run / "checkpoints" / "last.ckpt")
    data = open_data(composed("evaluate", "ckpt_path=x"), record)
    pixels = torch.stack([sample.pixels for sample in data.some_validation_samples(16)])
    images = normalize(pixels)
    confidence = expected.first.softmax(1).amax(1)
    threshold = confidence.median().item() + 1e-4  # some exit
    exited = confidence >= threshold
    answers = torch.where(exited[:, None], expected.first, expected.second)
    assert 0 < exited.sum() < 16
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    for size in (1, 5, 16):
        batches = images[order].split(size)
        with torch.no_grad():
            plain = [model.infer(batch, threshold) for batch in batches]
            filled = [model.infer(batch, threshold, bucket=4) for batch in batches]
        for answered in (plain, filled):
            logits = torch.cat([answer.logits for answer in answered])
            torch.testing.assert_close(
                logits.softmax(1), answers[order].softmax(1), rtol=0, atol=1e-6
            )
            assert torch.equal(torch.cat([a.exited for a in answered]), exited[order])


def test_precisions_are_compared_on_the_same_weights(run, tmp_path, capsys):
    found = run("compare_precisions=[bf16-mixed,64-true]", "threshold=0.2")
    assert found["precision"] == "32-true"
    half, double = found["compared_precisions"]
    assert (half["precision"], half["reference"]) == ("bf16-mixed", "32-true")
    for part in ("first", "second"):
        assert half[part]["reference_top1"] == double[part]["top1"] == found[part]["top1"]
        assert double[part]["probability"]["max"] < 1e-6
        assert 1e-5 < half[part]["probability"]["max"] < 0.05  # bfloat16 has 8 bits
        assert double[part]["same_answers"] == 1
    assert double["same_regions"] == double["same_exits"] == 1
    assert 0 <= half["same_regions"] <= 1
    console = " ".join(capsys.readouterr().out.split())
    assert "bf16-mixed against 32-true" in console
    assert run("verify_macs=false")["compared_precisions"] == []


def test_a_precision_that_the_device_lacks_is_refused(run):
    with pytest.raises(ConfigError, match="computes in bf16-mixed instead; leave it out"):
        run("compare_precisions=16-mixed", "verify_macs=false")


def test_one_pass_models_have_one_pass(run, composed, tmp_path):
    train(composed("train", *NEEDLE_FAST, "method=vit", f"run_dir={tmp_path / 'vit'}"))
    found = run(checkpoint=tmp_path / "vit" / "checkpoints" / "best.ckpt")
    assert found["second"] is None
    assert found["curve"] == []
    assert found["calibrated"] is found["calibration"] is None
    assert found["first"]["gmacs"] > 0


def test_other_weights_need_a_description(run, tiny, photographs, tmp_path):
    weights = tmp_path / "plain.pth"
    model = lfvit.create_model("lf_vit", backbone=tiny, image_size=112, num_classes=3)
    torch.save(model.state_dict(), weights)
    with pytest.raises(CheckpointError, match="does not say what model .* pass method="):
        run(checkpoint=weights)
    described = (
        "method=lf_vit",
        "backbone=vit_micro",
        "backbone.embed_dim=24",
        "image_size=112",
    )
    with pytest.raises(ConfigError, match="names no data; pass data=imagefolder"):
        run(*described, checkpoint=weights)
    found = run(*described, "data=imagefolder", f"data.root={photographs}", checkpoint=weights)
    assert found["images"] == 3


def test_data_with_other_classes_is_refused(run, photographs):
    with pytest.raises(DataError, match="3 classes are not the 6 .* differ in apple"):
        run("data=imagefolder", f"data.root={photographs}")
    with pytest.raises(ConfigError, match="on NeedleDataModule, which .*data=imagefolder"):
        run(f"data.root={photographs}")


def test_nothing_named_in_a_checkpoint_is_called(run, trained_run, tmp_path):
    for change in (
        {"_target_": "shutil.copy", "src": "/etc/hostname", "dst": str(tmp_path / "stolen")},
        {"extra": {"_target_": "shutil.copy", "src": "/etc/hostname", "dst": str(tmp_path / "b")}},
    ):
        content = torch.load(trained_run / "checkpoints" / "last.ckpt", weights_only=True)
        content["lfvit"]["data"] = {**content["lfvit"]["data"], **change}
        torch.save(content, tmp_path / "evil.ckpt")
        with pytest.raises(ConfigError, match="data"):
            run(checkpoint=tmp_path / "evil.ckpt")
    assert not (tmp_path / "stolen").exists()
    assert not (tmp_path / "b").exists()


def test_single_settings_of_the_checkpoint_can_be_replaced(run):
    found = run("method.region_size=2", "method.selector=random", "threshold=0.1")
    assert found["method"]["region_size"] == 2
    assert found["method"]["alpha"] == 0.88
    assert found["second"]["gmacs"] < run()["second"]["gmacs"]


def test_a_reducer_can_be_put_into_a_trained_model_and_taken_out(run, composed, tmp_path):
    plain, merged = run(), run("reducer=tome", "reducer.r=8", "reducer.passes=second")
    assert plain["reducer"] == {"name": "none"}
    assert merged["reducer"]["r"] == 8
    assert merged["first"] == plain["first"]
    assert merged["second"]["gmacs"] < 0.9 * plain["second"]["gmacs"]
    assert merged["macs_counter"] == "closed form, equal to fvcore"
    settings = [*NEEDLE_FAST, "method=vit", "reducer=frequency", "trainer.max_epochs=1"]
    train(composed("train", *settings, f"run_dir={tmp_path / 'frequency'}"))
    checkpoint = tmp_path / "frequency" / "checkpoints" / "last.ckpt"
    own, less = run(checkpoint=checkpoint), run("reducer.removed=0.8", checkpoint=checkpoint)
    without = run("reducer=none", checkpoint=checkpoint)
    assert less["first"]["gmacs"] < own["first"]["gmacs"] < without["first"]["gmacs"]
    with pytest.raises(ConfigError, match="reducer=frequency has no setting 'r'"):
        run("reducer.r=3", checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("threshold=high", "threshold='high'"),
        ("calibration=1", "calibration=1"),
        ("max_loss=-1", "max_loss=-1"),
        ("max_gmacs=0", "max_gmacs=0 is out of range"),
        ("min_top1=high", "min_top1='high'"),
        ("max_second=-0.1", r"max_second=-0\.1"),
        ("budgeted_batch=0", "budgeted_batch=0"),
        ("temperature=1.5", r"temperature=1\.5 must be true or false"),
        ("risk.eps=1", r"risk\.eps=1 is out of range"),
        ("risk.eps=[0.01,0]", r"risk\.eps=0 is out of range"),
        ("risk.delta=0", r"risk\.delta=0 is out of range"),
        ("risk.losses=top1", r"risk\.losses='top1' is unknown; valid: consistency, gap"),
        ("+risk.alpha=0.1", "risk has no setting 'alpha'; valid: losses, eps, delta"),
        ("risk=0.05", r"risk=0\.05 must be null"),
        ("method.region_size=9", "region_size=9 does not fit"),
        ("compare_precisions=[fp8]", "compare_precisions='fp8' is unknown; valid: 64-true, bf16-"),
    ],
)
def test_wrong_settings(run, override, message, monkeypatch):
    def read(*_, **__):
        raise AssertionError("an image was read")

    monkeypatch.setattr("lfvit.commands.evaluate.prediction_trainer", read)
    with pytest.raises(ConfigError, match=message):
        run(override)


def test_held_out_images_stay_the_ones_training_held_out(
    run, composed, photographs, tmp_path, monkeypatch
):
    monkeypatch.chdir(photographs.parent)
    settings = [o for o in NEEDLE_FAST if not o.startswith(("data.train", "data.val"))]
    folder = ("data=imagefolder", f"data.root={photographs.name}")
    train(
        composed(
            "train", *settings, *folder, "seed=1", "data.val_fraction=0.4", f"run_dir={tmp_path}"
        )
    )
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    monkeypatch.chdir("/")  # the folder was named relative to where training was started
    expected = run(checkpoint=checkpoint)
    assert expected["images"] == 9
    same = run("data=imagefolder", f"data.root={photographs}", checkpoint=checkpoint)
    assert same["curve"] == expected["curve"]


def test_a_truncated_checkpoint_names_itself(run, trained_run, tmp_path):
    cut = tmp_path / "cut.ckpt"
    shutil.copy(trained_run / "checkpoints" / "last.ckpt", cut)
    cut.write_bytes(cut.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cut.ckpt: truncated"):
        run(checkpoint=cut)
