"""Pictures and tables say what the model answers."""

import csv

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lfvit
from lfvit.data.batches import Sample
from lfvit.data.datamodule import normalise
from lfvit.tracking.loggers import tracked
from lfvit.tracking.media import log_predictions, log_rows, predictions
from small_vits import randomise
from wandb_file import read_offline_run

CLASSES = ["$5", "pear", "plum"]


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (4, 3, 112, 112), dtype=torch.uint8, generator=generator)
    return [Sample(image, i % 3, None) for i, image in enumerate(pixels)]


@pytest.mark.parametrize("method", ["vit", "lf_vit", "cf_vit"])
def test_the_answers_are_the_models(tiny, samples, method, tmp_path):
    model = lfvit.create_model(method, backbone=tiny, image_size=112, num_classes=3)
    randomise(model, seed=1)
    images = normalise(torch.stack([sample.pixels for sample in samples]))
    with torch.no_grad():
        if method == "vit":
            threshold, answer = 0.5, model.eval()(images).argmax(1)
        else:
            confidence = model.eval().infer(images, 2).confidence
            threshold = confidence.median().item()  # so that some exit and some do not
            inference = model.infer(images, threshold)
            answer = inference.logits.argmax(1)
            assert 0 < inference.exited.sum() < 4
    found = predictions(model.train(), samples, CLASSES, threshold)
    assert model.training
    assert [one.answer for one in found] == [CLASSES[i] for i in answer]
    assert [one.label for one in found] == [CLASSES[i] for i in (0, 1, 2, 0)]
    for i, one in enumerate(found):
        assert one.correct == (answer[i] == samples[i].target)
        if method == "vit":
            assert one.second is None
            assert one.exited
        else:
            assert one.exited == inference.exited[i]
            assert one.confidence == pytest.approx(inference.confidence[i].item())
            assert (one.look.region is None) == (method == "cf_vit")
            assert torch.equal(one.look.fine, inference.selection.fine_indices[i])
    log_predictions([TensorBoardLogger(tmp_path, "", "")], found, step=7)
    (event,) = EventAccumulator(str(tmp_path)).Reload().Images("looks")
    assert event.step == 7
    assert event.height > event.width / (1 if method == "vit" else 3)  # a row for every image


ROWS = [
    {"task": "inference", "model": name, "precision": "fp32", "compiled": compiled}
    | {"batch_size": 8, "exit_fraction": exits, "gmacs": gmacs}
    | {"images_per_second": speed, "latency_ms_p50": 8e3 / speed, "exits": None}
    for name, compiled, exits, gmacs, speed in (
        ("vit", False, None, 4.6, 100.0),
        ("lf_vit", True, 0.78, 1.7, 210.0),
    )
]


def test_rows_of_a_benchmark(composed, tmp_path):
    offline = ("logger=many", "logger.wandb.offline=true")
    cfg = composed("train", *offline, "name=benchmark", f"run_dir={tmp_path}")
    with tracked(cfg, "benchmark") as loggers:
        log_rows(loggers, ROWS)
    run = read_offline_run(tmp_path)
    assert (run.run.job_type, run.run.display_name, run.exit_code) == ("benchmark", "benchmark", 0)
    table = run.table("benchmark")
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert rows == ROWS
    names = ["inference/vit/fp32/batch_8", "inference/lf_vit/fp32_compiled/batch_8/exits_0.78"]
    with (tmp_path / "metrics.csv").open() as file:
        (line,) = csv.DictReader(file)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name, row in zip(names, ROWS, strict=True):
        speed = f"{name}/images_per_second"
        assert run.summary[speed] == float(line[speed]) == row["images_per_second"]
        assert board.Scalars(speed)[0].value == pytest.approx(row["images_per_second"])


def test_loggers_without_pictures_get_none(tmp_path):
    log_predictions([CSVLogger(tmp_path, "", "")], [])
    log_rows([], ROWS)
    assert not list(tmp_path.iterdir())
