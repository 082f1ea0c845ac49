"""The two-pass vision transformer.

LF-ViT (Hu et al., AAAI 2024, arXiv 2402.00033) is this model with a window selector, CF-ViT (Chen
et al., AAAI 2023, arXiv 2203.03821) with a cell selector. `forward` runs both passes on every
image, `infer` stops after the first where it can; both are made of `first_pass`, `select` and
`second_pass`.

Shapes: B images, S image side, P patch side, G = S/P fine grid, g = G/2 coarse grid, k cells that
become fine, D width, C classes.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import Mlp, trunc_normal_
from timm.models.vision_transformer import init_weights_vit_timm
from torch import Tensor, nn

from lfvit.models.backbone import AUX_SHARE, Backbone
from lfvit.models.blocks import Layout, patch_centers
from lfvit.models.lv_vit import DenseLogits, TokenMix
from lfvit.models.passes import ModelOutput, MultiPassViT, compiled
from lfvit.models.reducers import Reducer
from lfvit.models.selectors import (
    SELECTORS,
    Scores,
    Selection,
    coarse_cell,
    remaining_cells,
    score_cells,
    select,
)
from lfvit.models.settings import LFViTSettings
from lfvit.models.tokens import check_image_size, downsample, gather_tokens

REUSE: dict[str, dict[str, bool] | None] = {
    "mlp": {},
    "linear": {"linear": True},
    "with_class_token": {"to_class_token": True},
    "with_uninformative": {"to_coarse": True},
    "everywhere": {"to_class_token": True, "to_coarse": True},  # in neither paper
    "none": None,
}
"""Names of ``method.reuse`` -> options of `FeatureReuse` (CF-ViT Table 5)."""


class FeatureReuse(nn.Module):
    """LayerNorm, then an MLP, on the first pass's output tokens (LF-ViT Eq. 11).

    (B, n, D) -> (B, n, D), added to the fine tokens of the same coarse cell.

    Args:
        dim: D.
        hidden_dim: hidden width of the MLP.
        norm_eps: of the LayerNorm.
        linear: a single linear layer in place of the MLP.
        to_class_token: also added to the second pass's class token.
        to_coarse: also added to the cells that stay coarse.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        norm_eps: float,
        *,
        linear: bool = False,
        to_class_token: bool = False,
        to_coarse: bool = False,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = nn.Linear(dim, dim) if linear else Mlp(dim, hidden_dim)
        self.mlp.apply(init_weights_vit_timm)  # as released: normal of 0.02, without bias
        self.to_class_token = to_class_token
        self.to_coarse = to_coarse

    def forward(self, tokens: Tensor) -> Tensor:
        return self.mlp(self.norm(tokens))


class FirstPass(NamedTuple):
    """What the second pass needs of the first.

    logits: (B, C).
    class_logits: (B, C), of the class token alone; the same without an auxiliary head.
    gca, last: (B, g, g) float32, see `Scores`.
    coarse: (B, g*g, D) coarse tokens as they entered block 1, with position embedding.
    features: (B, 1 + g*g, D) class token and coarse tokens after the final norm.
    """

    logits: Tensor
    class_logits: Tensor
    gca: Tensor
    last: Tensor
    coarse: Tensor
    features: Tensor


class Selected(NamedTuple):
    """The first pass, and the cells that it chose."""

    first: FirstPass
    selection: Selection


class TwoPassViT(MultiPassViT):
    """One backbone used twice; `lfvit.create_model` builds it.

    Args:
        backbone: the weights both passes share.
        settings: of the method.
        image_size: S in pixels.
        reducer: shortens the sequence inside the passes named by `reduced_passes`.
        reduced_passes: some of "first", "second".
    """

    num_passes = 2

    def __init__(
        self,
        backbone: Backbone,
        settings: LFViTSettings,
        image_size: int,
        reducer: Reducer | None = None,
        reduced_passes: Collection[str] = (),
    ) -> None:
        super().__init__()
        g, D = image_size // backbone.patch_size // 2, backbone.embed_dim
        self.backbone = backbone
        self.reuse: FeatureReuse | None = None
        if (options := REUSE[settings.reuse]) is not None:
            block: Any = backbone.blocks[0]
            hidden = block.mlp.fc1.out_features
            self.reuse = FeatureReuse(D, hidden, block.norm1.eps, **options)
        self.image_size = image_size
        self.grid = g
        # the published windows of 224 and 288 pixels, and about their share of other grids
        self.region_size = settings.region_size or {7: 5, 9: 8}.get(g, max(1, g * 5 // 7))
        self.alpha = settings.alpha
        self.beta = settings.beta
        self.gca_start = settings.gca_start
        self.selector = settings.selector
        SELECTORS[self.selector]  # imports its file, which a compiled forward could not
        self.background = settings.background
        self.reducer = reducer
        self.reduced_passes = frozenset(reduced_passes)
        self.first_pos_embed = nn.Parameter(torch.zeros(1, 1 + g * g, D))
        self.second_pos_embed = nn.Parameter(torch.zeros(1, 1 + 4 * g * g, D))
        trunc_normal_(self.first_pos_embed, std=0.02)
        trunc_normal_(self.second_pos_embed, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay, as in DeiT and timm."""
        positions = {"first_pos_embed", "second_pos_embed"}
        return positions | {"backbone.cls_token", "backbone.reg_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers by the names of their weights, for timm's layer-wise learning rates.

        What no pattern matches, such as the head and `reuse`, is the last layer.
        """
        return {
            "stem": r"backbone\.(?:cls_token|reg_token|patch_embed|norm_pre)|\w+_pos_embed",
            "blocks": [(r"backbone\.blocks\.(\d+)", None), (r"backbone\.norm\.", (99999,))],
        }

    def forward(
        self,
        images: Tensor,
        coarse_images: Tensor | None = None,
        *,
        selector: str | None = None,
        mix: TokenMix | None = None,
    ) -> ModelOutput:
        """Both passes on every image.

        Args:
            images: (B, 3, S, S), normalised.
            coarse_images: (B, 3, S/2, S/2) if already computed, see `downsample`.
            selector: use this one instead of the model's own, such as "none" in phase one of
                training.
            mix: cells that come from another image of the batch, in both passes.
        """
        first = self.first_pass(images, coarse_images, mix)
        selection = self.select(first, selector)
        last, dense = self.second_pass(images, first, selection, mix)
        class_logits = [] if dense is None else [first.class_logits, dense.class_logits]
        return ModelOutput([first.logits, last], selection, dense, class_logits)

    def run_pass(self, index: int, images: Tensor, before: Any = None) -> tuple[Tensor, Any]:
        """One of `first_pass`, with the selection, and `second_pass`."""
        if index == 0:
            first = self.first_pass(images, before)
            return first.logits, Selected(first, self.select(first))
        return self.second_pass(images, *before)[0], None

    def first_pass(
        self, images: Tensor, coarse_images: Tensor | None = None, mix: TokenMix | None = None
    ) -> FirstPass:
        """Classify the image at half resolution, and score its coarse cells."""
        if coarse_images is None:
            coarse_images = downsample(images)  # (B, 3, S/2, S/2)
        height, width = coarse_images.shape[-2:]
        check_image_size((2 * height, 2 * width), self.image_size)
        backbone, g = self.backbone, self.grid
        coarse = backbone.embed(coarse_images, mix)  # (B, g*g, D)
        coarse = coarse + self.first_pos_embed[:, 1:]
        tokens = backbone.with_class_token(coarse, self.first_pos_embed)  # (B, 1 + g*g, D)

        reducer = self.reducer if "first" in self.reduced_passes else None
        layout = None
        if reducer is not None:
            cells = torch.arange(g * g, device=coarse.device)[None]  # (1, g*g)
            layout = Layout(patch_centers(cells, g, g), self.first_pos_embed[:, 1:])
        output = backbone.run(tokens, self.gca_start, reducer, layout)  # (B, N, D), N = 1 + g*g
        features = backbone.normed(output, every=True)  # (B, 1 + g*g, D), also if reduced
        logits, dense = backbone.classify(features)  # (B, C)
        class_logits = logits
        if dense is not None:  # back to the scale of one head, as confidence is read from them
            logits, class_logits = logits / (1 + AUX_SHARE), dense.class_logits
        gca, last = score_cells(output.class_attention, self.beta, g)  # (B, g, g)
        return FirstPass(logits, class_logits, gca, last, coarse, features)

    def select(self, first: FirstPass, selector: str | None = None) -> Selection:
        """Choose the cells that become fine."""
        scores = Scores(first.gca, first.last)
        return select(scores, selector or self.selector, self.region_size, self.alpha)

    def second_pass(
        self,
        images: Tensor,
        first: FirstPass,
        selection: Selection,
        mix: TokenMix | None = None,
    ) -> tuple[Tensor, DenseLogits | None]:
        """Classify again: fine tokens for the selected cells, coarse ones for the others.

        Returns:
            Logits (B, C), and those of both heads with an auxiliary head: of the 4k fine tokens in
            the order of `Selection.fine_indices`, then of the coarse ones.
        """
        backbone, reuse, g = self.backbone, self.reuse, self.grid
        fine_indices = selection.fine_indices  # (B, 4k) in the G x G grid
        rest = remaining_cells(selection.cells, g)  # (B, g*g - k) in the g x g grid
        # a lookup, not indexing: its gradient is summed in a fixed order, whatever the threads
        fine_pos_embed = F.embedding(fine_indices, self.second_pos_embed[0, 1:])  # (B, 4k, D)
        fine = backbone.embed_patches(images, fine_indices, mix)  # (B, 4k, D)
        fine = fine + fine_pos_embed
        coarse = gather_tokens(first.coarse, rest)  # (B, g*g - k, D)
        class_token = backbone.cls_token + self.second_pos_embed[:, :1]  # (1, 1, D)
        class_token = class_token.expand(images.shape[0], -1, -1)  # (B, 1, D)
        if reuse is not None:
            reused = reuse(first.features if reuse.to_class_token else first.features[:, 1:])
            if reuse.to_class_token:
                class_token, reused = class_token + reused[:, :1], reused[:, 1:]
            if reuse.to_coarse:
                coarse = coarse + gather_tokens(reused, rest)
            # nearest-neighbour upsampling: all four patches of a cell get its (B, g*g, D) feature
            fine = fine + gather_tokens(reused, coarse_cell(fine_indices, g))
        parts = [class_token, fine, coarse] if self.background else [class_token, fine]
        tokens = torch.cat([part.to(fine) for part in parts], dim=1)  # (B, 1 + 4k + g*g - k, D)

        reducer = self.reducer if "second" in self.reduced_passes else None
        layout = None
        if reducer is not None:
            layout = Layout(patch_centers(fine_indices, 2 * g, 2 * g), fine_pos_embed)
            if self.background:
                coarse_pos_embed = F.embedding(rest, self.first_pos_embed[0, 1:])
                layout = Layout(
                    torch.cat([layout.centers, patch_centers(rest, g, g)], dim=1),
                    torch.cat([fine_pos_embed, coarse_pos_embed], dim=1),
                )
        output = backbone.run(tokens, reducer=reducer, layout=layout)  # (B, N, D)
        return backbone.classify(backbone.normed(output, every=False))

    def compile_passes(self, **options: Any) -> None:
        """Run each pass under `torch.compile` with these options, and what is between as it is.

        Later batches of one size, of which `infer` makes few with a `bucket`, reuse the graphs.
        """
        for name in ("first_pass", "second_pass"):
            setattr(self, name, compiled(getattr(self, name), **options))
