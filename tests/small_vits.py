"""Small ViTs of timm with weights large enough for attention to prefer something."""

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import lfvit
import reference_reduction
from lfvit.models.reducers import REDUCERS

PATCH = 4
KINDS = {
    "class": {},
    "layer scale": {"init_values": 0.5},
    "normed queries and keys": {"qk_norm": True},
    "registers": {"reg_tokens": 3},
    "registers without positions": {"reg_tokens": 2, "no_embed_class": True},
    "distilled": {"distilled": True},
    "average of patches": {"global_pool": "avg"},
    "average of normed patches": {"global_pool": "avg", "fc_norm": False},
    "no class token": {"class_token": False, "global_pool": "avg"},
}
"""Every way a ViT may differ that the reference knows."""


def possible(method: str, kind: str) -> bool:
    """Whether a reducer works on such a ViT."""
    cls, options = REDUCERS[method], KINDS[kind]
    without_class = cls.needs_class_token and not options.get("class_token", True)
    return not without_class and not (cls.drops and options.get("global_pool") == "avg")


def randomise(module: nn.Module, seed: int) -> None:
    """Weights of a size that makes attention, norms and LayerScale matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + (1.0 if "attn.qkv" in name else 0.3) * noise)


def small_vit(
    kind: str = "class", *, depth=5, heads=2, grid=(4, 4), dim=16, seed=0, **options
) -> VisionTransformer:
    """In float64 and eval mode."""
    options = {"mlp_ratio": 2, **KINDS[kind], **options}
    cls = VisionTransformerDistilled if options.pop("distilled", False) else VisionTransformer
    vit = cls(
        img_size=(grid[0] * PATCH, grid[1] * PATCH),
        patch_size=PATCH,
        embed_dim=dim,
        depth=depth,
        num_heads=heads,
        num_classes=5,
        **options,
    )
    randomise(vit, seed)
    return vit.double().eval()


def images_for(vit: VisionTransformer, count: int = 2, seed: int = 0) -> Tensor:
    size = vit.patch_embed.img_size
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, *size, generator=generator, dtype=torch.float64)


def slow_logits(vit: VisionTransformer, images: Tensor, reducer=None) -> Tensor:
    """The reference's answers, image by image; `reducer` makes a new one for each."""
    return torch.stack(
        [
            reference_reduction.forward(
                image,
                vit.state_dict(),
                heads=vit.blocks.get_submodule("0").attn.num_heads,
                reducer=reducer() if reducer else None,
                pool=vit.global_pool,
                positions_of_prefix=not vit.no_embed_class,
            )["logits"]
            for image in images
        ]
    )


def check_against_reference(vit, method, slow, **options) -> None:
    """A reduced model gives the logits of the reference `slow(**options)`, in a batch and alone.

    Class attention, averages and log sizes of the model are in float32.
    """
    images = images_for(vit)
    lfvit.reduce(vit, method, **options)
    randomise(vit.blocks.reducer, seed=7)
    with torch.no_grad():
        found = vit(images)
        alone = vit(images[1:])
    expected = slow_logits(vit, images, lambda: slow(**options))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone, found[1:], atol=1e-9, rtol=1e-9)
