"""Label maps follow the crop and the flip, and wrong files are named before training starts."""

import pytest
import torch
from PIL import Image

from lfvit.data import FolderDataModule
from lfvit.data.augment import Augment
from lfvit.data.label_maps import FollowedTransform, LabelMap, LabelMapFolder, LabelMaps
from lfvit.errors import ConfigError, DataError
from lfvit.utils.seeding import seeded


def position_map(H=8, W=8):
    """Scores that say where they are: class 0 grows to the right, class 1 downwards."""
    x = ((torch.arange(W) + 0.5) / W).expand(H, W)
    y = ((torch.arange(H) + 0.5) / H)[:, None].expand(H, W)
    classes = torch.stack([torch.zeros(H, W), torch.ones(H, W)])
    return torch.stack([torch.stack([x, y]), classes])


def scores(maps, grid, classes=3):
    """The scores behind the probabilities: class 2 is nowhere among the best, so it scores 0."""
    log = maps.patches(grid, classes).log()
    return (log - log[..., 2:]).unflatten(1, (grid, grid))


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("place", [(0.25, 0.25, 0.75, 0.75), (0.1, 0.3, 0.6, 0.9)])
def test_a_patch_reads_the_map_where_it_lies_in_the_image(place, flipped):
    maps = LabelMaps.of([LabelMap(position_map(), place, flipped)])
    found, grid = scores(maps, 4), 4
    left, top, right, bottom = place
    for i in range(grid):
        for j in range(grid):
            column = grid - 1 - j if flipped else j
            x = left + (right - left) * (column + 0.5) / grid
            y = top + (bottom - top) * (i + 0.5) / grid
            torch.testing.assert_close(found[0, i, j], torch.tensor([x, y, 0]), atol=1e-5, rtol=0)


def test_the_whole_map_is_itself():
    map_ = torch.stack([torch.randn(1, 5, 5), torch.zeros(1, 5, 5)])
    found = scores(LabelMaps.of([LabelMap(map_, (0.0, 0.0, 1.0, 1.0), False)]), 5)
    torch.testing.assert_close(found[0, :, :, 0], map_[0, 0], atol=1e-5, rtol=1e-5)


def test_probabilities_are_a_softmax_over_all_classes():
    top = torch.tensor([[[[3.0]], [[1.0]]], [[[4.0]], [[2.0]]]])  # 3 for class 4, 1 for class 2
    found = LabelMaps.of([LabelMap(top, (0.0, 0.0, 1.0, 1.0), False)]).patches(2, 6)
    expected = torch.tensor([0.0, 0, 1, 0, 3, 0]).softmax(0)
    torch.testing.assert_close(found, expected.expand(1, 4, 6))


@pytest.mark.parametrize(
    "augment",
    [
        {"hflip": 0.5, "crop_scale": (0.1, 1.0)},
        {"hflip": 0.5, "interpolation": "random", "auto_augment": "rand-m9-mstd0.5-inc1"},
        {"hflip": 0.0, "color_jitter": 0.3},
    ],
)
def test_following_changes_no_pixel(augment):
    image = Image.effect_noise((90, 60), 80).convert("RGB")
    transform = Augment.of(augment).train_transform(32)
    followed = FollowedTransform(transform)
    flips = set()
    for seed in range(12):
        with seeded(seed):
            expected = transform(image)
        with seeded(seed):
            pixels, _, flipped = followed(image)
        assert torch.equal(pixels, expected)
        flips.add(flipped)
    assert flips == ({False, True} if augment["hflip"] else {False})


def test_labels_and_pixels_show_the_same_place():
    """The image and its map are the same two ramps; after any crop and flip they still agree."""
    ramp = torch.arange(256).expand(256, 256)
    pixels = torch.stack([ramp, ramp.T, torch.zeros(256, 256)], dim=-1).byte().numpy()
    followed = FollowedTransform(
        Augment.of({"crop_scale": (0.1, 0.6), "interpolation": "bilinear"}).train_transform(64)
    )
    for seed in range(10):
        with seeded(seed):
            shown, place, flipped = followed(Image.fromarray(pixels))
        found = scores(LabelMaps.of([LabelMap(position_map(16, 16), place, flipped)]), 4)[0]
        expected = shown[:2].float().unflatten(2, (4, 16)).unflatten(1, (4, 16)).mean((2, 4)) / 256
        inner = found[1:3, 1:3, :2].permute(2, 0, 1)  # a map ends half a cell before the image
        torch.testing.assert_close(inner, expected[:, 1:3, 1:3], atol=0.02, rtol=0)


# --- files --------------------------------------------------------------------------------------


def write_maps(root, photographs, classes=3):
    for path in photographs.rglob("*.*"):
        target = root / path.relative_to(photographs).with_suffix(".pt")
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.save(position_map(4, 4).half(), target)
    return root


def data(photographs, maps, **settings):
    return FolderDataModule(
        root=str(photographs),
        label_maps=str(maps),
        **{"image_size": 32, "batch_size": 4, "val_fraction": 0.25, **settings},
    )


def test_batches_carry_the_maps_of_their_images(photographs, tmp_path):
    module = data(photographs, write_maps(tmp_path / "maps", photographs), num_workers=1)
    module.setup("fit")
    raw = next(iter(module.train_dataloader()))
    assert raw.label_maps.top.shape == (4, 2, 2, 4, 4)
    assert raw.label_maps.place.shape == (4, 4)
    batch = module.on_after_batch_transfer(raw, 0)
    found = batch.label_maps.patches(2, 3)
    torch.testing.assert_close(found.sum(2), torch.ones(4, 4))
    assert next(iter(module.val_dataloader())).label_maps is None


def test_evaluation_needs_no_maps(photographs):
    module = data(photographs, "/no/such/folder")
    module.setup("validate")
    next(iter(module.val_dataloader()))
    with pytest.raises(DataError, match="data.label_maps=/no/such/folder: no such folder"):
        module.setup("fit")


def test_maps_are_not_turned(photographs, tmp_path):
    module = data(photographs, write_maps(tmp_path / "maps", photographs), exif=True)
    module.setup("validate")
    with pytest.raises(ConfigError, match=r"data\.exif=true would turn .* data\.exif=false"):
        module.setup("fit")


def test_a_missing_map_is_found_before_training(photographs, tmp_path):
    maps = write_maps(tmp_path / "maps", photographs)
    gone = data(photographs, maps)
    gone.setup()
    path = maps / gone.train_images.paths[5].relative_to(photographs).with_suffix(".pt")
    path.unlink()
    message = rf"1 of 18 training images have no map; the first one missing is {path}"
    with pytest.raises(DataError, match=message):
        gone.setup("fit")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"garbage", "not readable as a label map"),
        (torch.zeros(3, 4, 4), "not a label map .3x4x4.; expected a tensor of 2 x k x H x W"),
        ({"a": 1}, "not a label map .dict."),
        (torch.full((2, 2, 4, 4), float("nan")), "values that are not finite"),
        (torch.full((2, 2, 4, 4), 3.0), "names classes 3 to 3, but the data has 3"),
        (torch.full((2, 2, 4, 4), 0.5), "class indices that are not whole"),
        (torch.zeros(2, 2, 5, 5), "a label map of 2x2x5x5, not 2x2x4x4"),
    ],
)
def test_garbled_maps_name_the_file(photographs, tmp_path, content, message):
    maps = write_maps(tmp_path / "maps", photographs)
    paths = sorted(photographs.rglob("*.*"))
    folder = LabelMapFolder.open(maps, paths, photographs, 3)
    if isinstance(content, bytes):
        folder.paths[2].write_bytes(content)
    else:
        torch.save(content, folder.paths[2])
    with pytest.raises(DataError, match=f"{folder.paths[2]}: .*{message}"):
        folder.read(2)
    if "5x5" not in message:  # the first map, which sets the size, is read at once
        with pytest.raises(DataError, match=message):
            LabelMapFolder.open(maps, paths[2:], photographs, 3)


def test_nothing_in_a_map_is_executed(photographs, tmp_path, monkeypatch):
    class Bomb:
        def __reduce__(self):
            return (exec, ("import pathlib; pathlib.Path('exploded').touch()",))

    monkeypatch.chdir(tmp_path)
    maps = write_maps(tmp_path / "maps", photographs)
    folder = LabelMapFolder.open(maps, sorted(photographs.rglob("*.*")), photographs, 3)
    torch.save(Bomb(), folder.paths[0])
    with pytest.raises(DataError, match="not readable as a label map"):
        folder.read(0)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_maps_and_mixed_images_do_not_go_together(photographs, name):
    with pytest.raises(
        ConfigError, match=rf"augment.{name}=0.8.*augment.{name}=0, and augment.mix"
    ):
        data(photographs, "maps", augment={name: 0.8})


def test_garbled_maps_stop_the_run_or_are_skipped(photographs, tmp_path):
    maps = write_maps(tmp_path / "maps", photographs)
    for on_error in ("raise", "skip"):
        module = data(photographs, maps, on_error=on_error, batch_size=18)
        module.setup("fit")
        module._open_maps().paths[7].write_bytes(b"garbage")
        raw = next(iter(module.train_dataloader()))
        if on_error == "raise":
            with pytest.raises(
                DataError, match=r"not readable as a label map.*data\.on_error=skip"
            ):
                module.on_before_batch_transfer(raw, 0)
        else:
            assert len(module.on_before_batch_transfer(raw, 0).images) == 17
