"""Predictions on a few images, and what loggers show of them."""

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lfvit
from lfvit.data.augment import normalize
from lfvit.data.batches import Sample
from lfvit.data.settings import Preprocessing
from lfvit.tracking.loggers import log_table, summarise, tracked
from lfvit.tracking.pictures import draw_predictions, log_predictions, predict_images
from small_vits import randomise
from wandb_file import read_offline_run

CLASSES = ["$5", "pear", "plum"]
HALF = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


class FourImages:
    """A stand-in for a DataModule."""

    classes = CLASSES
    preprocessing = HALF

    def some_validation_samples(self, count):
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (4, 3, 112, 112), dtype=torch.uint8, generator=generator)
        return [Sample(image, i % 3, None) for i, image in enumerate(pixels)][:count]


@pytest.mark.parametrize("method", ["vit", "lf_vit", "cf_vit"])
def test_predictions_are_those_of_early_exit(tiny, method, tmp_path):
    model = lfvit.create_model(method, backbone=tiny, image_size=112, num_classes=3)
    randomise(model, seed=1)
    samples = FourImages().some_validation_samples(4)
    pixels = torch.stack([sample.pixels for sample in samples])
    targets = [sample.target for sample in samples]
    with torch.no_grad():
        if method == "vit":
            threshold, expected = 0.5, model.eval()(normalize(pixels, HALF)).argmax(1)
        else:
            confidence = model.eval().infer(normalize(pixels, HALF), 2).confidence
            threshold = confidence.median().item()  # so that some exit and some do not
            inference = model.infer(normalize(pixels, HALF), threshold)
            expected = inference.logits.argmax(1)
            assert 0 < inference.exited.sum() < 4
    predictions = predict_images(model.train(), pixels, HALF, CLASSES, threshold, targets)
    assert model.training
    for i, one in enumerate(predictions):
        assert one.label == CLASSES[expected[i]]
        assert one.correct == (expected[i] == targets[i])
        if method == "vit":
            assert (one.exit_pass, one.exited, one.gca) == (0, False, None)
        else:
            assert one.exited == inference.exited[i]
            assert (one.region is None) == (method == "cf_vit")
            assert torch.equal(one.fine_indices, inference.selection.fine_indices[i])
    board = TensorBoardLogger(tmp_path, "", "")
    log_predictions([board], model, FourImages(), threshold, count=3, step=7)
    (event,) = EventAccumulator(str(tmp_path)).Reload().Images("regions")
    assert event.step == 7
    assert event.height / event.width > 3 / (1 if method == "vit" else 3)  # a row for every image


def test_a_picture_shows_both_answers_and_what_its_frames_mean(tiny, monkeypatch):
    figures = []
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda self, *_, **__: figures.append(self)
    )
    model = lfvit.create_model("lf_vit", backbone=tiny, image_size=112, num_classes=3)
    randomise(model, seed=1)
    pixels = torch.stack([s.pixels for s in FourImages().some_validation_samples(1)])
    for threshold in (0.0, 2.0):
        (one,) = predict_images(model, pixels, HALF, CLASSES, threshold)
        draw_predictions([one], "unused")
        first, _, second = (axis.get_title() for axis in figures[-1].axes)
        answers = [CLASSES[index] for index in one.logits.argmax(1)]
        assert first.startswith(f"first pass: {answers[0]}, ")
        assert second.startswith("second pass: " + ("not run" if one.exited else f"{answers[1]}, "))
        texts = [text.get_text() for text in figures[-1].legends[0].get_texts()]
        frame = "the window of a second pass that was not needed"
        assert texts[0] == (frame if one.exited else "the second pass's window")


def test_rows_become_a_table_and_numbers(composed, tmp_path):
    rows = [
        {"model": "vit", "gmacs": 4.6, "exits": None},
        {"model": "lf", "gmacs": 1.7, "exits": 0.5},
    ]
    offline = ("logger=[tensorboard,wandb]", "logger.wandb.offline=true")
    cfg = composed("train", *offline, "name=benchmark", f"run_dir={tmp_path}")
    with tracked(cfg, "benchmark") as loggers:
        log_table(loggers, "benchmark", rows)
        summarise(loggers, {"vit/images_per_second": 100.0, "note": "text", "missing": None})
    assert not (tmp_path / "metrics.csv").exists()  # null removes a logger
    run = read_offline_run(tmp_path)
    assert (run.run.job_type, run.run.display_name, run.exit_code) == ("benchmark", "benchmark", 0)
    table = run.table("benchmark")
    assert [dict(zip(table["columns"], row, strict=True)) for row in table["data"]] == rows
    assert run.summary["vit/images_per_second"] == 100
    assert (run.summary["note"], "missing" in run.summary) == ("text", False)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert board.Scalars("vit/images_per_second")[0].value == 100
