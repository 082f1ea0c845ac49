"""Label maps follow the crop and the flip, and wrong files are named before training starts."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_datamodule import fit
from timm.data import create_transform
from timm.data.auto_augment import NAME_TO_OP

from lfvit.data import ImageDataModule, ImageFolder
from lfvit.data.augment import GEOMETRIC, Moves, TrainTransform
from lfvit.data.label_maps import LabelMapFolder, LabelMaps
from lfvit.data.settings import AugmentSettings
from lfvit.errors import DataError
from lfvit.utils.seeding import seeded

WHOLE = (0.0, 0.0, 1.0, 1.0)


def position_map(H=8, W=8):
    """Scores that say where they are: class 0 grows to the right, class 1 downwards."""
    x = ((torch.arange(W) + 0.5) / W).expand(H, W)
    y = ((torch.arange(H) + 0.5) / H)[:, None].expand(H, W)
    classes = torch.stack([torch.zeros(H, W), torch.ones(H, W)])
    return torch.stack([torch.stack([x, y]), classes])


def one(top, crop=WHOLE, flipped=False):
    return LabelMaps(top[None], torch.tensor([crop]), torch.tensor([flipped]))


def scores(maps, grid, classes=3):
    """The scores behind the probabilities: class 2 is nowhere among the best, so it scores 0."""
    log = maps.patches(grid, classes).log()
    return (log - log[..., 2:]).unflatten(1, (grid, grid))


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("crop", [(0.25, 0.25, 0.75, 0.75), (0.1, 0.3, 0.6, 0.9)])
def test_a_patch_reads_the_map_where_it_lies_in_the_image(crop, flipped):
    grid = 4
    values = scores(one(position_map(), crop, flipped), grid)
    left, top, right, bottom = crop
    for i in range(grid):
        for j in range(grid):
            column = grid - 1 - j if flipped else j
            x = left + (right - left) * (column + 0.5) / grid
            y = top + (bottom - top) * (i + 0.5) / grid
            torch.testing.assert_close(values[0, i, j], torch.tensor([x, y, 0]), atol=1e-5, rtol=0)


def test_probabilities_are_a_softmax_over_all_classes():
    top = torch.tensor([[[[3.0]], [[1.0]]], [[[4.0]], [[2.0]]]])  # 3 for class 4, 1 for class 2
    expected = torch.tensor([0.0, 0, 1, 0, 3, 0]).softmax(0)
    torch.testing.assert_close(one(top).patches(2, 6), expected.expand(1, 4, 6))


@pytest.mark.parametrize(
    "augment",
    [
        {"hflip": 0.5, "crop_scale": (0.1, 1.0)},
        {"hflip": 0.5, "interpolation": "random", "auto_augment": "rand-m9-mstd0.5-inc1"},
        {"hflip": 0.0, "color_jitter": 0.3},
    ],
)
def test_pixels_are_those_of_timms_transform(augment):
    image = Image.effect_noise((90, 60), 80).convert("RGB")
    settings = AugmentSettings(**augment)
    transform = TrainTransform(settings, 32)
    names = {"crop_scale": "scale", "hflip": "hflip", "auto_augment": "auto_augment"}
    options = {names[key]: value for key, value in augment.items() if key in names}
    reference = create_transform(
        32,
        is_training=True,
        color_jitter=augment.get("color_jitter"),
        interpolation=augment.get("interpolation", "bicubic"),
        use_prefetcher=True,
        **options,
    )
    flips = set()
    for seed in range(8):
        with seeded(seed):
            expected = torch.as_tensor(reference(image))
        with seeded(seed):
            pixels, crop, flipped = transform(image)
        with seeded(seed):
            assert transform.draw(image.size)[0] == crop
        assert torch.equal(pixels, expected)
        flips.add(flipped)
    assert flips == ({False, True} if augment["hflip"] else {False})


def test_labels_and_pixels_show_the_same_part():
    """The image and its map are the same two ramps; after any crop and flip they still agree."""
    ramp = torch.arange(256).expand(256, 256)
    image = torch.stack([ramp, ramp.T, torch.zeros(256, 256)], dim=-1).byte().numpy()
    augment = AugmentSettings(crop_scale=(0.1, 0.6), interpolation="bilinear")
    transform = TrainTransform(augment, 64)
    for seed in range(10):
        with seeded(seed):
            pixels, crop, flipped = transform(Image.fromarray(image))
        values = scores(one(position_map(16, 16), crop, flipped), 4)[0]
        expected = pixels[:2].float().unflatten(2, (4, 16)).unflatten(1, (4, 16)).mean((2, 4)) / 256
        inner = values[1:3, 1:3, :2].permute(2, 0, 1)  # a map ends half a cell before the image
        torch.testing.assert_close(inner, expected[:, 1:3, 1:3], atol=0.02, rtol=0)


def corners(seed):
    """A photograph's stand-in: four colours, one per quarter, and its map of four classes."""
    quarters = torch.tensor([[[250, 5, 5], [5, 250, 5]], [[5, 5, 250], [250, 250, 5]]])
    height, width = ((120, 200), (200, 120), (160, 160))[seed % 3]
    image = quarters.repeat_interleave(height // 2, 0).repeat_interleave(width // 2, 1)
    classes = torch.tensor([[0.0, 1], [2, 3]]).repeat_interleave(9, 0).repeat_interleave(9, 1)
    top = torch.stack([torch.full((1, 18, 18), 9.0), classes[None]])
    return Image.fromarray(image.byte().numpy()), top, quarters.reshape(4, 3).float()


def test_the_map_follows_rand_augment():
    """Every patch of one colour has the label of that colour, after any moves and crop."""
    moving = "rand-m9-mstd0.5-inc1-n4"
    transform = TrainTransform(AugmentSettings(auto_augment=moving, crop_scale=(0.3, 1.0)), 112)
    transform.rest.transforms[0].ops = [
        op for op in transform.rest.transforms[0].ops if op.name in GEOMETRIC
    ]
    right = moved = total = 0
    for seed in range(30):
        image, top, colors = corners(seed)
        with seeded(seed):
            pixels, crop, warp = transform.whole_first(image)
        maps = LabelMaps(top[None], torch.tensor([crop]), torch.tensor([False]), warp[None])
        in_place = maps._replace(warps=None)
        patches = pixels.float().unflatten(2, (7, 16)).unflatten(1, (7, 16))
        near = (patches.movedim(0, -1)[..., None, :] - colors).square().sum(-1)
        plain = (near.amin(-1) < 3000).all(3).all(1)  # no grey that came in from outside
        found = near.argmin(-1)
        plain &= (found == found[:, :1, :, :1]).all(3).all(1)
        target = found[:, 0, :, 0][plain]
        labels = [
            m.patches(7, 4)[0].argmax(1).unflatten(0, (7, 7))[plain] for m in (maps, in_place)
        ]
        total += len(target)
        right += (labels[0] == target).sum().item()
        moved += (labels[1] != target).sum().item()
    assert total > 500
    assert right / total > 0.995
    assert moved / total > 0.1  # what would be wrong without following


@pytest.mark.parametrize("name", GEOMETRIC)
def test_matrices_are_those_of_timms_operations(name):
    """A white dot moves to where its matrix says."""
    for x, y, amount in ((60, 40, 0.2), (90, 60, -0.25), (110, 30, 0.25)):
        image = Image.new("RGB", (160, 100))
        image.paste((255, 255, 255), (x - 2, y - 2, x + 3, y + 3))
        moves = Moves(image.size)
        amount = 100 * amount if name == "Rotate" else amount
        NAME_TO_OP[name](moves, amount, resample=Image.BILINEAR)
        moved = NAME_TO_OP[name](image, amount, resample=Image.BILINEAR, fillcolor=(0, 0, 0))
        weights = torch.from_numpy(np.array(moved)[..., 0]).double()
        row = (weights.sum(1) * (torch.arange(100) + 0.5)).sum() / weights.sum()
        column = (weights.sum(0) * (torch.arange(160) + 0.5)).sum() / weights.sum()
        source = moves.matrix @ [column.item(), row.item(), 1]
        assert source == pytest.approx([x + 0.5, y + 0.5, 1], abs=0.3)
        point = torch.tensor([column / 80 - 1, row / 50 - 1, 1]).float()
        expected = torch.tensor([(x + 0.5) / 80 - 1, (y + 0.5) / 50 - 1])
        torch.testing.assert_close(moves.normalized() @ point, expected, atol=0.01, rtol=0)


# --- files --------------------------------------------------------------------------------------


@pytest.fixture
def maps(tmp_path, photographs):
    """A map for every photograph."""
    root = tmp_path / "maps"
    for path in photographs.rglob("*.*"):
        target = root / path.relative_to(photographs).with_suffix(".pt")
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.save(position_map(4, 4).half(), target)
    return root


def data(photographs, maps, **settings):
    settings = {"image_size": 32, "batch_size": 4, "val_fraction": 0.25, **settings}
    module = ImageDataModule(ImageFolder, root=str(photographs), label_maps=str(maps), **settings)
    module.setup()
    return module


def test_batches_carry_the_maps_of_their_images(photographs, maps):
    module = data(photographs, maps, num_workers=1)
    raw = next(iter(module.train_dataloader()))
    assert raw.label_maps.top.shape == (4, 2, 2, 4, 4)
    assert raw.label_maps.crops.shape == (4, 4)
    patches = module.on_after_batch_transfer(raw, 0).label_maps.patches(2, 3)
    torch.testing.assert_close(patches.sum(2), torch.ones(4, 4))
    assert next(iter(module.val_dataloader())).label_maps is None


def test_a_missing_map_is_named_before_training(photographs, maps):
    module = data(photographs, "/no/such/folder")
    next(iter(module.val_dataloader()))  # evaluation needs no maps
    with pytest.raises(DataError, match="data.label_maps=/no/such/folder: no such folder"):
        module.train_dataloader()
    module = data(photographs, maps)
    path = maps / module.train_images.paths[5].relative_to(photographs).with_suffix(".pt")
    path.unlink()
    message = rf"1 of 18 training images have no map; the first one missing is {path}"
    with pytest.raises(DataError, match=message):
        module.train_dataloader()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"garbage", "not readable as a label map"),
        (
            torch.zeros(3, 4, 4),
            r"not a label map \(\(3, 4, 4\)\); expected a tensor \(2, k, H, W\)",
        ),
        ({"a": 1}, "not a label map .dict."),
        (torch.full((2, 2, 4, 4), float("nan")), "values that are not finite"),
        (torch.full((2, 2, 4, 4), 3.0), "of classes 3 to 3, but the data has 3"),
        (torch.full((2, 2, 4, 4), 0.5), "class indices that are not whole"),
        (torch.zeros(2, 2, 5, 5), r"of shape \(2, 2, 5, 5\), not \(2, 2, 4, 4\)"),
    ],
)
def test_garbled_maps_name_the_file(photographs, maps, content, message):
    images = ImageFolder(root=str(photographs))
    folder = LabelMapFolder(maps, images, 3)
    if isinstance(content, bytes):
        folder.paths[2].write_bytes(content)
    else:
        torch.save(content, folder.paths[2])
    with pytest.raises(DataError, match=f"{folder.paths[2]}: .*{message}"):
        folder.read(2)
    if "shape" not in message:  # the first map, which sets the size, is read at once
        images.paths = images.paths[2:]
        with pytest.raises(DataError, match=message):
            LabelMapFolder(maps, images, 3)


def test_nothing_in_a_map_is_executed(photographs, maps, tmp_path, monkeypatch):
    class Bomb:
        def __reduce__(self):
            return (exec, ("import pathlib; pathlib.Path('exploded').touch()",))

    monkeypatch.chdir(tmp_path)
    folder = LabelMapFolder(maps, ImageFolder(root=str(photographs)), 3)
    torch.save(Bomb(), folder.paths[0])
    with pytest.raises(DataError, match="not readable as a label map"):
        folder.read(0)
    assert not (tmp_path / "exploded").exists()


def test_garbled_maps_stop_the_run_or_their_neighbor_is_taken(photographs, maps):
    module = data(photographs, maps, batch_size=18)
    bad = maps / module.train_images.paths[7].relative_to(photographs).with_suffix(".pt")
    bad.write_bytes(b"garbage")
    with pytest.raises(DataError, match=r"not readable as a label map.*data\.on_error=skip"):
        fit(module)
    (batch,) = fit(data(photographs, maps, batch_size=18, on_error="skip"))
    assert len(batch.images) == 18
    assert 7 not in batch.indices
