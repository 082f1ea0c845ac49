"""bfloat16 where it is fast: when it is chosen, and that the answers stay those of float32."""

import pytest
import torch

from lfvit.data.augment import normalize
from lfvit.errors import ConfigError
from lfvit.models.passes import forward_passes
from lfvit.runs.datasets import make_data
from lfvit.runs.models import load_trained
from lfvit.runs.trainers import inference_context, trainer_settings
from lfvit.utils.validation import plain

CPU = torch.device("cpu")


@pytest.fixture(params=[(True, False), (False, True), (False, False)], ids=str)
def has(request, monkeypatch):
    """A CPU with AVX512-BF16, with AMX, or with neither."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    for name, supported in zip(names, request.param, strict=True):
        monkeypatch.setattr(torch.cpu, name, lambda supported=supported: supported)
    return any(request.param)


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_auto_is_bfloat16_where_the_cpu_has_it(has, composed, command):
    settings = ["trainer.accelerator=cpu", *(["ckpt_path=x"] if command == "evaluate" else [])]
    cfg = composed(command, *settings)
    assert trainer_settings(cfg)["precision"] == ("bf16-mixed" if has else "32-true")
    cfg = composed(command, *settings, "trainer.precision=32-true")
    assert trainer_settings(cfg)["precision"] == "32-true"


def test_deterministic_training_stays_in_float32(has, composed):
    cfg = composed("train", "trainer.accelerator=cpu", "deterministic=true")
    assert trainer_settings(cfg)["precision"] == "32-true"


def test_predictions_and_diagnoses_take_the_same(has):
    halves = {"auto": has, "bf16": True, "fp32": False}
    assert {name: inference_context(name, CPU)._enabled for name in halves} == halves
    with pytest.raises(ConfigError, match=r"precision='fp16' is unknown; .*bf16"):
        inference_context("fp16", CPU)


@torch.inference_mode()
def test_the_zoo_answers_alike_in_bfloat16(composed):
    """At most 0.2 % of the answers of all passes are others than in float32."""
    others = []
    for name in ("lf_vit_imagenette", "lf_vit_small_imagenette"):
        model, record = load_trained(f"zoo:{name}")
        size = f"image_size={record.image_size}"
        cfg = composed("train", size, "data.val_images=100", "data.num_workers=0")
        samples = make_data(plain(cfg.data)).some_validation_samples(100)
        needles = torch.stack([sample.pixels for sample in samples])
        for pixels in needles.split(50):
            images = normalize(pixels, record.preprocessing)
            expected = forward_passes(model, images).logits
            with inference_context("bf16", CPU):
                found = forward_passes(model, images).logits
            for half, full in zip(found, expected, strict=True):
                others.append((half.argmax(1) != full.argmax(1)).float())
                gap = (half.float().softmax(1) - full.softmax(1)).abs().mean().item()
                assert gap < 0.002
    assert len(torch.cat(others)) == 400
    assert torch.cat(others).mean() <= 0.002
