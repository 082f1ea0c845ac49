"""Batches: what is in them, in which order, and what happens to images that cannot be read."""

import pytest
import torch
from lightning import LightningModule, Trainer

from conftest import write_photographs
from lfvit.data import FolderDataModule, NeedleDataModule
from lfvit.data.augment import Augment
from lfvit.data.batches import Note, RawBatch, TransformedImages, Unreadable, collate
from lfvit.data.datamodule import normalise
from lfvit.data.sampling import NOTHING, Draw, EvalSampler, TrainSampler
from lfvit.errors import ConfigError, DataError
from lfvit.models.resample import downsample
from lfvit.utils.seeding import seeded

DEIT = {
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "color_jitter": 0.3,
    "erasing": 0.25,
    "mixup": 0.8,
    "cutmix": 1.0,
    "label_smoothing": 0.1,
    "repeats": 3,
}


def folder(root, **settings):
    settings = {"image_size": 32, "batch_size": 6, "val_fraction": 0.25, **settings}
    data = FolderDataModule(root=str(root), **settings)
    data.setup()
    return data


def test_awkward_photographs_become_batches(photographs):
    data = folder(photographs)
    assert data.classes == ["apple", "pear", "plum"]
    batch = next(iter(data.val_dataloader()))
    assert batch.images.shape == (6, 3, 32, 32)
    assert batch.images.dtype == torch.uint8
    assert batch.boxes is None
    done = data.on_after_batch_transfer(batch, 0)
    torch.testing.assert_close(done.images, normalise(batch.images))
    torch.testing.assert_close(done.coarse_images, downsample(done.images))
    assert done.coarse_images.shape == (6, 3, 16, 16)


def test_normalise_is_imagenets():
    from torchvision.transforms.functional import normalize

    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    expected = normalize(pixels / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    torch.testing.assert_close(normalise(pixels), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_follows_seed_and_epoch_not_workers(photographs, workers):
    def epoch(number, seed=0):
        data = folder(photographs, augment=DEIT, seed=seed, num_workers=workers)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(number)
        return torch.cat([batch.images for batch in loader])

    same = folder(photographs, augment=DEIT).train_dataloader()
    assert torch.equal(epoch(0), torch.cat([batch.images for batch in same]))
    assert not torch.equal(epoch(0), epoch(1))
    assert not torch.equal(epoch(0), epoch(0, seed=1))


def test_making_a_sample_leaves_the_global_generators_alone(photographs):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    data = folder(photographs, augment=DEIT)
    TransformedImages(data.train_images, data.train_transform())[Draw(0, 1)]
    assert torch.equal(torch.rand(3), expected)


def broken(tmp_path, count=2):
    root = write_photographs(tmp_path / "broken")
    files = sorted((root / "pear").iterdir())[:count]
    for file in files:
        file.write_bytes(file.read_bytes()[:30])
    return root, files


class Sink(LightningModule):
    """Collects what the DataModule hands to a model."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches = []

    def training_step(self, batch, batch_idx):
        self.batches.append(batch)
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(data, epochs=1):
    sink = Sink()
    trainer = Trainer(
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        use_distributed_sampler=False,
        limit_val_batches=0,
    )
    trainer.fit(sink, datamodule=data)
    return sink.batches


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_stop_the_run_by_path(tmp_path, workers):
    root, _ = broken(tmp_path)
    data = folder(root, num_workers=workers, batch_size=16)
    with pytest.raises(DataError, match=r"pear.*not readable.*data\.on_error=skip"):
        fit(data)


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_are_skipped_counted_and_never_black(tmp_path, workers, caplog):
    root, files = broken(tmp_path)
    data = folder(
        root, num_workers=workers, batch_size=16, on_error="skip", val_fraction=0.13, augment=DEIT
    )
    data.augment = type(data.augment).of({**DEIT, "repeats": 1})
    batches = fit(data, epochs=3)
    in_training = [path for path in files if path in data.train_images.paths]
    assert in_training
    assert 1 <= len(data.reading.unreadable) <= len(in_training)
    assert all(any(str(p) in message for p in in_training) for message in data.reading.unreadable)
    assert "skipped (1 so far)" in caplog.text
    assert all(batch.images.std() > 0.1 for batch in batches)


@pytest.mark.parametrize("augment", [{}, DEIT])
def test_a_batch_without_one_readable_image_is_passed_over(tmp_path, augment):
    data = folder(broken(tmp_path)[0], on_error="skip", augment={**augment, "repeats": 1})
    empty = data.on_after_batch_transfer(
        collate([Unreadable("x.jpg: not readable", Note(0, "damaged"))]), 0
    )
    assert len(empty.images) == len(empty.targets) == 0


@pytest.mark.parametrize("count", [1, 2, 5])
def test_an_odd_image_out_is_kept_unmixed(photographs, count):
    data = folder(photographs, augment=DEIT)
    images, targets = data._mix(torch.randn(count, 3, 32, 32), torch.zeros(count, dtype=torch.long))
    assert images.shape == (count, 3, 32, 32)
    torch.testing.assert_close(targets.sum(1), torch.ones(count))


def test_training_targets_are_mixed_and_validation_targets_are_not(photographs):
    mixed = fit(folder(photographs, augment=DEIT))[0]
    assert mixed.targets.shape == (6, 3)
    torch.testing.assert_close(mixed.targets.sum(1), torch.ones(6))
    plain = fit(folder(photographs, augment={"label_smoothing": 0.3}))[0]
    assert {round(value, 3) for value in plain.targets.flatten().tolist()} == {0.1, 0.8}
    data = folder(photographs)
    assert data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0).targets.ndim == 1


def test_mixing_is_the_same_in_a_second_run(photographs):
    torch.manual_seed(1)
    first = fit(folder(photographs, augment=DEIT), epochs=2)
    torch.manual_seed(2)
    second = fit(folder(photographs, augment=DEIT), epochs=2)
    assert len(first) == len(second) == 6
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.targets, b.targets)
    assert not torch.equal(first[0].images, first[3].images)


def test_mix_token_draws_a_box_for_every_training_batch(photographs):
    settings = {"augment": {"mix_token": 1.0}}
    batches = fit(folder(photographs, **settings), epochs=2)
    boxes = [batch.token_box for batch in batches]
    assert boxes == [batch.token_box for batch in fit(folder(photographs, **settings), epochs=2)]
    assert len(set(boxes)) == len(boxes) == 6
    assert all(0 <= a <= c <= 1 and 0 <= b <= d <= 1 for a, b, c, d in boxes)
    plain = fit(folder(photographs), epochs=2)
    assert [batch.token_box for batch in plain] == [None] * 6
    for with_box, without in zip(batches, plain, strict=True):  # nothing else is drawn differently
        assert torch.equal(with_box.images, without.images)
    data = folder(photographs, **settings)
    assert data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0).token_box is None


def test_boxes_are_as_large_as_their_beta_distribution_says():
    with seeded(0):
        boxes = [Augment.of({"mix_token": 1.0}).token_box() for _ in range(4000)]
    whole = [(c - a) * (d - b) for a, b, c, d in boxes if min(a, b) > 0 and max(c, d) < 1]
    sides = [c - a for a, b, c, d in boxes if a > 0 and c < 1 and b > 0 and d < 1]
    assert all(abs(side**2 - area) < 1e-9 for side, area in zip(sides, whole, strict=True))
    centres = torch.tensor([[a + c, b + d] for a, b, c, d in boxes]) / 2
    torch.testing.assert_close(centres.mean(0), torch.full((2,), 0.5), atol=0.02, rtol=0)
    # a side s in 0..1 of density 2s, cut off at the border: E = int 2s (s - s^2/4) ds = 13/24
    mean = sum(c - a for a, _, c, _ in boxes) / len(boxes)
    assert mean == pytest.approx(13 / 24, abs=0.02)


def test_repeated_augmentation_repeats_images_not_pixels():
    sampler = TrainSampler(12, seed=0, repeats=3)
    draws = list(sampler)
    assert len(draws) == 12
    images = [draw.image for draw in draws]
    assert images[0:3] == [images[0]] * 3
    assert len(set(images)) == 4
    assert len({draw.seed for draw in draws}) == 12


def test_ranks_share_an_epoch_without_overlap():
    whole = list(TrainSampler(11, seed=4))
    parts = [list(TrainSampler(11, seed=4, rank=r, world_size=2)) for r in range(2)]
    assert [len(part) for part in parts] == [5, 5]
    assert set(parts[0]) | set(parts[1]) == set(whole[:10])
    for size in (10, 2, 1):
        parts = [list(EvalSampler(size, rank=r, world_size=3)) for r in range(3)]
        assert {len(part) for part in parts} == {-(-size // 3)}  # computing in step
        seen = [draw.image for part in parts for draw in part if draw != NOTHING]
        assert seen == list(range(size))


def test_evaluation_does_not_depend_on_batch_size(photographs):
    def pixels(batch_size):
        loader = folder(photographs, batch_size=batch_size).val_dataloader()
        return torch.cat([batch.images for batch in loader])

    assert torch.equal(pixels(1), pixels(6))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"on_error": "ignore"}, "data.on_error='ignore' is unknown; valid: raise, skip"),
        ({"batch_size": 0}, "data.batch_size=0"),
        ({"num_workers": -1}, "data.num_workers=-1"),
        ({"augment": {"mixpu": 1}}, "augment has no setting 'mixpu'; valid: .*mixup"),
        ({"augment": {"hflip": 2}}, "augment.hflip=2 is out of range"),
        ({"augment": {"mix_token": -1}}, "augment.mix_token=-1 is out of range"),
        ({"augment": {"repeats": 0}}, "augment.repeats=0"),
        ({"augment": {"crop_pct": 0}}, "augment.crop_pct=0"),
        ({"augment": {"interpolation": "cubic"}}, "augment.interpolation='cubic' is unknown"),
        ({"root": None}, "data.root is not set"),
    ],
)
def test_wrong_settings(photographs, settings, message):
    settings = {"root": str(photographs), "image_size": 32, "batch_size": 4, **settings}
    with pytest.raises(ConfigError, match=message):
        FolderDataModule(**settings).setup()


def test_a_batch_larger_than_the_data_is_refused(photographs):
    with pytest.raises(ConfigError, match="data.batch_size=64 is more than the 18 training images"):
        folder(photographs, batch_size=64).train_dataloader()


def test_needle_batches_carry_boxes():
    data = NeedleDataModule(
        image_size=64, batch_size=4, train_images=8, val_images=6, num_classes=3
    )
    data.setup()
    batch = next(iter(data.val_dataloader()))
    assert isinstance(batch, RawBatch)
    assert batch.boxes.shape == (4, 4)
    assert data.on_after_batch_transfer(batch, 0).boxes is batch.boxes
    with pytest.raises(ConfigError, match="data=needle: .*num_classes"):
        NeedleDataModule(
            image_size=64, batch_size=4, train_images=8, val_images=6, num_classes=99
        ).setup()


def test_random_interpolation_is_for_training_only(photographs):
    kinds = ("random", "bicubic")
    random, bicubic = (
        FolderDataModule(
            root=str(photographs),
            image_size=32,
            batch_size=2,
            augment={"interpolation": kind},
        ).some_validation_samples(3)
        for kind in kinds
    )
    for one, other in zip(random, bicubic, strict=True):
        assert torch.equal(one.pixels, other.pixels)
