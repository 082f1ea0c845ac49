"""Damaged and strange weights files: the model they hold, or one error that names the file."""

import io
import warnings
from typing import Any

import pytest
import safetensors.torch
import torch
from fuzzing import edited, edits, fuzz, limits, places_of, replaced, values
from hypothesis import strategies as st

import lfvit
from lfvit.commands import train as training
from lfvit.errors import CheckpointError, LFViTError
from lfvit.models.checkpoints import extract_weights, read_file
from lfvit.runs.setup import load_trained
from lfvit.training.module import RECORD

BACKBONE = {"family": "vit", "embed_dim": 8, "depth": 2, "num_heads": 2, "patch_size": 8}
METHOD = {"name": "lf_vit", "region_size": 1, "gca_start": 1}
SETTINGS = {"method": METHOD, "backbone": BACKBONE, "reducer": {"name": "none"}, "image_size": 32}
SUFFIXES = {"lightning": ".ckpt", "bare": ".pth", "old": ".pt", "safe": ".safetensors"}


class Passed(BaseException):
    """The settings and the checkpoint are fine; training would start now."""


def new_model():
    torch.manual_seed(0)
    method = {key: value for key, value in METHOD.items() if key != "name"}
    return lfvit.create_model(
        "lf_vit", backbone=dict(BACKBONE), image_size=32, num_classes=3, **method
    )


@pytest.fixture(scope="module")
def resumed(composed, tmp_path_factory):
    """The config of the run that wrote the checkpoint, to be continued."""
    place = tmp_path_factory.mktemp("resumed")
    backbone = [f"backbone.{key}={BACKBONE[key]}" for key in ("embed_dim", "depth", "num_heads")]
    return composed(
        "train",
        *backbone,
        "image_size=32",
        "method.region_size=1",
        "method.gca_start=1",
        "backbone.patch_size=8",
        f"run_dir={place}",
        f"ckpt_path={place / 'last.ckpt'}",
    )


def _content(cfg) -> dict[str, Any]:
    """What a training leaves in its checkpoints, as far as anyone reads it."""
    record = training.make_record(cfg, ["a", "b", "c"])
    model = new_model()
    optimizer = torch.optim.AdamW(model.parameters())
    return {
        "state_dict": {f"model.{key}": value for key, value in model.state_dict().items()},
        RECORD: record,
        "loops": {"fit_loop": {"epoch_progress": {"current": {"started": 1, "processed": 1}}}},
        "epoch": 1,
        "global_step": 4,
        "pytorch-lightning_version": "2.6.0",
        "optimizer_states": [optimizer.state_dict()],
    }


def _file(content: dict[str, Any], kind: str) -> bytes:
    weights = {k.removeprefix("model."): v for k, v in content["state_dict"].items()}
    file = io.BytesIO()
    match kind:
        case "safe":
            tensors = {k: v.contiguous() for k, v in weights.items() if isinstance(v, torch.Tensor)}
            return safetensors.torch.save(tensors)
        case "lightning":
            torch.save(content, file)
        case "bare":
            torch.save(weights, file)
        case "old":
            torch.save({"model": weights}, file, _use_new_zipfile_serialization=False)
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
        weights = extract_weights(read_file(path), "")
        held, resampled = weights.values(), "pos_embed" in weights  # as in a one-pass file
        for key, value in model.state_dict().items():
            assert value.isfinite().all()
            own = resampled and ("pos_embed" in key or key.startswith("reuse."))
            assert own or any(
                value.shape == v.shape and torch.equal(value, v.float()) for v in held
            )
    settings = SETTINGS if path.suffix != ".ckpt" else {}
    try:
        loaded = load_trained(path, settings)
    except LFViTError as error:
        check_error(error, path)
    else:
        side = loaded.record.image_size
        with torch.no_grad():
            out = loaded.model(torch.zeros(1, 3, side, side))
        logits = out if isinstance(out, torch.Tensor) else out.second_logits
        assert logits.shape == (1, len(loaded.record.classes))
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


@pytest.fixture
def no_training(monkeypatch):
    def stop(cfg):
        raise Passed

    monkeypatch.setattr(training, "training_record", stop)


@pytest.fixture(scope="module")
def files(resumed):
    return {kind: _file(_content(resumed), kind) for kind in SUFFIXES}


@fuzz(25, kind=st.sampled_from(sorted(SUFFIXES)), other=st.booleans(), changes=edits())
def test_damaged_bytes(files, resumed, tmp_path, no_training, kind, other, changes):
    path = tmp_path / f"file{'.pth' if other else SUFFIXES[kind]}"
    path.write_bytes(edited(files[kind], changes))
    check_file(path, resumed)


TENSORS = {
    "nan": lambda t: torch.full_like(t, torch.nan),
    "inf": lambda t: torch.full_like(t, torch.inf),
    "double": lambda t: t.double(),
    "half": lambda t: t.half(),
    "whole": lambda t: t.int(),
    "complex": lambda t: t.to(torch.complex64),
    "switches": lambda t: t > 0,
    "empty": lambda t: t[:0],
    "flat": lambda t: t.flatten(),
    "scalar": lambda t: t.flatten()[0],
    "one more axis": lambda t: t[None],
    "longer": lambda t: torch.cat([t, t]),
    "sparse": lambda t: t.to_sparse(),
    "expanded": lambda t: torch.zeros(1).expand(2**40),
    "strided": lambda t: torch.zeros(1).expand(t.shape),
    "on no device": lambda t: t.to("meta"),
    "parameter": lambda t: torch.nn.Parameter(t),
    "list": lambda t: t.tolist(),
    "nothing": lambda t: None,
}
NAMES = ("first_pos_embed", "pos_embed", "head.weight", "blocks.0.norm1.weight", "", "model.", 3)


@st.composite
def contents(draw) -> list[tuple[str, int, Any]]:
    """Changes to what a checkpoint says: (what, which entry, how)."""
    which = st.integers(0, 60)
    return draw(
        st.lists(
            st.one_of(
                st.tuples(st.just("tensor"), which, st.sampled_from(sorted(TENSORS))),
                st.tuples(st.just("rename"), which, st.sampled_from(NAMES)),
                st.tuples(st.just("delete"), which, st.none()),
                st.tuples(st.just("record"), which, values()),
                st.tuples(st.just("record"), which, st.just(places_of)),
                st.tuples(st.just("top"), which, values()),
            ),
            min_size=1,
            max_size=3,
        )
    )


def changed(content: dict[str, Any], changes: list[tuple[str, int, Any]]) -> dict[str, Any]:
    weights = dict(content["state_dict"])
    for what, which, how in changes:
        names = list(weights)
        name = names[which % len(names)]
        small = isinstance(weights[name], torch.Tensor) and weights[name].numel() < 2**20
        if what == "tensor" and small:
            weights[name] = TENSORS[how](weights[name])
        elif what == "rename":
            prefix = "model." if isinstance(how, str) else 0
            weights[prefix + how] = weights.pop(name)
        elif what == "delete" and len(weights) > 1:
            del weights[name]
        elif what == "record" and (places := places_of(content[RECORD])):
            record = replaced(content[RECORD], places[which % len(places)], how)
            content = {**content, RECORD: record}
        elif what == "top":
            key = list(content)[1:][which % (len(content) - 1)]
            content = {**content, key: how} if key != RECORD or isinstance(how, dict) else content
    return {**content, "state_dict": weights}


@fuzz(40, kind=st.sampled_from(["lightning", "bare", "old"]), changes=contents())
def test_strange_contents(resumed, tmp_path, no_training, kind, changes):
    path = tmp_path / f"file{SUFFIXES[kind]}"
    content = changed(_content(resumed), changes)
    try:
        path.write_bytes(_file(content, kind))
    except (AttributeError, TypeError, NotImplementedError):  # no such file can be written
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        check_file(path, resumed)


UNUSABLE = ("nan", "inf", "whole", "complex", "switches", "sparse", "expanded", "on no device")


@pytest.mark.parametrize("how", UNUSABLE)
def test_values_that_are_no_weights(resumed, tmp_path, how):
    path = tmp_path / "file.ckpt"
    path.write_bytes(_file(changed(_content(resumed), [("tensor", 0, how)]), "lightning"))
    with limits(), pytest.raises(CheckpointError, match="first_pos_embed") as refused:
        lfvit.load_checkpoint(new_model(), path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("name", ["backbone.norm.weight", "backbone.head.weight"])
def test_a_weight_that_is_one_number(resumed, tmp_path, name):
    """The advice of the error reads sizes off these two."""
    content = _content(resumed)
    content["state_dict"][f"model.{name}"] = torch.tensor(1.0)
    path = tmp_path / "file.ckpt"
    path.write_bytes(_file(content, "lightning"))
    for load in (lambda: lfvit.load_checkpoint(new_model(), path), lambda: load_trained(path)):
        with pytest.raises(CheckpointError, match=name.removeprefix("backbone.")):
            load()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("method", {}), ("method", None), ("backbone", 3), ("classes", [1])],
        *[("recipe", 3), ("backbone", {"": None})],
    ],
)
def test_records_that_no_training_writes(resumed, tmp_path, no_training, key, value):
    path = tmp_path / "file.ckpt"
    content = _content(resumed)
    content[RECORD][key] = value
    path.write_bytes(_file(content, "lightning"))
    resumed.ckpt_path = str(path)
    with pytest.raises(CheckpointError, match=rf"file\.ckpt: .*{key}"):
        training.train(resumed)
