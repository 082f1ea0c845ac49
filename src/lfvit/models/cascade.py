"""A cascade of ViTs with an early exit after each, after DVT.

DVT (Wang et al., Not All Images are Worth 16x16 Words, NeurIPS 2021, arXiv 2105.15075) runs one
transformer after the other on the whole image, with 7 x 7, 10 x 10 and 14 x 14 tokens, until one is
confident. Each has weights of its own. A pass reuses the features of the one before: DVT puts them
into every MLP, here `FeatureReuse` of LF-ViT and CF-ViT adds them to the tokens, so that the passes
are plain ViTs. DVT's reuse of attention logits is left out.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lfvit.models.backbone import Backbone
from lfvit.models.passes import ModelOutput, MultiPassViT, compiled
from lfvit.models.tokens import check_image_size, resample_pos_embed
from lfvit.models.two_pass import FeatureReuse


class CascadeViT(MultiPassViT):
    """P ViTs on growing grids; `lfvit.create_model` builds it.

    Shapes: B images, S image side, g grid of a pass, D width, C classes.

    Args:
        vits: timm's, one per pass, each built for its own image size.
        image_size: S in pixels, of what the model gets.
        reuse: whether a pass adds the features of the one before to its tokens.
    """

    def __init__(self, vits: Sequence[Any], image_size: int, *, reuse: bool = True) -> None:
        super().__init__()
        self.num_passes = len(vits)
        self.image_size = image_size
        self.grids = [vit.patch_embed.grid_size[0] for vit in vits]
        self.sides = [vit.patch_embed.img_size[0] for vit in vits]
        backbones = nn.ModuleList(Backbone(vit) for vit in vits)  # refuses other kinds of ViTs
        self.pos_embeds = nn.ParameterList(  # (1, 1 + g*g, D) each
            vit.pos_embed
            if vit.pos_embed.shape[1] == 1 + g**2  # else one without the class token's
            else resample_pos_embed(vit.pos_embed.data, 1 + g**2)
            for vit, g in zip(vits, self.grids, strict=True)
        )
        self.backbones = backbones
        self.reuse = nn.ModuleList()
        for vit in vits[1:] if reuse else ():
            block = vit.blocks[0]
            hidden = block.mlp.fc1.out_features
            self.reuse.append(FeatureReuse(vit.embed_dim, hidden, block.norm1.eps))

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay, as in DeiT and timm."""
        names = ("pos_embeds.{}", "backbones.{}.cls_token", "backbones.{}.reg_token")
        return {name.format(i) for name in names for i in range(self.num_passes)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers by the names of their weights, for timm's layer-wise learning rates."""
        backbone = r"backbones\.\d+\."
        return {
            "stem": rf"pos_embeds|{backbone}(?:cls_token|reg_token|patch_embed|norm_pre)",
            "blocks": [(rf"{backbone}blocks\.(\d+)", None), (rf"{backbone}norm\.", (99999,))],
        }

    def forward(
        self, images: Tensor, coarse_images: Tensor | None = None, *, selector: str | None = None
    ) -> ModelOutput:
        """All passes on images (B, 3, S, S); there is nothing to select, and no coarse images."""
        logits, features = [], None
        for index in range(self.num_passes):
            one, features = self.run_pass(index, images, features)
            logits.append(one)
        return ModelOutput(logits)

    def run_pass(self, index: int, images: Tensor, before: Any = None) -> tuple[Tensor, Tensor]:
        """One pass on the whole image.

        Args:
            before: patch tokens (B, g*g, D) of the pass before, unused in the first.

        Returns:
            Logits (B, C), and the patch tokens (B, g*g, D) after the final norm.
        """
        check_image_size(images.shape[-2:], self.image_size)
        backbone: Any = self.backbones[index]
        pos_embed, side, g = self.pos_embeds[index], self.sides[index], self.grids[index]
        if side != self.image_size:
            images = F.interpolate(images, (side, side), mode="bilinear", align_corners=True)
        patches = backbone.embed(images) + pos_embed[:, 1:]  # (B, g*g, D)
        if index and len(self.reuse):
            reused = self.reuse[index - 1](before)
            last = self.grids[index - 1]
            reused = reused.transpose(1, 2).unflatten(2, (last, last))  # (B, D, g', g')
            reused = F.interpolate(reused, (g, g), mode="bilinear", align_corners=True)
            patches = patches + reused.flatten(2).transpose(1, 2)
        tokens = backbone.with_class_token(patches, pos_embed)  # (B, 1 + g*g, D)
        tokens = backbone.normed(backbone.run(tokens), every=True)
        return backbone.classify(tokens)[0], tokens[:, 1:]

    def compile_passes(self, **options: Any) -> None:
        """Run each pass under `torch.compile` with these options."""
        self.run_pass = compiled(self.run_pass, **options)  # type: ignore[method-assign]
