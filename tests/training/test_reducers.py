"""Every weight learns, in every method with every reducer."""

import pytest
import torch

import lfvit
from conftest import TINY
from lfvit.errors import ConfigError
from lfvit.models.reducers import REDUCERS
from lfvit.models.settings import METHODS


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
    images = torch.randn(2, 3, 112, 112)
    for phase in [{}] if method == "vit" else [{"selector": "none"}, {}]:
        found.zero_grad()
        out = found(images, **phase)
        logits = [out] if method == "vit" else [out.first_logits, out.second_logits]
        torch.stack([part.sum() for part in logits]).sum().backward()
        assert [name for name, weight in found.named_parameters() if weight.grad is None] == []
