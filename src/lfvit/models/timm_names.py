"""The models by their names in timm; imported with timm, see `lfvit`. Nothing else is, until used.

``timm.create_model("lf_vit_small_patch16_224", region_size=5, threshold=0.7)``; timm passes other
arguments on to `lfvit.models.timm_model.build`.
"""

import sys
from itertools import product
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import generate_default_cfgs, get_pretrained_cfg, register_model
from torch import nn

SIZES = ("tiny", "small", "base")
NAMES = {
    f"{method}_{size}_patch16_{side}": (method, f"deit_{size}_patch16_224", side)
    for method, size, side in product(("lf_vit", "cf_vit"), SIZES, (224, 288))
}
"""Name in timm -> method, backbone (whose weights ``pretrained=True`` starts from), image size."""

default_cfgs = generate_default_cfgs(
    {
        name: {
            "num_classes": 1000,
            "input_size": (3, side, side),
            "crop_pct": 0.9,
            "interpolation": "bicubic",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "backbone.patch_embed.proj",
            "classifier": "backbone.head",
            "fixed_input_size": True,
        }
        for name, (_, _, side) in NAMES.items()
    }
)


def _register(name: str) -> None:
    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        from lfvit.models.timm_model import build

        options["pretrained_cfg"] = options.get("pretrained_cfg") or get_pretrained_cfg(name)
        return build(*NAMES[name], pretrained=pretrained, **options)

    create.__name__ = create.__qualname__ = name
    setattr(sys.modules[__name__], name, register_model(create))


for _name in NAMES:
    _register(_name)
