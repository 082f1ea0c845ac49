"""Images kept on the device: the same batches as from files, and what is refused."""

import torch
from PIL import Image
from test_datamodule import broken, evaluate, fit, folder

from conftest import NEEDLE_FAST
from lfvit.commands.train import train
from lfvit.data import ImageDataModule, NeedleSet
from lfvit.data.augment import TrainTransform, to_tensor
from lfvit.data.cache import crop_and_resize
from lfvit.data.settings import AugmentSettings
from lfvit.runs.datasets import open_data
from lfvit.runs.models import load_trained
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


def test_batches_are_the_same_with_and_without(photographs):
    equal(evaluate(needle(cache="device")), evaluate(needle()))  # boxes and arrays
    equal(fit(needle(cache="device"), epochs=2), fit(needle(), epochs=2))
    cached = folder(photographs, cache="device", num_workers=1)
    equal(evaluate(cached), evaluate(folder(photographs)))


def test_nothing_is_decoded_after_the_first_epoch(photographs, monkeypatch):
    data = folder(photographs, cache="device")
    first = fit(data)
    monkeypatch.setattr("lfvit.data.batches.read_image", None)
    assert len(fit(data)) == len(first) == 3


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


def test_crops_are_those_of_timm():
    """The same part as from files; the stored square has no more detail than it needs."""
    image = Image.effect_noise((16, 16), 60).resize((55, 55), Image.BICUBIC).convert("RGB")
    transform = TrainTransform(AugmentSettings(crop_scale=(0.2, 1.0)), 48)
    stored = to_tensor(image)[None].float()
    for seed in range(6):
        with seeded(seed):
            expected, crop, flipped = transform(image)
        pixels = crop_and_resize(stored, torch.tensor([crop]), torch.tensor([flipped]), 48)[0]
        assert (pixels - expected).abs().mean() < 2
        assert (pixels.roll(1, 2) - expected).abs().mean() > 4  # in the same position


def test_unreadable_images_are_skipped_alike(tmp_path):
    root, files = broken(tmp_path)
    settings = {"val_fraction": 0.6, "on_error": "skip", "batch_size": 4}
    cached, plain = folder(root, cache="device", **settings), folder(root, **settings)
    for a, b in zip(fit(cached), fit(plain), strict=True):
        assert torch.equal(a.indices, b.indices)
        assert torch.equal(a.targets, b.targets)
    equal(evaluate(cached), evaluate(plain))
    assert cached.num_skipped == len(files)


def test_a_run_from_the_cache_and_an_evaluation_without_it(tmp_path, composed, photographs):
    """The command line: the cache is a setting of the run, not of the data it is evaluated on."""
    fast = [option for option in NEEDLE_FAST if not option.startswith("data.")]
    overrides = [*fast, "augment=device", "data=imagefolder", f"data.root={photographs}"]
    overrides += ["data.cache=device", "data.batch_size=4", "data.num_workers=0"]
    train(composed("train", *overrides, "trainer.max_epochs=1", f"run_dir={tmp_path / 'run'}"))
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    record = load_trained(checkpoint).record
    assert record.data["cache"] == "device"
    data = open_data(None, record)
    assert data.settings.cache is None
    cached = open_data({"cache": "device"}, record)
    assert cached.settings.cache == "device"
    equal(evaluate(cached), evaluate(data))
