"""What a run records about the code it ran."""

import subprocess
from contextlib import suppress

import pytest
import torch
from omegaconf import OmegaConf

from lfvit.commands.jobs import _decide
from lfvit.errors import ConfigError
from lfvit.runs import directory as runs
from lfvit.runs import provenance
from lfvit.runs.resume import check_own_directory


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True
        )

    git("init")
    (tmp_path / "model.py").write_text("one = 1\ntwo = 2\n")
    (tmp_path / ".gitignore").write_text("outputs/\n")
    git("add", "-A")
    git("commit", "-m", "first")
    monkeypatch.setattr(provenance, "PROJECT_ROOT", tmp_path)
    return tmp_path


def test_a_clean_checkout_has_no_diff(checkout):
    (checkout / "outputs").mkdir()
    (checkout / "outputs" / "x").write_text("ignored")
    assert provenance.uncommitted_changes() == b""
    assert not provenance.commit().endswith("+")


def test_the_recorded_diff_restores_the_code(checkout):
    changed = {"model.py": b"one = 1\ntwo = 3 # \xe9\n", "new selector.py": b"three = 3\n"}
    for name, content in changed.items():
        (checkout / name).write_bytes(content)
    assert provenance.commit().endswith("+")
    patch = provenance.uncommitted_changes()
    for command in (["checkout", "."], ["clean", "-fd"]):
        subprocess.run(["git", *command], cwd=checkout, check=True, capture_output=True)
    subprocess.run(["git", "apply"], input=patch, cwd=checkout, check=True)
    for name, content in changed.items():
        assert (checkout / name).read_bytes() == content


def test_outside_a_checkout_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "PROJECT_ROOT", tmp_path)
    assert provenance.commit() is None
    assert provenance.uncommitted_changes() == b""


@pytest.fixture
def training(composed, tmp_path):
    """A training config in a directory of its own."""
    return lambda *overrides: composed("train", f"run_dir={tmp_path}", *overrides)


def test_what_decides_the_weights_decides_the_identity(composed):
    cfg = composed("train", "run_dir=one")
    same = runs.identity(cfg)

    def changed(key, value):
        other = cfg.copy()
        OmegaConf.update(other, key, value, force_add=True)
        return runs.identity(other)

    for key, value in {
        "run_dir": "two",
        "name": "another",
        "threshold": 0.5,
        "logger": {},
        "data.num_workers": 9,
        "callbacks.progress": None,
        "trainer.log_every_n_steps": 1,
        "repeat": True,
        "evaluate": True,
        "ckpt_path": "some.ckpt",
        "callbacks.nonfinite.action": "skip",
    }.items():
        assert changed(key, value) == same, key
    others = {
        "seed": 1,
        "method.region_size": 4,
        "method.selector": "random",
        "trainer.max_epochs": 4,
        "backbone.depth": 3,
        "reducer.name": "evit",
        "augment.mixup": 0.5,
        "data.batch_size": 8,
        "image_size": 96,
        "trainer.precision": "bf16-mixed",
        "trainer.fast_dev_run": True,
        "callbacks.checkpoint.monitor": "val/loss",
        "deterministic": True,
        "a_setting_to_come": 1,
    }
    identities = {changed(key, value) for key, value in others.items()}
    assert len(identities | {same}) == len(others) + 1
    assert runs.identity(cfg) == same  # and the config is left as it was
    assert cfg.run_dir == "one"
    del cfg.deterministic  # a run from before there was this setting
    assert runs.identity(cfg) == same


def test_processes_count_by_their_number(composed, tmp_path, monkeypatch):
    """A step has the images of all of them: on other machines "auto" trains other weights."""

    def config(*overrides):
        return composed("train", "trainer=ddp", f"run_dir={tmp_path / 'runs' / 'one'}", *overrides)

    def on(gpus, *overrides):
        monkeypatch.setattr("torch.accelerator.is_available", lambda: gpus > 0)
        monkeypatch.setattr("torch.accelerator.device_count", lambda: gpus)
        return runs.identity(config(*overrides))

    assert on(4) == on(8, "trainer.devices=4") == on(8, "trainer.devices=[0,2,4,6]")
    assert on(4) == on(2, "trainer.devices=2", "+trainer.num_nodes=2")
    assert len({on(4), on(8), on(8, "trainer.accelerator=cpu")}) == 3
    assert on(0) == on(1, "trainer.devices=1")
    assert on(1, "trainer.devices=nonsense") != on(1)
    four = on(4)
    record(config())
    assert runs.read_json(tmp_path / "runs" / "one" / "run.json")["processes"] == 4
    for gpus, becomes in ((4, "already done"), (8, "trained")):
        other = config(f"run_dir={tmp_path / 'runs' / 'two'}")
        found = _decide(other, [tmp_path], on(gpus), False)
        assert found[0] == becomes
    OmegaConf.save(config(), tmp_path / "runs" / "one" / "config.yaml", resolve=True)
    with pytest.raises(ConfigError, match=r"trainer\.devices=4 there, 8 here"):
        check_own_directory(config("ckpt_path=auto"))
    torchrun = {"TORCHELASTIC_RUN_ID": 1, "RANK": 0, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 2}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, str(value))
    assert on(2) == four


def test_weights_count_by_content_and_images_by_place(composed, tmp_path, monkeypatch):
    def identity(*overrides):
        return runs.identity(composed("train", "run_dir=one", *overrides))

    monkeypatch.chdir(tmp_path)
    for name, value, seconds in (("a.pth", 1, 5), ("b.pth", 1, 6), ("c.pth", 2, 5)):
        torch.save({"state_dict": {"w": torch.tensor(value)}, "seconds": seconds}, tmp_path / name)
    assert identity("init_from=a.pth") == identity("init_from=b.pth") != identity()
    assert identity("init_from=a.pth") != identity("init_from=c.pth")
    folder = ("data=imagefolder", "data.root=photos")
    here = identity(*folder)
    assert here == identity(folder[0], f"data.root={tmp_path / 'photos'}")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert identity(*folder) != here


def record(cfg, error=None):
    """A training that does nothing, or ends with an error."""
    with suppress(type(error) if error else ()), runs.training_record(cfg):
        if error:
            raise error


def test_a_record_says_how_a_training_ended(training, tmp_path):
    def ended(error):
        record(training(), error)
        return runs.read_json(tmp_path / "run.json")

    assert ended(None)["status"] == "done"
    failed = ended(RuntimeError("no luck"))
    assert (failed["status"], failed["error"]) == ("failed", "RuntimeError: no luck")
    assert ended(KeyboardInterrupt())["status"] == "stopped"
    assert "error" not in ended(None)
    assert ended(None)["identity"] == runs.identity(training())


def test_two_trainings_never_share_a_directory(training, tmp_path):
    with runs.training_record(training()):
        with pytest.raises(ConfigError, match=f"run_dir={tmp_path}: another process is training"):
            record(training("seed=1"))
        assert runs.read_json(tmp_path / "run.json")["identity"] == runs.identity(training())
    record(training("seed=1"))


def test_a_continued_training_keeps_its_identity(training, composed, tmp_path):
    record(training(), RuntimeError())
    before = runs.read_json(tmp_path / "run.json")["identity"]
    record(training("seed=1", "ckpt_path=last.ckpt"))
    assert runs.read_json(tmp_path / "run.json")["identity"] == before
    record(composed("train", f"run_dir={tmp_path / 'new'}", "ckpt_path=last.ckpt"))
    assert runs.read_json(tmp_path / "new" / "run.json")["identity"] is None


def test_a_continued_training_still_says_what_it_started_from(composed, tmp_path):
    """Twice continued; in another directory, the checkpoint is what it starts from."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    runs.start_run(composed("train", f"run_dir={here}", "init_from=zoo:start"))
    for place, start in ((here, "zoo:start"), (here, "zoo:start"), (elsewhere, None)):
        last = here / "checkpoints" / "last.ckpt"
        runs.start_run(composed("train", f"run_dir={place}", f"ckpt_path={last}"))
        written = OmegaConf.load(place / "config.yaml")
        assert written.init_from == start
        assert written.ckpt_path == str(last)
    (here / "config.yaml").write_text("- [")
    runs.start_run(composed("train", f"run_dir={here}", f"ckpt_path={last}"))
    assert OmegaConf.load(here / "config.yaml").init_from is None
