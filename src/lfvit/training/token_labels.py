"""Token labelling (Jiang et al. 2021, arXiv 2104.10858): every patch token learns a label."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfvit.data.batches import Batch
from lfvit.models.lv_vit import DenseLogits, TokenMix
from lfvit.models.passes import num_passes
from lfvit.models.selectors import Selection, remaining_cells
from lfvit.models.tokens import gather_tokens


def has_aux_head(model: nn.Module) -> bool:
    """Whether the model has an auxiliary head, which classifies patch tokens."""
    return getattr(getattr(model, "backbone", model), "aux_head", None) is not None


class TokenTargets(NamedTuple):
    """Labels of a batch, token by token.

    mix: cells that come from another image of the batch, for the model's forward; None for none.
    images: (B, C), mixed. patches: (B, G*G, C), of the patches.
    """

    mix: TokenMix | None
    images: Tensor
    patches: Tensor

    @classmethod
    def of(cls, batch: Batch, model: Any, num_classes: int) -> "TokenTargets":
        """Every patch has its image's label; with label maps, patches and images have the map's.

        Args:
            model: LV-ViT, with one pass or two; cells are mixed on its coarsest grid.
        """
        if num_passes(model) > 1:
            cells, grid = model.grid, 2 * model.grid
        else:
            cells = grid = model.patch_embed.grid_size[0]
        images = batch.targets
        if images.ndim == 1:
            images = F.one_hot(images, num_classes).float()
        if batch.label_maps is not None:
            patches = batch.label_maps.patches(grid, num_classes).to(images.dtype)
            images = batch.label_maps.patches(1, num_classes)[:, 0].to(images.dtype)
        else:
            patches = images[:, None].expand(-1, grid**2, -1)
        if batch.token_mix is None:
            return cls(None, images, patches)
        mix = TokenMix.from_draw(batch.token_mix, cells, images.device)
        maps = patches.transpose(1, 2).unflatten(2, (grid, grid))  # (B, C, G, G)
        return cls(mix, mix.targets(images), mix.maps(maps).flatten(2).transpose(1, 2))

    def select(self, selection: Selection | None, background: bool = True) -> Tensor:
        """Labels of the last pass's tokens, in their order.

        A fine token has its patch's label, a coarse one the sum of its four patches', since it
        stands for each of them.

        Args:
            selection: of the second pass; None in a one-pass model, whose tokens are the patches.
            background: whether coarse tokens are there.

        Returns:
            (B, 4k + g*g - k, C), or (B, 4k, C) without coarse tokens; (B, G*G, C) in one pass.
        """
        if selection is None:
            return self.patches
        fine = gather_tokens(self.patches, selection.fine_indices)
        if not background:
            return fine
        g = selection.gca.shape[-1]
        cells = self.patches.unflatten(1, (g, 2, g, 2)).sum(dim=(2, 4))  # (B, g, g, C)
        coarse = gather_tokens(cells.flatten(1, 2), remaining_cells(selection.cells, g))
        return torch.cat([fine, coarse], dim=1)


def token_labelling_loss(
    dense: DenseLogits, images: Tensor, tokens: Tensor, weight: float, num_patches: int
) -> Tensor:
    """CE(class token, image label) + weight * mean over patches of CE(their token, their label).

    Args:
        dense: logits of both heads.
        images: (B, C) labels.
        tokens: (B, N, C), for each token of `dense` the sum of its patches' labels.
        num_patches: of an image, that the tokens stand for.

    Returns:
        A scalar, in nats.
    """
    loss = F.cross_entropy(
        dense.token_logits.flatten(0, 1), tokens.flatten(0, 1), reduction="sum"
    ) / (len(tokens) * num_patches)
    return F.cross_entropy(dense.class_logits, images) + weight * loss
