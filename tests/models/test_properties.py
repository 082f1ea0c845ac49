"""What holds for every model the registries can build, whatever its settings.

Settings are drawn from all methods, selectors, backbone families and reducers there are, so that a
new one is covered here by itself.
"""

from typing import Any

import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import lfvit
from lfvit.models.factory import FAMILIES
from lfvit.models.reducers import REDUCERS
from lfvit.models.selectors import SELECTORS
from lfvit.models.two_pass import REUSE
from small_vits import randomise

PATCH = 4
METHODS = ("vit", "lf_vit", "cf_vit")
TWO_PASS = METHODS[1:]
OPTIONS = {  # of reducers: names and what they may be
    "keep_rate": st.sampled_from([0.01, 0.3, 0.7, 1.0]),
    "r": st.one_of(st.integers(0, 9), st.sampled_from([0.0, 0.1, 0.5, 0.99])),
    "removed": st.sampled_from([0.0, 0.25, 0.6, 0.99]),
    "proportional": st.booleans(),
    "windows": st.sampled_from([1, 2]),
}
OWN = {"evit": ["keep_rate"], "tome": ["r", "proportional"], "frequency": ["removed", "windows"]}


@st.composite
def models(draw, methods=METHODS) -> dict[str, Any]:
    """Arguments of `create_model`, all of them valid."""
    method = draw(st.sampled_from(methods))
    family = draw(st.sampled_from(sorted(FAMILIES)))
    depth = draw(st.integers(1, 4))
    grid = draw(st.integers(1, 5))
    backbone = {"family": family, "embed_dim": 8, "depth": depth, "num_heads": 2}
    backbone |= {"patch_size": PATCH} if family == "vit" else {"patch_size": 8, "stem_dim": 4}
    side = 2 * grid * backbone["patch_size"]
    given = {"backbone": backbone, "image_size": side, "num_classes": draw(st.integers(1, 4))}
    if method != "vit":
        given |= {
            "region_size": draw(st.integers(1, grid)),
            "alpha": draw(st.sampled_from([1e-9, 0.3, 0.5, 0.88, 1.0])),
            "beta": draw(st.sampled_from([0, 0.5, 0.99, 1 - 1e-9])),
            "gca_start": draw(st.integers(0, depth - 1)),
            "selector": draw(st.sampled_from(sorted(SELECTORS))),
            "reuse": draw(st.sampled_from(sorted(REUSE))),
            "background": draw(st.booleans()),
        }
    name = draw(st.sampled_from(["none", *sorted(REDUCERS)]))
    alone = name != "none" and (REDUCERS[name].drops or REDUCERS[name].learned)
    if name != "none" and (not alone or (method, family) == ("vit", "vit")):
        reducer = {"name": name, **{key: draw(OPTIONS[key]) for key in OWN.get(name, ())}}
        if method != "vit":
            reducer["passes"] = draw(st.sampled_from(["first", "second", "both"]))
        given["reducer"] = reducer
    return {"method": method, **given}


def build(given: dict[str, Any]) -> torch.nn.Module:
    """In float64, with weights large enough for attention to prefer something."""
    torch.manual_seed(0)
    model = lfvit.create_model(**given)
    randomise(model, seed=1)
    return model.double().eval()


def images_for(given: dict[str, Any], count: int) -> torch.Tensor:
    side = given["image_size"]
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, 3, side, side, generator=generator, dtype=torch.float64)


def parts(out: Any) -> list[torch.Tensor]:
    """The logits of every pass."""
    return [out] if isinstance(out, torch.Tensor) else [out.first_logits, out.second_logits]


def is_random(given: dict[str, Any]) -> bool:
    return str(given.get("selector", "")).startswith("random")


each = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])


@each
@given(given=models(), batch=st.integers(1, 3), data=st.data())
def test_an_answer_does_not_depend_on_the_rest_of_the_batch(given, batch, data):
    model, images = build(given), images_for(given, batch)
    order = torch.tensor(data.draw(st.permutations(range(batch))))
    with torch.inference_mode():
        together = parts(model(images))
        assert all(part.shape == (batch, given["num_classes"]) for part in together)
        assert all(part.isfinite().all() for part in together)
        if is_random(given):  # another window for every call: only the first pass stays
            together = together[:1]
        moved = parts(model(images[order]))[: len(together)]
        alone = parts(model(images[order[:1]]))[: len(together)]
    for first, second, third in zip(together, moved, alone, strict=True):
        torch.testing.assert_close(second, first[order], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(third, first[order[:1]], atol=1e-6, rtol=1e-6)


@each
@given(
    given=models(TWO_PASS),
    batch=st.integers(1, 4),
    thresholds=st.lists(st.floats(0, 1.5), min_size=1, max_size=3),
    bucket=st.integers(1, 5),
)
def test_early_exit_is_both_passes_and_a_choice(given, batch, thresholds, bucket):
    assume(not is_random(given))
    model, images = build(given), images_for(given, batch)
    with torch.inference_mode():
        out = model(images)
        before = torch.ones(batch, dtype=torch.bool)
        for threshold in sorted([0.0, 1.0, 1.0001, *thresholds]):
            found = model.infer(images, threshold, bucket=bucket)
            assert not (
                found.exited & ~before
            ).any()  # whoever is sure enough for more, is for less
            before = found.exited
            expected = out.first_logits.where(found.exited[:, None], out.second_logits)
            torch.testing.assert_close(found.logits, expected, atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(
                found.confidence, out.first_logits.float().softmax(1).amax(1), atol=1e-5, rtol=1e-5
            )
            assert found.exited.all() or threshold > 0
            assert not found.exited.any() or threshold <= 1
