"""metrics.csv of a resumed run: every step once."""

import csv

from lfvit.tracking.loggers import CSVLogger


def log(folder, steps, purge_step=None, **more):
    logger = CSVLogger(str(folder), name="", version="", purge_step=purge_step)
    for step in steps:
        logger.log_metrics({"loss": step / 10, **more}, step)
        logger.save()


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [(int(row["step"]), row["loss"]) for row in csv.DictReader(file)]


def test_steps_after_the_checkpoint_are_forgotten(tmp_path):
    log(tmp_path, range(6))
    log(tmp_path, [4, 5], purge_step=4, another=1.0)
    assert rows(tmp_path) == [(step, str(step / 10)) for step in range(6)]
    log(tmp_path, [0])  # a run that starts
    assert rows(tmp_path) == [(0, "0.0")]
    log(tmp_path / "elsewhere", [4], purge_step=4)
    assert rows(tmp_path / "elsewhere") == [(4, "0.4")]


def test_a_row_that_was_cut_off_is_dropped(tmp_path):
    log(tmp_path, range(3))
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text().rstrip().rpartition(",")[0])
    log(tmp_path, [2], purge_step=2)
    assert rows(tmp_path) == [(0, "0.0"), (1, "0.1"), (2, "0.2")]
