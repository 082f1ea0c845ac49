"""From which weights a training started."""

from pathlib import Path

import pytest

from lfvit.results.origins import origin, start_of

FILES = {
    "runs/half/config.yaml": {"method": {"name": "vit"}, "image_size": 80},
    "runs/half/metrics.json": {"epochs": 40, "train_seconds": 1210.0},
    "runs/vit/config.yaml": {
        "method": {"name": "vit"},
        "image_size": 160,
        "init_from": "runs/half/checkpoints/last.ckpt",
    },
    "runs/vit/metrics.json": {"epochs": 8, "train_seconds": 600.0},
    "runs/circle/config.yaml": {
        "method": {"name": "vit"},
        "image_size": 160,
        "init_from": "runs/circle/checkpoints/last.ckpt",
    },
    "runs/circle/metrics.json": {"epochs": 1, "train_seconds": 60.0},
    "runs/begun/config.yaml": {"method": {"name": "vit"}, "image_size": 80},
}


def load(path: Path):
    return FILES.get(path.as_posix(), {})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "random weights"),
        ({"init_from": None, "pretrained": False}, "random weights"),
        ({"pretrained": True}, "timm's pretrained weights"),
        ({"init_from": "zoo:lf_vit"}, "the weights zoo:lf_vit"),
        ({"init_from": "elsewhere/deit.pth"}, "the weights deit.pth"),
        ({"init_from": "runs/begun/checkpoints/last.ckpt"}, "the weights last.ckpt"),
        (
            {"init_from": "runs/vit/checkpoints/last.ckpt"},
            "random weights, after 40 epochs of vit on 80 x 80 pixels (20 minutes), after 8 epochs "
            "of vit on 160 x 160 pixels (10 minutes)",
        ),
    ],
)
def test_words(config, words):
    assert start_of(config, Path(), load) == words


def test_a_circle_ends():
    words = start_of(
        {"init_from": "runs/circle/checkpoints/last.ckpt"}, Path("runs/circle"), load, most=3
    )
    assert words.count("after 1 epoch of") == 3


def test_a_relative_place_is_seen_from_above_the_training(tmp_path):
    for name in ("half", "vit"):
        (tmp_path / "runs" / name / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs/half/checkpoints/last.ckpt").touch()
    config = {"init_from": "runs/half/checkpoints/last.ckpt"}
    assert origin(config, tmp_path / "runs/vit") == tmp_path / "runs/half"
    assert origin(config, Path("/elsewhere")) == Path("runs/half")
    assert origin({"init_from": "zoo:lf_vit"}, tmp_path / "runs/vit") == Path()
