"""Images kept on the device: the same batches as from files, and what is refused."""

import pytest
import torch
from lightning import Trainer
from PIL import Image
from test_datamodule import Sink, broken, fit

from conftest import NEEDLE_FAST, write_photographs
from lfvit.commands.train import train
from lfvit.data import FolderDataModule, NeedleDataModule
from lfvit.data import cache as cache_module
from lfvit.data.batches import as_pixels
from lfvit.data.images import read_image
from lfvit.data.sampling import TrainSampler
from lfvit.errors import ConfigError, DataError
from lfvit.runs.setup import load_trained, open_data

MIXED = {"erasing": 0.5, "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1, "repeats": 2}


def folder(root, **settings):
    settings = {"image_size": 32, "batch_size": 6, "val_fraction": 0.25, **settings}
    return FolderDataModule(root=str(root), **settings)


def needle(**settings):
    counts = {"train_images": 9, "val_images": 5, "num_classes": 3}
    return NeedleDataModule(image_size=64, batch_size=4, **counts, **settings)


class Receiver(Sink):
    """Collects what an evaluation hands to a model."""

    def predict_step(self, batch, batch_idx):
        return batch


def evaluate(data):
    trainer = Trainer(
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        use_distributed_sampler=False,
    )
    return trainer.predict(Receiver(), datamodule=data)


def equal(first, second):
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        for one, other in zip(a, b, strict=True):
            assert one is other is None or torch.equal(one, other)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_is_the_same_with_and_without(photographs, workers):
    data = folder(photographs, cache="device", num_workers=workers)
    equal(evaluate(data), evaluate(folder(photographs)))
    samples = data.some_validation_samples(3)
    assert len(samples) == 3


def test_boxes_and_training_images_that_nothing_varies_are_the_same():
    equal(evaluate(needle(cache="device")), evaluate(needle()))
    equal(fit(needle(cache="device"), epochs=2), fit(needle(), epochs=2))


def test_nothing_is_decoded_after_the_first_epoch(photographs, monkeypatch):
    data = folder(photographs, cache="device")
    first = fit(data, epochs=2)
    monkeypatch.setattr("lfvit.data.folders.read_image", None)
    assert len(fit(data, epochs=2)) == len(first) == 6


def test_training_repeats_bit_for_bit_and_differs_between_epochs_and_seeds(photographs):
    def run(**settings):
        data = folder(photographs, cache="device", augment=MIXED, **settings)
        return fit(data, epochs=2)

    torch.manual_seed(1)
    first = run()
    torch.manual_seed(2)
    equal(first, run(num_workers=1))
    assert not torch.equal(first[0].images, first[3].images)
    assert not torch.equal(first[0].images, run(seed=1)[0].images)
    torch.testing.assert_close(first[0].targets.sum(1), torch.ones(6))


def test_crops_show_the_images_they_are_drawn_for(photographs):
    """With the whole image as the only crop, training batches are the stored squares."""
    augment = {"crop_scale": (1.0, 1.0), "hflip": 0.0, "crop_pct": 1.0, "repeats": 2}
    data = folder(photographs, cache="device", augment=augment)
    data.setup()
    square = [i for i, p in enumerate(data.train_images.paths) if len(set(read_image(p).size)) == 1]
    loader = data.train_dataloader()
    order = [draw.image for draw in TrainSampler(len(data.train_images), seed=0, repeats=2)]
    cached = data._cached("train")
    seen = 0
    for number, batch in enumerate(loader):
        raw = cached.fetch(batch)
        for index, pixels, target in zip(
            order[6 * number :], raw.images, raw.targets.tolist(), strict=False
        ):
            assert target == data.train_images.targets[index]
            if index in square:
                image = read_image(data.train_images.paths[index])
                stored = as_pixels(image.resize((32, 32), Image.Resampling.BICUBIC))
                assert (stored.int() - pixels.int()).abs().max() <= 1
                seen += 1
    assert seen > 2


def test_unreadable_images_stop_the_run_or_are_left_out(tmp_path):
    root, files = broken(tmp_path)
    with pytest.raises(DataError, match=r"pear.*not readable.*data\.on_error=skip"):
        fit(folder(root, cache="device", val_fraction=0.13))
    data = folder(root, cache="device", val_fraction=0.13, on_error="skip", batch_size=16)
    batches = fit(data, epochs=2)
    held = [path for path in files if path in data.val_images.paths]
    assert len(data.reading.unreadable) == len(files)
    assert [len(batch.images) for batch in batches] == [
        16 - sum(draw.image in missing(data) for draw in draws(data, epoch)[:16])
        for epoch in range(2)
    ]
    assert sum(len(batch.images) for batch in evaluate(data)) == len(data.val_images) - len(held)
    equal(evaluate(data), evaluate(folder(root, val_fraction=0.13, on_error="skip", batch_size=16)))


def draws(data, epoch):
    sampler = TrainSampler(len(data.train_images), seed=0)
    sampler.set_epoch(epoch)
    return list(sampler)


def missing(data):
    paths = data.train_images.paths
    return [
        i for i, path in enumerate(paths) if any(str(path) in m for m in data.reading.unreadable)
    ]


def test_a_set_without_one_readable_image_is_an_error(tmp_path):
    root = write_photographs(tmp_path / "dead", per_class=2)
    for file in root.rglob("*.*"):
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match="not one train image could be read"):
        fit(folder(root, cache="device", on_error="skip", batch_size=1))


def test_too_little_memory_is_found_before_decoding(photographs, monkeypatch):
    monkeypatch.setattr(cache_module, "free_memory", lambda device: 50_000)
    monkeypatch.setattr("lfvit.data.folders.read_image", None)
    data = folder(photographs, cache="device", image_size=64)
    # 18 images of 73 x 73 to train on and 6 of 64 x 64
    with pytest.raises(ConfigError, match=r"device needs 0\.000361 GB on cpu, where 5e-05 GB are"):
        fit(data)


def test_the_free_memory_of_this_machine_is_known():
    free = cache_module.free_memory(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50


def test_each_rank_keeps_all_training_images_and_its_own_part_to_evaluate(photographs, monkeypatch):
    parts = []
    for rank in range(2):
        monkeypatch.setattr(FolderDataModule, "_rank", rank)
        monkeypatch.setattr(FolderDataModule, "_world_size", 2)
        data = folder(photographs, cache="device", val_fraction=0.4, batch_size=4)
        data.setup()
        assert len(data._cached("train").images) == len(data.train_images)
        kept = data._cached("val")
        assert len(kept.images) == len(data._eval_sampler().indices)
        images = [kept.fetch(batch).images for batch in data.val_dataloader()]
        parts.append(torch.cat(images))
        data = folder(photographs, val_fraction=0.4, batch_size=4)
        data.setup()
        assert torch.equal(
            parts[-1], torch.cat([b.images for b in data.val_dataloader() if len(b.images)])
        )
    assert not torch.equal(*parts)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cache": "disk"}, "data.cache='disk' is unknown; valid: device"),
        ({"cache": "device", "label_maps": "maps"}, "data.cache=device does not keep label maps"),
        ({"cache": "device", "augment": {"color_jitter": 0.3}}, "set augment.color_jitter=0"),
        ({"reduced_decode": "yes"}, "data.reduced_decode='yes' must be true or false"),
    ],
)
def test_wrong_settings(photographs, settings, message):
    with pytest.raises(ConfigError, match=message):
        fit(folder(photographs, **settings))


def test_what_training_cannot_do_does_not_keep_an_evaluation_from_the_cache(photographs):
    augment = {"auto_augment": "rand-m9-mstd0.5-inc1"}
    data = folder(photographs, cache="device", augment=augment)
    equal(evaluate(data), evaluate(folder(photographs)))


def test_a_run_from_the_cache_and_an_evaluation_without_it(tmp_path, composed, photographs):
    """The command line: the cache is a setting of the run, not of the data it is evaluated on."""
    fast = [option for option in NEEDLE_FAST if not option.startswith("data.")]
    overrides = [*fast, "data=imagefolder", f"data.root={photographs}", "data.cache=device"]
    options = ["data.batch_size=4", "data.num_workers=0", "trainer.max_epochs=1"]
    train(composed("train", *overrides, *options, f"run_dir={tmp_path / 'run'}"))
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    settings = (f"ckpt_path={checkpoint}", "trainer.accelerator=cpu", "calibration_seed=1")
    cfg = composed("evaluate", *settings)
    record = load_trained(checkpoint).record
    assert record["data"]["cache"] == "device"
    data = open_data(cfg, record)
    assert data.cache is None
    cached = open_data(composed("evaluate", *settings, "data.cache=device"), record)
    equal(evaluate(cached), evaluate(data))


def test_a_batch_without_one_readable_image_is_empty(tmp_path):
    root, _ = broken(tmp_path)
    data = folder(root, cache="device", val_fraction=0.13, on_error="skip")
    data.setup()
    cached = data._cached("train")
    lost = missing(data)
    assert lost
    done = data.on_after_batch_transfer(cached.collate(lost), 0)
    assert done.images.shape == (0, 3, 32, 32)
    assert done.coarse_images.shape == (0, 3, 16, 16)
    assert len(done.targets) == 0
