"""run.json, its lock, and the config that a run leaves."""

from contextlib import suppress

import pytest
from omegaconf import OmegaConf

from lfvit.commands.jobs import _decide
from lfvit.errors import ConfigError
from lfvit.runs.directory import start_run, training_record
from lfvit.runs.identity import identity
from lfvit.runs.resume import check_own_directory
from lfvit.utils.atomic_io import read_json


@pytest.fixture
def training(composed, tmp_path):
    """A training config in a directory of its own."""
    return lambda *overrides: composed("train", f"run_dir={tmp_path}", *overrides)


def record(cfg, error=None):
    """A training that does nothing, or ends with an error."""
    with suppress(type(error) if error else ()), training_record(cfg):
        if error:
            raise error


def test_a_record_says_how_a_training_ended(training, tmp_path):
    def ended(error):
        record(training("overwrite=true"), error)
        return read_json(tmp_path / "run.json")

    assert ended(None)["status"] == "done"
    failed = ended(RuntimeError("no luck"))
    assert (failed["status"], failed["error"]) == ("failed", "RuntimeError: no luck")
    assert ended(KeyboardInterrupt())["status"] == "stopped"
    assert "error" not in ended(None)
    assert ended(None)["identity"] == identity(training())


def test_two_trainings_never_share_a_directory(training, tmp_path):
    with training_record(training()):
        with pytest.raises(ConfigError, match=f"run_dir={tmp_path}: another process is training"):
            record(training("seed=1"))
        assert read_json(tmp_path / "run.json")["identity"] == identity(training())
    record(training("seed=1", "overwrite=true"))


def test_a_continued_training_keeps_its_identity(training, composed, tmp_path):
    record(training(), RuntimeError())
    before = read_json(tmp_path / "run.json")["identity"]
    record(training("seed=1", "ckpt_path=last.ckpt"))
    assert read_json(tmp_path / "run.json")["identity"] == before
    record(composed("train", f"run_dir={tmp_path / 'new'}", "ckpt_path=last.ckpt"))
    assert "identity" not in read_json(tmp_path / "new" / "run.json")


def test_other_devices_train_something_else(composed, tmp_path, monkeypatch):
    """The same settings on another number of GPUs: not taken for done, not continued."""

    def on(gpus, name, *overrides):
        monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
        monkeypatch.setattr("torch.accelerator.device_count", lambda: gpus)
        run_dir = tmp_path / "runs" / name
        return composed("train", "trainer=ddp", f"run_dir={run_dir}", *overrides)

    record(on(4, "one"))
    for gpus, status in ((4, "already done"), (8, "trained")):
        cfg = on(gpus, "two")
        assert _decide(cfg, [tmp_path], identity(cfg), False)[0] == status
    with pytest.raises(ConfigError, match=r"trainer\.devices=4 there, 8 here"):
        check_own_directory(on(8, "one", "ckpt_path=auto"))


def test_a_continued_training_still_names_what_it_started_from(composed, tmp_path):
    """Twice continued; in another directory, the checkpoint is what it starts from."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    start_run(composed("train", f"run_dir={here}", "init_from=zoo:start"))
    last = here / "checkpoints" / "last.ckpt"
    for folder, start in ((here, "zoo:start"), (here, "zoo:start"), (elsewhere, None)):
        start_run(composed("train", f"run_dir={folder}", f"ckpt_path={last}"))
        assert OmegaConf.load(folder / "config.yaml").init_from == start
