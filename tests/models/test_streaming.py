"""Second looks gathered from several batches, and the buckets of `infer`."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lfvit
from lfvit.errors import ConfigError
from lfvit.models.streaming import infer_stream


@pytest.fixture(scope="module", params=["lf_vit", "cf_vit"])
def model(request):
    torch.manual_seed(0)
    spec = {"embed_dim": 24, "depth": 5, "num_heads": 2, "patch_size": 8}
    return lfvit.create_model(request.param, backbone=spec, image_size=64, num_classes=5).eval()


def same(found, expected):
    assert found.exited.tolist() == expected.exited.tolist()
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.confidence, expected.confidence)


@settings(deadline=None, max_examples=20)
@given(
    sizes=st.lists(st.integers(0, 7), max_size=6),
    bucket=st.integers(1, 9),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_a_stream_is_answered_batch_by_batch_in_order(model, sizes, bucket, share, seed):
    images = torch.randn(sum(sizes), 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    batches = list(images.split(sizes)) if sizes else []
    confidence = model.infer(images, 0.0).confidence
    threshold = confidence.quantile(share).item() if len(images) else 0.5
    passes = []
    original = model.second_pass
    model.second_pass = lambda images, *rest: passes.append(len(images)) or original(images, *rest)
    try:
        found = list(infer_stream(model, iter(batches), threshold, bucket=bucket))
    finally:
        del model.second_pass
    assert len(found) == len(batches)
    for answers, batch in zip(found, batches, strict=True):
        same(answers, model.infer(batch, threshold))
    left = int((confidence < threshold).sum())
    assert passes == [bucket] * -(-left // bucket)  # full buckets only, and no pass too many


def test_answers_do_not_wait_longer_than_they_must(model):
    images = torch.randn(6, 3, 64, 64)
    seen = []

    def batches():
        for batch in images.split(2):
            seen.append(len(batch))
            yield batch

    first = next(infer_stream(model, batches(), 0.0, bucket=100))  # everything exits
    assert first.exited.all()
    assert len(seen) == 1
    seen.clear()
    next(infer_stream(model, batches(), 1.01, bucket=4))  # the second batch fills the bucket
    assert len(seen) == 2


@pytest.mark.parametrize("bucket", [1, 2, 3, 8])
def test_buckets_change_the_batch_and_not_the_answers(model, bucket):
    images = torch.randn(7, 3, 64, 64)
    threshold = model.infer(images, 0.0).confidence.median().item()
    expected = model.infer(images, threshold)
    sizes = []
    original = model.second_pass
    model.second_pass = lambda images, *rest: sizes.append(len(images)) or original(images, *rest)
    try:
        same(model.infer(images, threshold, bucket=bucket), expected)
    finally:
        del model.second_pass
    assert sizes == [-(-3 // bucket) * bucket]


def test_a_bucket_is_a_number_of_images(model):
    with pytest.raises(ConfigError, match="bucket=0 must be a whole number, 1 or more"):
        next(infer_stream(model, [torch.randn(1, 3, 64, 64)], 0.5, bucket=0))


def test_compiled_passes_meet_one_size(model):
    """After the first round nothing is compiled any more, whatever number of images exits."""
    from torch._dynamo.utils import counters

    images = torch.randn(6, 3, 64, 64)
    order = model.infer(images, 0.0).confidence.sort(descending=True).values
    thresholds = [0.0, *((order[:-1] + order[1:]) / 2).tolist(), 1.01]
    plain = [model.infer(images, threshold) for threshold in thresholds]
    model.compile_passes(backend="aot_eager", dynamic=False)
    try:
        model.infer(images, 1.01, bucket=6)
        before = counters["stats"]["unique_graphs"]
        for threshold, expected in zip(thresholds, plain, strict=True):
            same(model.infer(images, threshold, bucket=6), expected)
        assert counters["stats"]["unique_graphs"] == before
    finally:
        del model.first_pass, model.second_pass
