"""Weights that no answer depends on, in every method with every reducer."""

import pytest
import torch

import lfvit
from conftest import TINY
from lfvit.errors import ConfigError
from lfvit.models import METHODS
from lfvit.models.reducers import REDUCERS
from lfvit.training.reducers import freeze_unused_weights


def model(method, reducer, **options):
    settings = {} if reducer is None else {"reducer": {"name": reducer, **options}}
    return lfvit.create_model(method, backbone=TINY, image_size=112, num_classes=4, **settings)


@pytest.mark.parametrize("reducer", [None, *REDUCERS])
@pytest.mark.parametrize("method", METHODS)
def test_every_weight_learns_in_every_phase(method, reducer):
    """What DDP needs: it waits for the gradient of every weight that is not frozen."""
    if reducer and REDUCERS[reducer].drops and method != "vit":
        with pytest.raises(ConfigError, match="drops"):
            model(method, reducer)
        return
    found = model(method, reducer)
    freeze_unused_weights(found, 112)
    assert all(weight.requires_grad for weight in found.parameters())
    images = torch.randn(2, 3, 112, 112)
    for phase in [{}] if method == "vit" else [{"selector": "none"}, {}]:
        found.zero_grad()
        out = found(images, **phase)
        logits = [out] if method == "vit" else [out.first_logits, out.second_logits]
        torch.stack([part.sum() for part in logits]).sum().backward()
        assert [name for name, weight in found.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize(
    ("method", "reducer", "options"),
    [
        ("vit", "frequency", {"removed": 0}),
        ("vit", "frequency", {"removed": 0.001}),  # rounds to no token
        ("vit", "frequency", {"blocks": [5], "windows": 1}),  # no block comes after
        ("lf_vit", "frequency", {"removed": 0}),
        ("vit", "dynamic_vit", {"keep_rate": 1}),
    ],
)
def test_what_no_answer_depends_on_is_frozen(method, reducer, options):
    options = {"windows": 1, **options} if reducer == "frequency" else options
    found = model(method, reducer, **options)
    before = torch.get_rng_state()
    unreached = freeze_unused_weights(found, 112)
    assert torch.equal(torch.get_rng_state(), before)
    assert found.training
    own = {name for name, _ in found.named_parameters() if "reducer" in name}
    assert (
        set(unreached)
        == own
        == {name for name, weight in found.named_parameters() if not weight.requires_grad}
    )
