"""The two-pass vision transformer: look once at half resolution, and again where it matters.

LF-ViT (Hu et al., AAAI 2024, arXiv 2402.00033) is this model with a window selector, CF-ViT (Chen
et al., AAAI 2023, arXiv 2203.03821) with a cell selector. Read it from top to bottom: `forward`
looks twice at every image, `infer` stops early where it can, and both are made of the same three
steps.

Shapes: B images, S image side, P patch side, G = S/P fine grid, g = G/2 coarse grid, k cells that
become fine, D width, C classes.
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lfvit.models.backbone import AUX_SHARE, Backbone
from lfvit.models.indexing import take
from lfvit.models.lv_vit import Dense
from lfvit.models.passes import EarlyExitOutput, ModelOutput
from lfvit.models.reduction.registry import Layout, Reducer, centres
from lfvit.models.resample import downsample
from lfvit.models.reuse import Reuse
from lfvit.models.selection import (
    Scores,
    Selection,
    coarse_cell,
    remaining_cells,
    score_cells,
    select,
)
from lfvit.models.token_mix import TokenMix


class FirstPass(NamedTuple):
    """What the first pass leaves for the second.

    logits: (B, C).
    gca, last: (B, g, g) float32, where the class token looked, see `Scores`.
    inputs: (B, g*g, D) coarse tokens as they entered block 1, with position embedding.
    outputs: (B, 1 + g*g, D) class token and coarse tokens after the final norm.
    """

    logits: Tensor
    gca: Tensor
    last: Tensor
    inputs: Tensor
    outputs: Tensor


class SecondPass(NamedTuple):
    """The second answer: logits (B, C), and of an auxiliary head what it says about every token.

    dense: of the 4k fine tokens in the order of `Selection.fine_indices`, then of the coarse ones.
    """

    logits: Tensor
    dense: Dense | None


class TwoPassViT(nn.Module):
    """One backbone used twice; build it with `lfvit.create_model`, which checks the settings.

    Args:
        backbone: the shared weights.
        image_size: S in pixels.
        region_size: m, side of the window in coarse cells (window selectors only).
        alpha: share of the candidate cells that becomes fine, in (0, 1].
        beta: weight of the past in the average of class attention, in [0, 1).
        gca_start: first block (0-based) whose class attention counts.
        selector: how the cells are chosen, a name in `lfvit.models.selection.SELECTORS`.
        reuse: the term added to the second pass's tokens; None adds nothing.
        background: keep the cells that are not chosen as coarse tokens of the second pass.
        reducer: shortens the sequence inside the passes named by `reduced_passes`.
        reduced_passes: some of "first", "second".
    """

    num_passes = 2

    def __init__(
        self,
        backbone: Backbone,
        *,
        image_size: int,
        region_size: int,
        alpha: float,
        beta: float,
        gca_start: int,
        selector: str,
        reuse: Reuse | None,
        background: bool = True,
        reducer: Reducer | None = None,
        reduced_passes: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.reuse = reuse
        self.image_size = image_size
        self.grid = image_size // backbone.patch_size // 2
        self.region_size = region_size
        self.alpha = alpha
        self.beta = beta
        self.gca_start = gca_start
        self.selector = selector
        self.background = background
        self.reducer = reducer
        self.reduced_passes = frozenset(reduced_passes)
        D = backbone.embed_dim
        self.first_pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid**2, D))
        self.second_pos_embed = nn.Parameter(torch.zeros(1, 1 + 4 * self.grid**2, D))
        trunc_normal_(self.first_pos_embed, std=0.02)
        trunc_normal_(self.second_pos_embed, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay leaves alone, as in DeiT and timm."""
        tokens = {"backbone.cls_token", "backbone.reg_token"}
        return {"first_pos_embed", "second_pos_embed"} | tokens

    def forward(
        self,
        images: Tensor,
        coarse_images: Tensor | None = None,
        *,
        selector: str | None = None,
        mix: TokenMix | None = None,
    ) -> ModelOutput:
        """Both passes for every image.

        Args:
            images: (B, 3, S, S), normalised.
            coarse_images: (B, 3, S/2, S/2) if already computed, see `downsample`.
            selector: use this one instead of the model's own, such as "none" in phase one of
                training.
            mix: cells that come from another image of the batch, in both passes.
        """
        first = self.first_pass(images, coarse_images, mix)
        selection = self.select(Scores(first.gca, first.last), selector)
        second = self.second_pass(images, first, selection, mix)
        return ModelOutput([first.logits, second.logits], selection, second.dense)

    @torch.no_grad()
    def infer(
        self,
        images: Tensor,
        threshold: float,
        coarse_images: Tensor | None = None,
        *,
        bucket: int = 1,
    ) -> EarlyExitOutput:
        """Early exit: only images whose confidence is below `threshold` get the second pass.

        Works for any batch, including one image, none left and all left. Without gradients.

        Args:
            images: (B, 3, S, S), normalised.
            threshold: eta; at 0 every image stops after the first pass, above 1 none.
            coarse_images: (B, 3, S/2, S/2) if already computed.
            bucket: the second pass runs on a multiple of so many images, the last one repeated,
                so that compiled passes meet few sizes.
        """
        first = self.first_pass(images, coarse_images)
        selection = self.select(Scores(first.gca, first.last))
        confidence = first.logits.float().softmax(dim=1).amax(dim=1)  # (B,)
        exited = confidence >= threshold
        output = EarlyExitOutput(first.logits, exited, confidence, selection)
        rest = (~exited).nonzero()[:, 0]  # (R,), the one place that waits for the device
        if not len(rest):
            return output
        padded = torch.cat([rest, rest[-1:].expand(-len(rest) % bucket)])
        if len(rest) < len(images) or len(padded) > len(rest):  # else all of them, in order
            images, selection = images[padded], selection.rows(padded)
            first = FirstPass(*(t[padded] for t in first))
        second = self.second_pass(images, first, selection).logits[: len(rest)]
        logits = output.logits.index_copy(0, rest, second.to(output.logits.dtype))
        return output._replace(logits=logits)

    def compile_passes(self, **options: Any) -> None:
        """Run each pass under `torch.compile` with these options, and what lies between as it is.

        Later batches of one size, of which `infer` makes few with a `bucket`, reuse the graphs.
        """
        for name in ("first_pass", "second_pass"):
            run = torch.compile(getattr(self, name), **options)
            graphs = options.get("mode") in ("reduce-overhead", "max-autotune")
            setattr(self, name, _kept(run) if graphs else run)

    def first_pass(
        self, images: Tensor, coarse_images: Tensor | None = None, mix: TokenMix | None = None
    ) -> FirstPass:
        """Classify the image at half resolution, and score the coarse cells."""
        if coarse_images is None:
            coarse_images = downsample(images)
        self._check_size(coarse_images)
        backbone = self.backbone
        coarse = backbone.embed(coarse_images, mix) + self.first_pos_embed[:, 1:]  # (B, g*g, D)
        class_token = backbone.cls_token + self.first_pos_embed[:, :1]  # (1, 1, D)
        class_token = class_token.expand(coarse.shape[0], -1, -1)  # (B, 1, D)
        tokens = torch.cat([class_token.to(coarse), coarse], dim=1)  # (B, 1 + g*g, D)
        reducer = self.reducer_of("first")
        layout = None if reducer is None else self._first_layout(coarse.device)
        run = backbone.run(tokens, self.gca_start, reducer, layout)
        tokens = run.expand(backbone.norm(run.tokens))  # one per cell again, if there were fewer
        logits, dense = backbone.classify(tokens)
        if dense is not None:  # on one scale with plain logits, where the confidence is read
            logits = logits / (1 + AUX_SHARE)
        return FirstPass(
            logits=logits,
            **score_cells(run.rows, self.beta, self.grid)._asdict(),
            inputs=coarse,
            outputs=tokens,
        )

    def select(self, scores: Scores, selector: str | None = None) -> Selection:
        """Choose the cells that become fine."""
        return select(scores, selector or self.selector, self.region_size, self.alpha)

    def second_pass(
        self,
        images: Tensor,
        first: FirstPass,
        selection: Selection,
        mix: TokenMix | None = None,
    ) -> SecondPass:
        """Classify again: fine tokens where it matters, coarse ones everywhere else."""
        backbone, reuse = self.backbone, self.reuse
        # a lookup, not indexing: its gradient is summed in a fixed order, whatever the threads
        positions = F.embedding(selection.fine_indices, self.second_pos_embed[0, 1:])  # (B, 4k, D)
        fine = backbone.embed_patches(images, selection.fine_indices, mix) + positions
        rest = remaining_cells(selection.cells, self.grid)  # (B, g*g - k)
        coarse = take(first.inputs, rest)
        class_token = backbone.cls_token + self.second_pos_embed[:, :1]
        class_token = class_token.expand(images.shape[0], -1, -1)
        if reuse is not None:
            reused = reuse(first.outputs if reuse.to_class_token else first.outputs[:, 1:])
            if reuse.to_class_token:
                class_token, reused = class_token + reused[:, :1], reused[:, 1:]
            if reuse.to_coarse:
                coarse = coarse + take(reused, rest)
            fine = fine + take(reused, coarse_cell(selection.fine_indices, self.grid))
        tokens = [class_token, fine, coarse] if self.background else [class_token, fine]
        # (B, 1 + 4k + g*g - k, D)
        sequence = torch.cat([part.to(fine) for part in tokens], dim=1)
        reducer = self.reducer_of("second")
        layout = None if reducer is None else self._second_layout(selection.fine_indices, rest)
        run = backbone.run(sequence, reducer=reducer, layout=layout)
        return SecondPass(*backbone.classify(backbone.answering(run)))

    def reducer_of(self, stage: str) -> Reducer | None:
        """What shortens the sequence of the "first" or "second" pass."""
        return self.reducer if stage in self.reduced_passes else None

    def _first_layout(self, device: torch.device) -> Layout:
        cells = torch.arange(self.grid**2, device=device)[None]
        return Layout(1, centres(cells, self.grid, self.grid), self.first_pos_embed[:, 1:])

    def _second_layout(self, fine_indices: Tensor, rest: Tensor) -> Layout:
        """Of fine tokens, then coarse ones, on one image."""
        fine = centres(fine_indices, 2 * self.grid, 2 * self.grid)
        positions = F.embedding(fine_indices, self.second_pos_embed[0, 1:])
        if not self.background:
            return Layout(1, fine, positions)
        coarse = centres(rest, self.grid, self.grid)
        coarse_positions = F.embedding(rest, self.first_pos_embed[0, 1:])
        return Layout(
            1, torch.cat([fine, coarse], dim=1), torch.cat([positions, coarse_positions], dim=1)
        )

    def _check_size(self, coarse_images: Tensor) -> None:
        height, width = coarse_images.shape[-2:]
        if (2 * height, 2 * width) != (self.image_size, self.image_size):
            raise ValueError(
                f"images of {2 * height} x {2 * width} pixels, but this model has "
                f"image_size={self.image_size}; create it with the image_size of the data"
            )


def _kept(run: Callable[..., Any]) -> Callable[..., Any]:
    """CUDA graphs write every time into the same memory: what they return is copied out of it."""
    return lambda *args: tree_map_only(Tensor, Tensor.clone, run(*args))
