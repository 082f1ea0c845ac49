"""evaluate.json: its contents, and that they do not depend on how the images were batched."""

import json
from contextlib import redirect_stdout
from io import StringIO

import pandas as pd
import pytest
import torch

from conftest import NEEDLE_FAST, write_photographs
from lfvit.commands.evaluate import evaluate
from lfvit.commands.train import train
from lfvit.data.augment import normalize
from lfvit.errors import ConfigError
from lfvit.measure.predictions import predict_all, read_predictions
from lfvit.measure.schemas import read_evaluation
from lfvit.runs.datasets import open_data
from lfvit.runs.models import load_trained

FAST = ("data.num_workers=0", "trainer.accelerator=cpu")


@pytest.fixture
def run(composed, trained_run, tmp_path, without_plots):
    def run_evaluate(*overrides, checkpoint=None):
        checkpoint = checkpoint or trained_run / "checkpoints" / "last.ckpt"
        settings = (
            f"ckpt_path={checkpoint}",
            *FAST,
            "trainer.precision=32-true",
            f"run_dir={tmp_path}",
            "overwrite=true",
            *overrides,
        )
        return evaluate(composed("evaluate", *settings))

    return run_evaluate


ASKED = ("max_gmacs=0.001", "min_top1=0", "max_second=0.5", "risk.eps=[0.3,0.01]")


@pytest.fixture(scope="module")
def evaluated(composed, trained_run, tmp_path_factory):
    """An evaluation of the LF-ViT, its directory, and what it printed."""
    folder, console = tmp_path_factory.mktemp("evaluated"), StringIO()
    settings = ("threshold=0.2", "calibration_seed=3", *ASKED, "risk.losses=consistency", *FAST)
    place = (f"ckpt_path={trained_run / 'checkpoints' / 'last.ckpt'}", f"run_dir={folder}")
    with redirect_stdout(console):
        found = evaluate(composed("evaluate", *place, *settings))
    return found, folder, " ".join(console.getvalue().split())


def test_contents(evaluated, trained_run):
    found, folder, _ = evaluated
    assert read_evaluation(folder / "evaluate.json") == found
    assert (folder / "evaluate.png").stat().st_size > 10_000
    first, second = found.passes
    start, end = found.curve[0], found.curve[-1]
    assert (start.top1, start.gmacs) == pytest.approx((first.top1, first.gmacs))
    assert (end.top1, end.gmacs) == pytest.approx((second.top1, second.gmacs))
    assert found.configured.threshold == 0.2
    assert found.point("max_loss=0.5").chosen_on == found.point("max_loss=0.5").images == 8
    assert found.images == 16
    for part in (found.localisation.region, found.localisation.random_windows):
        assert 0 <= part.whole <= part.covered <= 1
    # the weights that training validated last are the ones evaluated
    metrics = json.loads((trained_run / "metrics.json").read_text())
    assert second.top1 == pytest.approx(metrics["val/top1"])
    assert first.top1 == pytest.approx(metrics["val/first_top1"])


@pytest.fixture
def collected(monkeypatch):
    """What the model said in every evaluation of a test."""
    kept = []

    def keep(*arguments):
        kept.append(predict_all(*arguments))
        return kept[-1]

    monkeypatch.setattr("lfvit.commands.evaluate.predict_all", keep)
    return kept


@pytest.mark.parametrize("selector", ["ngca", "random"])
def test_batch_size_and_workers_change_nothing(run, collected, selector):
    """Workers not one bit. The batch size rounds sums differently: the last digits of float32."""
    settings = ("data.batch_size=7", "data.batch_size=1", "data.batch_size=64")
    for setting in settings:
        run(f"method.selector={selector}", setting)
    run(f"method.selector={selector}", settings[0], "data.num_workers=2")
    first, *others, workers = collected
    assert all(map(torch.equal, first.logits, workers.logits))
    for other in others[1 if selector == "random" else 0 :]:  # alone, an image draws differently
        for field in ("targets", "cells", "boxes", "covered"):
            assert torch.equal(getattr(other, field), getattr(first, field))
        for logits, expected in zip(other.logits, first.logits, strict=True):
            torch.testing.assert_close(logits.softmax(1), expected.softmax(1), rtol=0, atol=1e-6)
            assert torch.equal(logits.argmax(1), expected.argmax(1))


def test_early_exit_gives_the_answers_of_the_evaluation(run, collected, trained_run, composed):
    """In whatever order images come, in whatever batches, alone, or filled up to a bucket."""
    run("data.batch_size=7")
    (expected,) = collected
    model, record = load_trained(trained_run / "checkpoints" / "last.ckpt")
    data = open_data(None, record)
    pixels = torch.stack([sample.pixels for sample in data.some_validation_samples(16)])
    images = normalize(pixels, record.preprocessing)
    confidence = expected.logits[0].softmax(1).amax(1)
    threshold = confidence.median().item() + 1e-4  # some exit
    exited = confidence >= threshold
    answers = torch.where(exited[:, None], expected.logits[0], expected.logits[1])
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


def test_rules_and_settings_of_the_model_can_be_replaced(run, evaluated, tmp_path, capsys):
    rules = ("max_loss=null", "temperature=false", "risk=null", f"run_dir='{tmp_path}/[bold]x'")
    model = ("method.region_size=2", "method.selector=random", "threshold=0.1")
    found = run(*rules, *model)
    assert "/[bold]x" in capsys.readouterr().out  # a name, no markup
    assert [point.rule for point in found.operating_points] == ["pass 1", "pass 2", "threshold"]
    assert found.temperature is None
    assert (found.method["region_size"], found.method["alpha"]) == (2, 0.88)
    assert found.passes[1].gmacs < evaluated[0].passes[1].gmacs


def test_a_reducer_can_be_put_into_a_trained_model(run, evaluated, trained_vit):
    plain, merged = evaluated[0], run("reducer=tome", "reducer.r=8", "reducer.passes=second")
    assert plain.reducer == {"name": "none"}
    assert merged.reducer["r"] == 8
    assert merged.passes[0] == plain.passes[0]
    assert merged.passes[1].gmacs < 0.95 * plain.passes[1].gmacs
    own, less = run("reducer=evit", checkpoint=trained_vit), run(checkpoint=trained_vit)
    assert own.passes[0].gmacs < less.passes[0].gmacs
    assert len(less.passes) == len(less.operating_points) == 1  # one pass: no thresholds
    assert less.curve == []
    assert less.temperature is less.localisation is None


def test_a_cost_that_depends_on_the_image_is_measured_on_images(run, trained_vit, capsys):
    most = run("reducer=topk", "reducer.keep_rate=0.97", checkpoint=trained_vit)
    found = run("reducer=ats", "reducer.keep_rate=0.97", checkpoint=trained_vit)
    assert "GMACs depend on the image" in capsys.readouterr().out
    assert found.passes[0].gmacs < most.passes[0].gmacs
    assert found.passes[0].gmacs_std > 0
    assert found.operating_points[0].gmacs == pytest.approx(found.passes[0].gmacs)
    assert run(checkpoint=trained_vit).passes[0].gmacs_std is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("risk.eps=[0.01,0]", r"risk\.eps\.1=0 is not valid"),
        ("method.region_size=9", "region_size=9 does not fit"),
        ("reducer.r=3", "reducer.r is set, but there is no reducer"),
    ],
)
def test_wrong_settings(run, override, message, monkeypatch):
    def read(*_, **__):
        raise AssertionError("an image was read")

    monkeypatch.setattr("lfvit.commands.evaluate.prediction_trainer", read)
    with pytest.raises(ConfigError, match=message):
        run(override)


def test_held_out_photographs_by_name(run, composed, tmp_path, monkeypatch):
    """The ones that training held out; named by their path in the folder; without a broken one."""
    photos = write_photographs(tmp_path / "photos", per_class=6)
    monkeypatch.chdir(tmp_path)
    settings = ["data=imagefolder", "data.root=photos", "data.val_fraction=0.5", "method=vit"]
    fast = [o for o in NEEDLE_FAST if not o.startswith(("data.train", "data.val"))]
    small = ["image_size=32", "backbone.depth=2", "trainer.max_epochs=1", "seed=1"]
    train(composed("train", *fast, *settings, *small, f"run_dir={tmp_path / 'run'}"))
    monkeypatch.chdir("/")  # the folder was named relative to where training was started

    def evaluation(*overrides):
        checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
        found = run("data.on_error=skip", *overrides, checkpoint=checkpoint)
        rows = read_predictions(tmp_path / "predictions.parquet")
        assert len(rows) == found.images == 9 - found.skipped_images
        return rows

    rows = evaluation()
    assert [name.partition("/")[0] for name in rows.index] == [
        ("apple", "pear", "plum")[target] for target in rows["target"]
    ]
    pd.testing.assert_frame_equal(evaluation("data=imagefolder", f"data.root={photos}"), rows)
    broken = photos / rows.index[4]
    broken.write_bytes(broken.read_bytes()[:40])
    again = evaluation()
    assert list(again.index) == [name for name in rows.index if name != rows.index[4]]
    pd.testing.assert_frame_equal(again, rows.drop(rows.index[4]), atol=1e-5)
