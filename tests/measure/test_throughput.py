"""Timing takes turns and states what it times; no test looks at the times themselves."""

import pytest
import torch

import lfvit
from lfvit.commands.benchmark import build_models
from lfvit.errors import ConfigError
from lfvit.measure.throughput import threshold_for, time_interleaved
from lfvit.runs.trainers import inference_context


def test_cases_take_turns_after_warm_up():
    calls = []
    cases = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    seconds = time_interleaved(cases, warmup=1, repeats=3, device=torch.device("cpu"))
    assert calls == ["a", "b"] * 4
    assert [len(seconds[name]) for name in "ab"] == [3, 3]
    assert all(value >= 0 for values in seconds.values() for value in values)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_the_stated_share_exits(tiny, share):
    torch.manual_seed(0)
    model = lfvit.create_model("lf_vit", backbone=tiny, image_size=112).eval()
    images = torch.randn(8, 3, 112, 112)
    found = model.infer(images, threshold_for(model, images, share))
    assert found.exited.float().mean() == share


def test_a_share_that_no_threshold_gives(tiny):
    model = lfvit.create_model("lf_vit", backbone=tiny, image_size=112).eval()
    with pytest.raises(ConfigError, match=r"equally confident .* pass exit_fractions=\[0,1\]"):
        threshold_for(model, torch.zeros(8, 3, 112, 112), 0.5)


def test_models_of_the_benchmark_tell_images_apart_whatever_their_layer_scale(composed, tiny):
    cfg = composed("benchmark", "image_size=112", "models={lf_vit:{name:lf_vit}}")
    cfg.backbone = {**tiny, "init_values": 1e-5}
    model = build_models(cfg, None)["lf_vit"].eval()
    images = torch.randn(8, 3, 112, 112)
    with inference_context("bf16", torch.device("cpu")):
        assert model.infer(images, threshold_for(model, images, 0.5)).exited.sum() == 4
