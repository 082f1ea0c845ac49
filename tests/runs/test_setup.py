"""Checkpoints, other weights and their data: what is opened, and what is refused."""

import pytest
import torch

import lfvit
from conftest import TINY
from lfvit.errors import CheckpointError, ConfigError, DataError
from lfvit.runs.setup import load_trained, open_data

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


def test_nothing_named_in_a_checkpoint_is_called(trained_run, tmp_path):
    _, record = load_trained(trained_run / "checkpoints" / "last.ckpt")
    copy = {"_target_": "shutil.copy", "src": "/etc/hostname", "dst": str(tmp_path / "stolen")}
    record = record.model_copy(update={"data": {**record.data, **copy, "dataset": copy}})
    with pytest.raises(ConfigError, match=r"shutil\.copy' is named by a file"):
        open_data(None, record)
    assert not (tmp_path / "stolen").exists()
