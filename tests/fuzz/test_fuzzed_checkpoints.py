"""Damaged and strange weights files: the model they hold, or one error that names the file."""

import io
from typing import Any

import pytest
import safetensors.torch
import torch
from fuzzing import edited, edits, fuzz, limits, places_of, replaced, values
from hypothesis import strategies as st

import lfvit
from lfvit.commands import train as training
from lfvit.errors import CheckpointError, LFViTError
from lfvit.runs.models import load_trained
from lfvit.training.module import RECORD

BACKBONE = {"family": "vit", "embed_dim": 8, "depth": 2, "num_heads": 2, "patch_size": 8}
METHOD = {"region_size": 1, "gca_start": 1}
SETTINGS = {"method": {"name": "lf_vit", **METHOD}, "backbone": BACKBONE, "image_size": 32}
SUFFIXES = {"lightning": ".ckpt", "bare": ".pth", "old": ".pt", "safe": ".safetensors"}


class Passed(BaseException):
    """The settings and the checkpoint are fine; training would start now."""


def new_model():
    torch.manual_seed(0)
    return lfvit.create_model(
        "lf_vit", backbone=dict(BACKBONE), image_size=32, num_classes=3, **METHOD
    )


@pytest.fixture
def resumed(composed, tmp_path, monkeypatch):
    """The config of the run that wrote the checkpoint, to be continued up to its first step."""

    def stop(cfg):
        raise Passed

    monkeypatch.setattr(training, "training_record", stop)
    backbone = [f"backbone.{key}={value}" for key, value in BACKBONE.items()]
    method = [f"method.{key}={value}" for key, value in METHOD.items()]
    return composed(
        "train", *backbone, *method, "image_size=32", f"run_dir={tmp_path}", "ckpt_path=last.ckpt"
    )


def content_of(cfg) -> dict[str, Any]:
    """What a training leaves in its checkpoints, as far as anyone reads it."""
    model = new_model()
    return {
        "state_dict": {f"model.{key}": value for key, value in model.state_dict().items()},
        RECORD: training.make_record(cfg, ["a", "b", "c"]),
        "loops": {"fit_loop": {"epoch_progress": {"current": {"started": 1, "processed": 1}}}},
        "epoch": 1,
        "global_step": 4,
        "pytorch-lightning_version": "2.6.0",
        "optimizer_states": [torch.optim.AdamW(model.parameters()).state_dict()],
    }


def file_of(content: dict[str, Any], kind: str) -> bytes:
    weights = {k.removeprefix("model."): v for k, v in content["state_dict"].items()}
    if kind == "safe":
        return safetensors.torch.save({k: v.contiguous() for k, v in weights.items()})
    written = {"lightning": content, "bare": weights, "old": {"model": weights}}[kind]
    file = io.BytesIO()
    torch.save(written, file, _use_new_zipfile_serialization=kind != "old")
    return file.getvalue()


def check_file(path, cfg) -> None:
    """Every way to a file: as weights, as a trained model, and as a run to be continued."""
    model = new_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        lfvit.load_checkpoint(model, path)
    except LFViTError as error:
        check_error(error, path)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    else:
        assert all(value.isfinite().all() for value in model.state_dict().values())
    try:
        model, record = load_trained(path, SETTINGS if path.suffix != ".ckpt" else {})
    except LFViTError as error:
        check_error(error, path)
    else:
        with torch.no_grad():
            out = model(torch.zeros(1, 3, record.image_size, record.image_size))
        logits = out if isinstance(out, torch.Tensor) else out.second_logits
        assert logits.shape == (1, len(record.classes))
    cfg.ckpt_path = str(path)
    try:
        training.train(cfg)
    except LFViTError as error:
        check_error(error, path)
    except Passed:
        pass


def check_error(error, path) -> None:
    message = str(error)
    assert str(path) in message or "=" in message  # the file, or the setting in its record
    assert len(message) < 2000


@fuzz(12, kind=st.sampled_from(sorted(SUFFIXES)), other=st.booleans(), changes=edits())
def test_damaged_bytes(resumed, tmp_path, kind, other, changes):
    path = tmp_path / f"file{'.pth' if other else SUFFIXES[kind]}"
    path.write_bytes(edited(file_of(content_of(resumed), kind), changes))
    check_file(path, resumed)


TENSORS = {
    "nan": lambda t: torch.full_like(t, torch.nan),
    "inf": lambda t: torch.full_like(t, torch.inf),
    "double": lambda t: t.double(),
    "whole": lambda t: t.int(),
    "complex": lambda t: t.to(torch.complex64),
    "switches": lambda t: t > 0,
    "empty": lambda t: t[:0],
    "scalar": lambda t: t.flatten()[0],
    "one more axis": lambda t: t[None],
    "longer": lambda t: torch.cat([t, t]),
    "sparse": lambda t: t.to_sparse(),
    "expanded": lambda t: torch.zeros(1).expand(2**40),
    "on no device": lambda t: t.to("meta"),
    "parameter": lambda t: torch.nn.Parameter(t),
    "list": lambda t: t.tolist(),
    "nothing": lambda t: None,
}
NAMES = ("first_pos_embed", "pos_embed", "head.weight", "blocks.0.norm1.weight", "", "model.")
CHANGE = st.one_of(  # (what, which entry, how)
    st.tuples(st.just("tensor"), st.integers(0, 60), st.sampled_from(sorted(TENSORS))),
    st.tuples(st.just("rename"), st.integers(0, 60), st.sampled_from(NAMES)),
    st.tuples(st.just("record"), st.integers(0, 60), values() | st.just(places_of)),
    st.tuples(st.just("top"), st.integers(0, 60), values()),
)


def changed(content: dict[str, Any], changes: list[tuple[str, int, Any]]) -> dict[str, Any]:
    weights = dict(content["state_dict"])
    for what, which, how in changes:
        name = list(weights)[which % len(weights)]
        tensor = weights[name]
        if what == "tensor" and isinstance(tensor, torch.Tensor) and tensor.numel() < 2**20:
            weights[name] = TENSORS[how](tensor)
        elif what == "rename":
            weights[f"model.{how}"] = weights.pop(name)
        elif what == "record" and (places := places_of(content[RECORD])):
            record = replaced(content[RECORD], places[which % len(places)], how)
            content = {**content, RECORD: record}
        elif what == "top":
            key = list(content)[2:][which % (len(content) - 2)]
            content = {**content, key: how}
    return {**content, "state_dict": weights}


@fuzz(
    20,
    kind=st.sampled_from(["lightning", "bare", "old"]),
    changes=st.lists(CHANGE, min_size=1, max_size=3),
)
def test_strange_contents(resumed, tmp_path, kind, changes):
    path = tmp_path / f"file{SUFFIXES[kind]}"
    content = changed(content_of(resumed), changes)
    try:
        path.write_bytes(file_of(content, kind))
    except (AttributeError, TypeError, NotImplementedError):  # no such file can be written
        return
    check_file(path, resumed)


UNUSABLE = ("nan", "inf", "whole", "complex", "switches", "sparse", "expanded", "on no device")


@pytest.mark.parametrize("how", UNUSABLE)
def test_values_that_are_no_weights(resumed, tmp_path, how):
    path = tmp_path / "file.ckpt"
    path.write_bytes(file_of(changed(content_of(resumed), [("tensor", 0, how)]), "lightning"))
    with limits(), pytest.raises(CheckpointError, match="first_pos_embed") as refused:
        lfvit.load_checkpoint(new_model(), path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("method", {}), ("backbone", 3), ("classes", [1]), ("recipe", 3), ("backbone", {"": None})],
)
def test_records_that_no_training_writes(resumed, tmp_path, key, value):
    path = tmp_path / "file.ckpt"
    content = content_of(resumed)
    content[RECORD][key] = value
    path.write_bytes(file_of(content, "lightning"))
    resumed.ckpt_path = str(path)
    with pytest.raises(CheckpointError, match=rf"file\.ckpt: .*{key}"):
        training.train(resumed)
