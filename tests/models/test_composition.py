"""Token reduction inside the two passes, against the slow reference of both."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import golden_vectors
import lfvit
import reference
import reference_reduction as slow
from lfvit.models.selectors import coarse_cell

KEPT = {"keep_rate": 0.6, "blocks": [2, 4]}
FREQUENCY = {"removed": [0.4, 0.3], "blocks": [2, 4], "windows": [2, 1]}
REDUCERS = {
    "topk": (KEPT, lambda: slow.TopK(**KEPT)),
    "ats": (KEPT, lambda: slow.ATS(**KEPT)),
    "evo_vit": (KEPT, lambda: slow.EvoViT(**KEPT)),
    "dpc_knn": (
        {**KEPT, "weighted": False},
        lambda: slow.DPCKNN(**KEPT, neighbors=5, weighted=False),
    ),
    "k_medoids": (KEPT, lambda: slow.KMedoids(**KEPT, iterations=3)),
    "tofu": ({"r": 5}, lambda: slow.ToFu([5] * 5, prune_blocks=2)),
    "evit": (KEPT, lambda: slow.EViT(**KEPT)),
    "tome": ({"r": 5}, lambda: slow.ToMe([5] * 5)),
    "frequency": (FREQUENCY, lambda: slow.Frequency(**FREQUENCY)),
}
CASES = [
    (name, passes)
    for name in sorted(REDUCERS)
    for passes in ("second", "both")
    if passes == "second" or name not in ("topk", "ats")
] + [("evit", "first")]


@pytest.mark.parametrize(("name", "passes"), CASES)
@settings(deadline=None, max_examples=2)
@example(seed=409, selector="ngca", alpha=0.4, background=False)  # a tie
@given(
    seed=st.integers(0, 10_000),
    selector=st.sampled_from(["ngca", "gca", "last_class_attention"]),
    alpha=st.sampled_from([0.4, 0.88, 1.0]),
    background=st.booleans(),
)
def test_matches_a_slow_reference(name, passes, seed, selector, alpha, background):
    side, depth, heads = 128, 5, 2
    options, new = REDUCERS[name]
    shapes = golden_vectors.released_shapes(D=32, depth=depth, classes=6, grid=side // 32)
    weights = golden_vectors.weights(shapes, seed)
    if name == "frequency":
        learned = torch.Generator().manual_seed(seed)
        for w in ("w1", "w2"):
            weights[f"blocks.reducer.{w}"] = 0.3 * torch.randn(3, heads, generator=learned)
    shared = {"region_size": 3, "alpha": alpha, "beta": 0.9, "selector": selector}
    model = lfvit.create_model(
        "lf_vit",
        backbone={"embed_dim": 32, "depth": depth, "num_heads": heads},
        image_size=side,
        num_classes=6,
        background=background,
        reducer={"name": name, "passes": passes, **options},
        **shared,
    ).eval()
    lfvit.load_checkpoint(model, weights)
    (image,) = golden_vectors.images(1, side, seed)
    with torch.no_grad():
        out = model.double()(image[None].double())
    expected = reference.two_pass(
        image,
        weights,
        patch_size=16,
        heads=heads,
        background=background,
        reducers=(
            new() if passes in ("first", "both") else None,
            new() if passes in ("second", "both") else None,
        ),
        **shared,
    )
    gca = out.selection.gca[0].double()
    torch.testing.assert_close(gca, expected["gca"], atol=1e-7, rtol=1e-5)
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(out.first_logits[0], expected["first_logits"], **close)
    fine, slow_fine = out.selection.fine_indices[0], torch.tensor(expected["fine_indices"])
    if fine.tolist() == slow_fine.tolist():
        torch.testing.assert_close(out.second_logits[0], expected["second_logits"], **close)
    else:  # cells of one token are equally good: rounding decides which of them are chosen
        assert passes != "second"
        ours, theirs = (gca.flatten()[coarse_cell(f, 4)].sort().values for f in (fine, slow_fine))
        torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-5)
