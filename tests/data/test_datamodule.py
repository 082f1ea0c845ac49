"""Batches: what is in them, in which order, and what happens to images that cannot be read."""

import multiprocessing
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision.transforms.functional import normalize as torchvision_normalize

from conftest import write_photographs
from lfvit.data import ImageDataModule, ImageFolder
from lfvit.data.augment import draw_token_mix
from lfvit.data.sampling import EvalSampler, TrainSampler
from lfvit.errors import ConfigError, DataError
from lfvit.models.tokens import downsample
from lfvit.utils import distributed
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
    data = ImageDataModule(ImageFolder, root=str(root), **settings)
    data.setup()
    return data


class Sink(LightningModule):
    """Collects what the DataModule hands to a model."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches = []

    def training_step(self, batch, batch_idx):
        self.batches.append(batch)
        return self.weight.sum()

    def predict_step(self, batch, batch_idx):
        return batch

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trainer(**settings):
    return Trainer(
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        use_distributed_sampler=False,
        limit_val_batches=0,
        **settings,
    )


def fit(data, epochs=1):
    sink = Sink()
    trainer(max_epochs=epochs).fit(sink, datamodule=data)
    return sink.batches


def evaluate(data):
    return trainer().predict(Sink(), datamodule=data)


def broken(tmp_path, count=2):
    root = write_photographs(tmp_path / "broken")
    files = sorted((root / "pear").iterdir())[:count]
    for file in files:
        file.write_bytes(file.read_bytes()[:30])
    return root, files


@pytest.fixture
def spawned():
    """As in a process that was spawned."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def test_loader_processes_start_in_the_platforms_way(photographs, spawned):
    data = folder(photographs, num_workers=1)
    data.setup()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        method = loader.multiprocessing_context.get_start_method()
        assert method == multiprocessing.get_all_start_methods()[0]


def test_awkward_photographs_become_batches(photographs):
    data = folder(photographs)
    assert data.classes == ["apple", "pear", "plum"]
    raw = next(iter(data.val_dataloader()))
    assert raw.images.shape == (6, 3, 32, 32)
    assert raw.images.dtype == torch.uint8
    batch = data.on_after_batch_transfer(raw, 0)
    expected = torchvision_normalize(raw.images / 255, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    torch.testing.assert_close(batch.images, expected)
    other = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    expected = torchvision_normalize(raw.images / 255, *other.values())
    images = folder(photographs, **other).on_after_batch_transfer(raw, 0).images
    torch.testing.assert_close(images, expected)
    torch.testing.assert_close(batch.coarse_images, downsample(batch.images))
    assert batch.boxes is None
    assert batch.indices.tolist() == list(range(6))
    assert batch.valid.all()
    assert data.image_names()[0].startswith("apple/0")


# --- order and randomness -----------------------------------------------------------------------


def test_training_repeats_and_follows_seed_and_epoch_not_workers(photographs):
    """Order, augmentation, erasing and mixing."""
    torch.manual_seed(1)
    first = fit(folder(photographs, augment=DEIT), epochs=2)
    torch.manual_seed(2)
    second = fit(folder(photographs, augment=DEIT, num_workers=2), epochs=2)
    assert len(first) == len(second) == 6
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.targets, b.targets)
    assert not torch.equal(first[0].images, first[3].images)
    other = fit(folder(photographs, augment=DEIT, seed=1))
    assert not torch.equal(first[0].images, other[0].images)


def test_training_targets_are_mixed_and_validation_targets_are_not(photographs):
    mixed = fit(folder(photographs, augment=DEIT))[0]
    assert mixed.targets.shape == (6, 3)
    torch.testing.assert_close(mixed.targets.sum(1), torch.ones(6))
    plain = fit(folder(photographs, augment={"label_smoothing": 0.3}))[0]
    assert {round(value, 3) for value in plain.targets.flatten().tolist()} == {0.1, 0.8}
    assert evaluate(folder(photographs, augment=DEIT))[0].targets.ndim == 1


def test_mix_token_draws_for_every_training_batch(photographs):
    settings = {"augment": {"mix_token": 1.0}}
    batches = fit(folder(photographs, **settings), epochs=2)
    draws = [batch.token_mix for batch in batches]
    assert draws == [batch.token_mix for batch in fit(folder(photographs, **settings), epochs=2)]
    assert len(set(draws)) == len(draws) == 6
    plain = fit(folder(photographs), epochs=2)
    assert [batch.token_mix for batch in plain] == [None] * 6
    for with_box, without in zip(batches, plain, strict=True):  # nothing else is drawn differently
        assert torch.equal(with_box.images, without.images)


def test_mixes_have_their_beta_distribution_and_a_centre_anywhere():
    with seeded(0):
        draws = torch.tensor([draw_token_mix(2.0) for _ in range(4000)])
    assert 0 <= draws.min() <= draws.max() < 1
    torch.testing.assert_close(draws.mean(0), torch.full((3,), 0.5), atol=0.02, rtol=0)
    variances = torch.tensor([1 / 20, 1 / 12, 1 / 12])  # of Beta(2, 2), and uniform
    torch.testing.assert_close(draws.var(0), variances, atol=0.005, rtol=0)


def test_repeated_augmentation_repeats_images_not_pixels():
    draws = list(TrainSampler(12, seed=0, repeats=3))
    images = [draw.image_index for draw in draws]
    assert len(draws) == 12
    assert images[0:3] == [images[0]] * 3
    assert len(set(images)) == 4
    assert len({draw.seed for draw in draws}) == 12


def test_ranks_share_an_epoch_without_overlap():
    whole = list(TrainSampler(11, seed=4))
    parts = [list(TrainSampler(11, seed=4, rank=r, world_size=2)) for r in range(2)]
    assert [len(part) for part in parts] == [5, 5]
    assert set(parts[0]) | set(parts[1]) == set(whole[:10])
    resumed = TrainSampler(11, seed=4, rank=1, world_size=2, done=lambda: 3)
    assert list(resumed) == parts[1][3:]


def test_ranks_evaluate_every_image_once_in_equally_many_batches():
    for size in (10, 2, 1):
        parts = [list(EvalSampler(size, rank=r, world_size=3)) for r in range(3)]
        assert {len(part) for part in parts} == {-(-size // 3)}
        indices = [draw.image_index for part in parts for draw in part]
        assert [index for index in indices if index >= 0] == list(range(size))


# --- unreadable images --------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_stop_the_run_by_path(tmp_path, workers):
    root, _ = broken(tmp_path)
    with pytest.raises(DataError, match=r"pear.*not readable.*data\.on_error=skip"):
        fit(folder(root, num_workers=workers, batch_size=16))


CORES = [  # there are, of a container's quota, processes, nodes -> worker processes
    (2, "max 100000", 1, 1, 2),
    (64, "350000 100000", 1, 1, 3),
    (64, "50000 100000", 1, 1, 1),
    (64, None, 16, 2, 8),
    (2, None, 8, 1, 1),
    (128, "max 100000", 1, 1, 16),
]


def test_workers_are_the_cores_that_there_are(photographs, tmp_path, monkeypatch):
    data = folder(photographs, num_workers="auto")
    for cores, quota, processes, nodes, expected in CORES:
        file = tmp_path / f"{cores} {quota}"
        if quota is not None:
            file.write_text(quota)
        monkeypatch.setattr(distributed, "CPU_QUOTA", file)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: range(n), raising=False)
        data.trainer = SimpleNamespace(world_size=processes, num_nodes=nodes)
        assert data.num_workers == expected
    assert folder(photographs, num_workers=0).num_workers == 0


def test_training_takes_a_neighbor_and_reports_at_the_end(tmp_path, caplog):
    root, files = broken(tmp_path)
    data = folder(root, num_workers=1, batch_size=16, on_error="skip", val_fraction=0.13)
    batches = fit(data, epochs=3)
    bad = [i for i, path in enumerate(data.train_images.paths) if path in files]
    assert 1 <= data.num_skipped <= len(bad)
    assert f"{data.num_skipped} unreadable images were skipped" in caplog.text
    assert "skipped (1 so far)" in caplog.text
    for batch in batches:
        assert len(batch.images) == 16
        assert not set(batch.indices.tolist()) & set(bad)


def test_evaluation_leaves_unreadable_images_out(tmp_path):
    root, files = broken(tmp_path)
    data = folder(root, on_error="skip", val_fraction=0.9, batch_size=4)
    bad = [i for i, path in enumerate(data.val_images.paths) if path in files]
    batches = evaluate(data)
    indices = torch.cat([batch.indices for batch in batches])
    valid = torch.cat([batch.valid for batch in batches])
    assert indices.tolist() == list(range(len(data.val_images)))
    assert indices[~valid].tolist() == bad
    assert data.num_skipped == len(bad) == 2
    assert len(data.some_validation_samples(100)) == len(indices) - 2


def test_a_set_without_a_readable_image_is_an_error(tmp_path):
    root = write_photographs(tmp_path / "dead", per_class=2)
    for file in root.rglob("*.*"):
        file.write_bytes(b"no image")
    data = folder(root, on_error="skip", batch_size=1)
    with pytest.raises(
        DataError, match="images in a row are unreadable, the first: .*not readable"
    ):
        fit(data)
    with pytest.raises(DataError, match="none of the validation images"):
        data.some_validation_samples(3)


# --- datasets -----------------------------------------------------------------------------------


class Squares:
    """The smallest dataset: PIL images of one color."""

    classes = ("dark", "bright")

    def __init__(self, split, side=40):
        self.split, self.side = split, side

    def __len__(self):
        return 8 if self.split == "train" else 4

    def __getitem__(self, index):
        if index == 99:
            raise KeyError(index)
        return Image.new("L", (self.side, 30), 255 * (index % 2)), index % 2


def test_a_dataset_of_somebody_else():
    data = ImageDataModule(Squares, image_size=16, batch_size=4, side=50)
    data.setup()
    assert data.classes == ["dark", "bright"]
    assert data.train_images.side == 50
    assert fit(data)[0].images.shape == (4, 3, 16, 16)
    assert evaluate(data)[0].targets.tolist() == [0, 1, 0, 1]
    assert data.image_names()[1] == "image 1"
    with pytest.raises(KeyError) as error:
        data.val_dataset()[99]
    assert error.value.__notes__ == ["while loading image 99"]
    data = ImageDataModule(Squares, image_size=16, batch_size=4, root="photographs")
    with pytest.raises(ConfigError, match="data.root: Squares has no such argument; valid: side"):
        data.setup()
    data = ImageDataModule(Squares, image_size=16, batch_size=4, sdie=50, num_classes=2)
    with pytest.raises(ConfigError, match="data.sdie: Squares has no .* did you mean side"):
        data.setup()


class ByFlag(Squares):
    """As torchvision's CIFAR10, and with arrays."""

    def __init__(self, root, train=True):
        super().__init__("train" if train else "val")

    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        return np.asarray(image.convert("RGB").resize((16, 16 if index else 17))), target


def test_a_dataset_with_a_flag_for_training_and_arrays():
    data = ImageDataModule(ByFlag, image_size=16, batch_size=2, root="x")
    data.setup()
    assert (len(data.train_images), len(data.val_images)) == (8, 4)
    assert data.val_dataset()[1].pixels.float().mean() == 255
    with pytest.raises(ValueError, match=r"array of uint8 \(17, 16, 3\), not uint8 \(16, 16, 3\)"):
        data.val_dataset()[0]


class NoSplit(Squares):
    def __init__(self, root): ...


class Other(Squares):
    def __init__(self, split):
        super().__init__(split)
        self.classes = ["dark", "light"] if split == "val" else Squares.classes


@pytest.mark.parametrize(
    ("dataset", "settings", "error"),
    [
        (NoSplit, {"root": "x"}, "NoSplit takes neither split nor train"),
        (ByFlag, {}, "ByFlag: missing a required argument: 'root'"),
        (Other, {}, "class 1 is 'bright' in train but 'light' in val"),
    ],
)
def test_datasets_that_cannot_work_are_told_why(dataset, settings, error):
    with pytest.raises((ConfigError, DataError), match=error):
        ImageDataModule(dataset, image_size=16, batch_size=2, **settings).setup()


def test_a_batch_larger_than_the_data_is_refused(photographs):
    with pytest.raises(ConfigError, match="data.batch_size=64 is more than the 18 training images"):
        folder(photographs, batch_size=64).train_dataloader()
