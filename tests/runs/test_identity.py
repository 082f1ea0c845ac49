"""Which settings decide the trained weights."""

import torch
from omegaconf import OmegaConf

from lfvit.runs.identity import identity

SAME = {
    "run_dir": "two",
    "name": "another",
    "threshold": 0.5,
    "logger": {},
    "data.num_workers": 9,
    "callbacks.progress": None,
    "callbacks.nonfinite.action": "skip",
    "callbacks.predictions": None,
    "trainer.log_every_n_steps": 1,
    "repeat": True,
    "evaluate": True,
    "ckpt_path": "some.ckpt",
}
OTHER = {
    "seed": 1,
    "method.region_size": 4,
    "method.selector": "random",
    "trainer.max_epochs": 4,
    "optimizer.lr": 0.1,
    "callbacks.ema": None,
    "backbone.depth": 3,
    "reducer.name": "evit",
    "augment.mixup": 0.5,
    "data.batch_size": 8,
    "image_size": 96,
    "trainer.precision": "bf16-mixed",
    "callbacks.checkpoint.monitor": "val/loss",
    "deterministic": True,
    "a_setting_to_come": 1,
}


def test_what_decides_the_weights_decides_the_identity(composed):
    cfg = composed("train", "run_dir=one")
    before = identity(cfg)

    def changed(key, value):
        other = cfg.copy()
        OmegaConf.update(other, key, value, force_add=True)
        return identity(other)

    for key, value in SAME.items():
        assert changed(key, value) == before, key
    others = {changed(key, value) for key, value in OTHER.items()}
    assert len(others | {before}) == len(OTHER) + 1
    assert (identity(cfg), cfg.run_dir) == (before, "one")  # the config is left as it was


def test_processes_count_by_their_number(composed, monkeypatch):
    """A step has the images of all of them: on other machines "auto" trains other weights."""

    def on(gpus, *overrides):
        monkeypatch.setattr("torch.accelerator.is_available", lambda: gpus > 0)
        monkeypatch.setattr("torch.accelerator.device_count", lambda: gpus)
        return identity(composed("train", "trainer=ddp", "run_dir=one", *overrides))

    four = on(4)
    assert four == on(8, "trainer.devices=4") == on(8, "trainer.devices=[0,2,4,6]")
    assert four == on(2, "trainer.devices=2", "trainer.num_nodes=2")
    assert len({four, on(8), on(8, "trainer.accelerator=cpu")}) == 3
    assert on(0) == on(1, "trainer.devices=1")
    assert on(1, "trainer.devices=nonsense") != on(1)
    launched = {"TORCHELASTIC_RUN_ID": 1, "RANK": 0, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 2}
    for name, value in launched.items():
        monkeypatch.setenv(name, str(value))
    assert on(2) == four


def test_weights_count_by_content_and_images_by_path(composed, tmp_path, monkeypatch):
    def of(*overrides):
        return identity(composed("train", "run_dir=one", *overrides))

    monkeypatch.chdir(tmp_path)
    for name, value, seconds in (("a.pth", 1, 5), ("b.pth", 1, 6), ("c.pth", 2, 5)):
        torch.save({"state_dict": {"w": torch.tensor(value)}, "seconds": seconds}, tmp_path / name)
    assert of("init_from=a.pth") == of("init_from=b.pth") != of()
    assert of("init_from=a.pth") != of("init_from=c.pth")
    folder = ("data=imagefolder", "data.root=photos")
    here = of(*folder)
    assert here == of(folder[0], f"data.root={tmp_path / 'photos'}")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert of(*folder) != here
