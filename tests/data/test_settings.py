"""A wrong setting is answered with its name, its value and what would be valid."""

import pytest
from omegaconf import OmegaConf

from lfvit.data.settings import check_data
from lfvit.errors import ConfigError

WRONG = [
    ({"on_error": "ignore"}, "data.on_error='ignore' is unknown; valid: 'raise' or 'skip'"),
    ({"batch_size": 0}, "data.batch_size=0 is not valid"),
    ({"num_workers": "all"}, "data.num_workers='all' is not valid: auto, or a number of processes"),
    ({"num_workers": -1}, "data.num_workers=-1 is not valid: auto, or a number of processes"),
    ({"cache": "disk"}, "data.cache='disk' is unknown; valid: 'device'"),
    ({"augment": {"mixpu": 1}}, "augment.mixpu is no setting; did you mean mixup"),
    ({"augment": {"hflip": 2}}, "augment.hflip=2 is not valid"),
    ({"augment": {"interpolation": "cubic"}}, "augment.interpolation='cubic' is unknown"),
    ({"augment": {"mixup": 1.0}, "batch_size": 5}, r"augment\.mixup .*batch_size=5 must be even"),
    (
        {"cache": "device", "augment": {"color_jitter": 0.3}},
        r"cache=device .* set augment.color_jitter=0, or",
    ),
    ({"cache": "device", "augment": {"auto_augment": "rand-m9"}}, "augment.auto_augment=null"),
    (
        {"cache": "device", "augment": {"interpolation": "random"}},
        "set augment.interpolation=bicubic",
    ),
    ({"label_maps": "x", "augment": {"cutmix": 0.8}}, r"augment\.cutmix=0\.8 .*mix_token=1"),
    ({"label_maps": "x", "exif": True}, r"data\.exif=True .* set data\.exif=false"),
    ({"label_maps": "x", "cache": "device"}, r"data\.cache=device .* set data\.cache=null"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG)
def test_settings_of_the_data_module(settings, message):
    with pytest.raises(ConfigError, match=message):
        check_data({"dataset": {"_target_": "x"}, "image_size": 32, "batch_size": 4, **settings})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=imagefolder"], "data.root=None is not valid: pass data.root=DIR"),
        (["data=imagefolder", "data.root=x", "data.val_fraction=0"], "data.val_fraction=0 is not"),
        (["data=huggingface"], "data.path=None is not valid: pass data.path=NAME"),
        (["data.num_classes=9"], "data.num_classes=9 is not valid"),
        (["data.train_images=0"], "data.train_images=0 is not valid"),
        (["data.root=x"], "for a folder of photographs pass data=imagefolder data.root=x"),
        (["seed=-1"], "data.seed=-1 is not valid"),
        (["+data.dataset.trian_images=3"], "data.trian_images is no setting; did you mean train"),
        (["image_size=32"], "data.image_size=32 is not valid"),
    ],
)
def test_settings_of_the_datasets(composed, overrides, message):
    group = OmegaConf.to_container(composed("train", *overrides).data, resolve=True)
    with pytest.raises(ConfigError, match=message):
        check_data(group)


def test_every_option_is_valid_as_it_is(composed):
    for option in ("needle", "imagenet", "shards data.root=x"):
        group = composed("train", *f"data={option}".split()).data
        check_data(OmegaConf.to_container(group, resolve=True))
