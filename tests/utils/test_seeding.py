"""Runs that end with the same bits, and the operations that cannot."""

import os
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F

from conftest import NEEDLE_FAST
from lfvit.commands.train import train
from lfvit.models.two_pass import TwoPassViT

RECIPE = (
    *(setting for setting in NEEDLE_FAST if not setting.startswith("data.num_workers")),
    *("augment=deit", "schedule.drop_path_rate=0.2", "trainer.gradient_clip_val=1"),
    *("data.train_images=16", "data.val_images=8"),
)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    with patch.dict(os.environ):
        yield
    torch.set_num_threads(before)
    torch.use_deterministic_algorithms(False)


def final_state(run):
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return {**checkpoint["state_dict"], **checkpoint["optimizer_states"][0]["state"][0]}


def test_runs_with_several_threads_and_any_workers_end_with_the_same_bits(
    composed, tmp_path, threads
):
    """Weights, averages and moments; on a CPU with deterministic=true and without."""
    found = []
    for number, settings in enumerate(
        (
            ("deterministic=true", "data.num_workers=2"),
            ("deterministic=true", "data.num_workers=0"),
            ("deterministic=false", "data.num_workers=1", "trainer.precision=32-true"),
        )
    ):
        torch.rand(number)  # what was drawn before does not matter
        run_dir = tmp_path / str(number)
        train(composed("train", *RECIPE, *settings, f"run_dir={run_dir}"))
        assert torch.are_deterministic_algorithms_enabled() == (number < 2)
        found.append(final_state(run_dir))
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        assert all(torch.equal(other[key], found[0][key]) for key in other)


def test_an_operation_that_cannot_be_repeated_is_named(composed, tmp_path, threads, monkeypatch):
    original = TwoPassViT.first_pass

    def unpooled(self, *arguments):
        first = original(self, *arguments)
        tokens, index = F.max_pool1d(first.features, 2, return_indices=True)
        return first._replace(features=F.max_unpool1d(tokens, index, 2))

    monkeypatch.setattr(TwoPassViT, "first_pass", unpooled)
    settings = (*NEEDLE_FAST, "callbacks.checkpoint=null", f"run_dir={tmp_path}")
    with pytest.raises(RuntimeError, match=r"max_unpooling2d.* does not have a deterministic"):
        train(composed("train", *settings, "deterministic=true"))
