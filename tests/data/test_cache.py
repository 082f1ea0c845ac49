"""Images kept on the device: the same batches as from files, and what is refused."""

import pytest
import torch
from PIL import Image
from test_datamodule import broken, evaluate, fit, folder

from conftest import NEEDLE_FAST
from lfvit.commands.train import train
from lfvit.data import ImageDataModule, NeedleSet
from lfvit.data import cache as cache_module
from lfvit.data.augment import TrainTransform, to_tensor
from lfvit.data.cache import crop_and_resize
from lfvit.data.settings import AugmentSettings
from lfvit.errors import ConfigError, DataError
from lfvit.runs.setup import load_trained, open_data
from lfvit.utils.seeding import seeded

MIXED = {"erasing": 0.5, "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1, "repeats": 2}


def needle(**settings):
    counts = {"train_images": 9, "val_images": 5, "num_classes": 3}
    return ImageDataModule(NeedleSet, image_size=64, batch_size=4, **counts, **settings)


def equal(first, second):
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        for one, other in zip(a, b, strict=True):
            assert one is other is None or torch.equal(one, other)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_is_the_same_with_and_without(photographs, workers):
    augment = {"auto_augment": "rand-m9-mstd0.5-inc1"}  # of training alone
    data = folder(photographs, cache="device", num_workers=workers, augment=augment)
    equal(evaluate(data), evaluate(folder(photographs)))


def test_boxes_and_arrays_are_the_same():
    equal(evaluate(needle(cache="device")), evaluate(needle()))
    equal(fit(needle(cache="device"), epochs=2), fit(needle(), epochs=2))


def test_nothing_is_decoded_after_the_first_epoch(photographs, monkeypatch):
    data = folder(photographs, cache="device")
    first = fit(data, epochs=2)
    monkeypatch.setattr("lfvit.data.batches.read_image", None)
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


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_training_images_show_what_those_from_files_show(photographs, interpolation):
    augment = {"interpolation": interpolation, "crop_scale": (0.3, 1.0)}
    cached, plain = (
        fit(folder(photographs, cache=cache, augment=augment, image_size=64))
        for cache in ("device", None)
    )
    for a, b in zip(cached, plain, strict=True):
        assert torch.equal(a.indices, b.indices)
        assert torch.equal(a.targets, b.targets)
        assert (a.images - b.images).abs().mean() < 0.05  # 3 grey levels
        assert (a.images.flip(3) - b.images).abs().mean() > 0.1


def test_crops_are_those_of_timm():
    image = Image.effect_noise((16, 16), 60).resize((55, 55), Image.BICUBIC).convert("RGB")
    transform = TrainTransform(AugmentSettings(crop_scale=(0.2, 1.0)), 48)
    stored = to_tensor(image)[None].float()
    for seed in range(6):
        with seeded(seed):
            expected, crop, flipped = transform(image)
        pixels = crop_and_resize(stored, torch.tensor([crop]), torch.tensor([flipped]), 48)[0]
        assert (pixels - expected).abs().mean() < 2
        assert (pixels.roll(1, 2) - expected).abs().mean() > 4  # in the same position


def test_unreadable_images_stop_the_run_or_are_skipped(tmp_path):
    root, files = broken(tmp_path)
    with pytest.raises(DataError, match=r"pear.*not readable.*data\.on_error=skip"):
        fit(folder(root, cache="device", val_fraction=0.13))
    settings = {"val_fraction": 0.6, "on_error": "skip", "batch_size": 4}
    cached, plain = folder(root, cache="device", **settings), folder(root, **settings)
    for a, b in zip(fit(cached), fit(plain), strict=True):
        assert torch.equal(a.indices, b.indices)
        assert torch.equal(a.targets, b.targets)
    equal(evaluate(cached), evaluate(plain))
    assert cached.num_skipped == len(files)


def test_too_little_memory_is_named_before_decoding(photographs, monkeypatch):
    monkeypatch.setattr("lfvit.data.batches.read_image", None)
    monkeypatch.setattr(cache_module, "free_memory", lambda device: 50_000)
    # 18 images of 73 x 73 to train on, and one without content
    with pytest.raises(ConfigError, match=r"device needs 0\.000304 GB on cpu, where 5e-05 GB are"):
        fit(folder(photographs, cache="device", image_size=64))


def test_each_rank_keeps_all_training_images_and_its_part_to_evaluate(photographs, monkeypatch):
    monkeypatch.setattr(ImageDataModule, "_world_size", 4)
    for rank in range(4):
        monkeypatch.setattr(ImageDataModule, "_rank", rank)
        cached = folder(photographs, cache="device", batch_size=4)
        assert len(cached.train_dataloader().dataset.images) == 18 + 1
        loader = cached.val_dataloader()
        assert len(loader.dataset.images) == len(loader.sampler.indices) + 1
        (raw,) = map(loader.dataset.fetch, loader)
        (expected,) = folder(photographs, batch_size=4).val_dataloader()
        for name in ("images", "targets", "indices"):
            assert torch.equal(getattr(raw, name), getattr(expected, name))


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ({"color_jitter": 0.3}, r"set augment\.color_jitter=0"),
        ({"auto_augment": "rand-m9"}, r"set augment\.auto_augment=null"),
        ({"interpolation": "lanczos"}, r"set augment\.interpolation=bicubic"),
    ],
)
def test_what_the_device_cannot_do_is_refused(photographs, augment, message):
    with pytest.raises(ConfigError, match=message):
        fit(folder(photographs, cache="device", augment=augment))


def test_a_run_from_the_cache_and_an_evaluation_without_it(tmp_path, composed, photographs):
    """The command line: the cache is a setting of the run, not of the data it is evaluated on."""
    fast = [option for option in NEEDLE_FAST if not option.startswith("data.")]
    overrides = [*fast, "data=imagefolder", f"data.root={photographs}", "data.cache=device"]
    options = ["data.batch_size=4", "data.num_workers=0", "trainer.max_epochs=1"]
    train(composed("train", *overrides, *options, f"run_dir={tmp_path / 'run'}"))
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    record = load_trained(checkpoint).record
    assert record.data["cache"] == "device"
    settings = (f"ckpt_path={checkpoint}", "trainer.accelerator=cpu")
    data = open_data(composed("evaluate", *settings).data, record)
    assert data.settings.cache is None
    cached = open_data(composed("evaluate", *settings, "data.cache=device").data, record)
    assert cached.settings.cache == "device"
    equal(evaluate(cached), evaluate(data))
