"""Checkpoints, other weights and their data: what is opened, and what is refused."""

import shutil

import pytest
import torch

import lfvit
from conftest import TINY
from lfvit.data import ImageDataModule, ImageFolder
from lfvit.errors import CheckpointError, ConfigError, DataError
from lfvit.models.checkpoints import RECORD
from lfvit.runs.datasets import check_split, make_data, open_data
from lfvit.runs.models import load_trained
from lfvit.runs.record import CheckpointRecord
from lfvit.utils.validation import plain

DESCRIBED = {"method": {"name": "lf_vit"}, "backbone": TINY, "image_size": 112}


def test_other_weights_need_a_description(photographs, tmp_path, composed):
    weights = tmp_path / "plain.pth"
    model = lfvit.create_model("lf_vit", backbone=TINY, image_size=112, num_classes=3)
    torch.save(model.state_dict(), weights)
    with pytest.raises(CheckpointError, match="does not say what model .* pass method="):
        load_trained(weights)
    loaded, record = load_trained(weights, DESCRIBED)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    with pytest.raises(ConfigError, match="names no data; pass data=imagefolder"):
        open_data(None, record)
    folder = ("data=imagefolder", f"data.root={photographs}", "data.num_workers=0")
    assert len(open_data(composed("evaluate", "ckpt_path=x", *folder).data, record).classes) == 3


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["data=imagefolder"], DataError, "3 classes are not the 6 .* differ in apple"),
        ([], ConfigError, "on NeedleSet, which .*data=imagefolder"),
    ],
)
def test_other_data_than_the_checkpoint_s(
    trained_run, photographs, composed, overrides, error, message
):
    _, record = load_trained(trained_run / "checkpoints" / "last.ckpt")
    cfg = composed("evaluate", "ckpt_path=x", *overrides, f"data.root={photographs}")
    with pytest.raises(error, match=message):
        open_data(cfg.data, record)


def trained_on(folder, **settings):
    """The record of a training on a folder of photographs without a split."""
    data = {"dataset": {"_target_": "lfvit.data.ImageFolder", "_partial_": True}}
    data |= {"root": str(folder), "train_split": "train", "val_split": "val", **settings}
    classes = ["apple", "pear", "plum"]
    values = {**DESCRIBED, "image_size": 64, "data": data, "classes": classes}
    return CheckpointRecord(**values, layout={"train_images": 18, "batch_size": 4})


@pytest.fixture(scope="module")
def elsewhere(photographs, tmp_path_factory):
    return shutil.copytree(photographs, tmp_path_factory.mktemp("copy") / "photos")


SPLIT = {"val_fraction": 0.25, "split_seed": 3}


@pytest.mark.parametrize(
    ("settings", "overrides", "images", "unseen"),
    [
        (SPLIT, [], 6, True),
        (SPLIT, ["data=imagefolder", "data.root=HERE"], 6, True),
        (SPLIT, ["data=clutter", "data.root=HERE"], 6, True),
        (SPLIT, ["data=imagefolder", "data.root=THERE"], 24, False),
        (SPLIT, ["data.root=THERE"], 24, False),
        (SPLIT, ["data.root=THERE", "data.val_fraction=0.5"], 12, False),
        ({**SPLIT, "root": None}, ["data.root=HERE"], 6, True),  # a model of the zoo
        ({"val_fraction": 0.5, "root": None}, ["data.root=THERE"], 24, False),
        ({"val_fraction": 0.25, "seed": 3}, [], 6, True),  # before there was a split_seed
    ],
)
def test_which_images_of_a_folder_are_evaluated(
    photographs, elsewhere, composed, settings, overrides, images, unseen
):
    """Those that training held out; all of a folder that it was not trained on."""
    places = {"HERE": str(photographs), "THERE": str(elsewhere)}
    for name, folder in places.items():
        overrides = [override.replace(f"root={name}", f"root={folder}") for override in overrides]
    chosen = composed("evaluate", "ckpt_path=x", "seed=9", *overrides).get("data")
    data = open_data(chosen, trained_on(**{"folder": photographs, **settings}))
    assert (len(data.val_images), data.trained_on) == (images, unseen)
    assert data.val_images.num_total == 24
    if unseen:
        held_out = ImageFolder("val", root=str(photographs), val_fraction=0.25, split_seed=3)
        assert data.val_images.paths == held_out.paths


@pytest.mark.parametrize("setting", ["val_fraction=1", "split_seed=4"])
def test_no_other_images_of_the_folder_are_chosen(photographs, composed, setting):
    chosen = composed("evaluate", "ckpt_path=x", f"++data.{setting}").data
    with pytest.raises(ConfigError, match=f"data.{setting}: .* held out; leave it out"):
        open_data(chosen, trained_on(photographs, **SPLIT))


def test_a_folder_that_has_changed_since_training(elsewhere, caplog):
    next(elsewhere.rglob("*.jpg")).unlink()
    data = open_data(None, trained_on(elsewhere, **SPLIT))
    assert not data.trained_on
    assert "training took 18 images, but of those in the folder it would now take 17" in caplog.text


@pytest.mark.parametrize("seed", [0, 5])
def test_the_seed_of_training_leaves_the_held_out_images_alone(photographs, composed, seed):
    folder = ("data=imagefolder", f"data.root={photographs}", f"seed={seed}")
    data = make_data(plain(composed("train", *folder).data))
    data.setup()
    assert data.val_images.paths == ImageFolder("val", root=str(photographs)).paths


def test_weights_without_names_of_classes_say_which_order_is_taken(photographs, composed, caplog):
    record = CheckpointRecord(**DESCRIBED, classes=["0", "1", "2"])
    folder = ("data=imagefolder", f"data.root={photographs}")
    open_data(composed("evaluate", "ckpt_path=x", *folder).data, record)
    assert "taken to be in this order: apple, pear, plum" in caplog.text


@pytest.mark.parametrize(("ours", "fits"), [(SPLIT, True), ({"val_fraction": 0.25}, False)])
def test_a_training_does_not_validate_on_what_its_ancestor_learned(
    photographs, tmp_path, ours, fits
):
    path = tmp_path / "ancestor.ckpt"
    torch.save({RECORD: trained_on(photographs, **SPLIT).model_dump(), "state_dict": {}}, path)
    data = ImageDataModule(ImageFolder, root=str(photographs), image_size=32, batch_size=4, **ours)
    data.setup()
    if fits:
        check_split(path, data)
    else:
        with pytest.raises(ConfigError, match=r"pass data.val_fraction=0.25 data.split_seed=3"):
            check_split(path, data)
