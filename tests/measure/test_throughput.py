"""Timing takes turns and states what it times; no test looks at the times themselves."""

import pytest
import torch

import lfvit
from lfvit.measure.throughput import threshold_for, time_interleaved


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
