"""Token reduction for a ViT of timm in one line, and back."""

import copy
from typing import Any, NamedTuple

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lfvit.errors import ConfigError
from lfvit.models.blocks import (
    BlocksOutput,
    Layout,
    TokenState,
    patch_centers,
    run_blocks,
    unsupported_blocks,
)
from lfvit.models.reducers import REDUCERS, Reducer
from lfvit.utils.validation import check_choice, validate

DROPPED = "a head that reads patch tokens, some of which the method drops"


def reduce(model: nn.Module, method: str, **options: Any) -> nn.Module:
    """Make a ViT of timm shorten its sequence block by block.

    Its weights and their names stay as they are; a method with weights of its own adds them under
    ``blocks.reducer``. Where nothing is removed, the logits are those of the model itself. Heads
    that read more than the class token see every patch, as the token that stands for it.

    Args:
        model: a timm `VisionTransformer` of any size, pooling and number of prefix tokens; changed
            in place. The two-pass models take a ``reducer`` in `lfvit.create_model` instead.
        method: such as "frequency", "evit" or "tome", a name in `lfvit.models.reducers.REDUCERS`.
        **options: of the method, see its class.

    Returns:
        The same model.

    Raises:
        ConfigError: an unknown method or option, or a model whose blocks cannot be taken apart
            without changing what they compute; the message says what is in the way.
    """
    check_choice("method", method, REDUCERS)
    if not isinstance(model, VisionTransformer):
        raise ConfigError(
            f"cannot reduce a {type(model).__name__}: a VisionTransformer of timm is needed. "
            "For lf_vit and cf_vit pass reducer= to lfvit.create_model"
        )
    vit: Any = model
    _refuse_inexact(vit, method)
    cls = REDUCERS[method]
    reducer = cls(validate(cls.settings_type, options, "reducer"), vit)
    if reducer.drops and reads_patches(vit):
        raise ConfigError(
            f"{method} cannot be exact on this {type(vit).__name__}: it has {DROPPED}"
        )
    like = next(vit.blocks.parameters())
    vit.blocks = ReducedBlocks(vit, reducer.to(like.device, like.dtype))
    return model


def restore(model: nn.Module) -> nn.Module:
    """Undo `reduce`: the model with its weights as they are now, without the reducer's own.

    Raises:
        ConfigError: the model is not reduced.
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, ReducedBlocks):
        raise ConfigError(f"this {type(model).__name__} is not reduced, so nothing can be restored")
    model.blocks = nn.Sequential(*blocks.originals)
    model.blocks.training = blocks.training
    return model


def unreduced(model: nn.Module) -> nn.Module:
    """A copy of a one-pass or two-pass model without its reducer."""
    model = copy.deepcopy(model)
    if isinstance(getattr(model, "blocks", None), ReducedBlocks):
        return restore(model)
    model.reducer = None  # type: ignore[assignment]
    return model


class TokensOutput(NamedTuple):
    """A one-pass model's output, and the tokens that it was read from.

    logits: (B, C). tokens: (B, n, D), patch tokens after the final norm. state: of the reducer.
    """

    logits: Tensor
    tokens: Tensor
    state: TokenState | None


def forward_tokens(vit: Any, images: Tensor) -> TokensOutput:
    """``vit(images)``, for a head that reads the prefix tokens alone, with its patch tokens."""
    tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
    state = None
    if isinstance(vit.blocks, ReducedBlocks):
        tokens, _, state = vit.blocks.run(tokens)
    else:
        tokens = vit.blocks(tokens)
    tokens = vit.norm(tokens)
    return TokensOutput(vit.forward_head(tokens), tokens[:, vit.num_prefix_tokens :], state)


class ReducedBlocks(nn.Module):
    """Takes the place of ``vit.blocks``: the same blocks under the same names, run with a reducer.

    It cannot be iterated over, so that no code runs the blocks one by one and silently gets the
    unreduced model.
    """

    def __init__(self, vit: Any, reducer: Reducer) -> None:
        super().__init__()
        for name, block in vit.blocks.named_children():
            self.add_module(name, block)
        self.reducer = reducer.train(vit.training)
        self.training = vit.training
        # whose head and image size may change later; in a tuple, so that it is no module of this
        # one: its parameters would appear twice
        self._vit = (vit,)

    @property
    def originals(self) -> list[Any]:
        """The blocks, in order."""
        return [block for name, block in self.named_children() if name != "reducer"]

    def __len__(self) -> int:
        return len(self.originals)

    def __getitem__(self, index: Any) -> Any:  # iteration comes here too
        raise ConfigError(
            "the blocks of a reduced model do not run one by one, as gradient checkpointing, "
            "attention masks and intermediate features need it; call lfvit.restore(model) first"
        )

    def forward(self, tokens: Tensor) -> Tensor:
        tokens, _, state = self.run(tokens)
        if state is None or not self.reducer.unmerges or not reads_patches(self._vit[0]):
            return tokens
        if self.reducer.drops:
            raise ConfigError(f"the model now has {DROPPED}; call lfvit.restore(model) first")
        return state.unmerge(tokens)

    def run(self, tokens: Tensor) -> BlocksOutput:
        """All blocks on (B, num_prefix_tokens + n, D)."""
        (vit,) = self._vit
        rows, columns = vit.patch_embed.grid_size
        n = tokens.shape[1] - vit.num_prefix_tokens
        if n != rows * columns:
            raise ConfigError(
                f"{n} patches came in, but this reduced model has a grid of {rows} x {columns}; "
                "build it for the image size in use"
            )
        indices = torch.arange(rows * columns, device=tokens.device)[None]
        pos_embed = vit.pos_embed
        if pos_embed is not None:  # those of prefix tokens come first
            pos_embed = pos_embed[:, pos_embed.shape[1] - rows * columns :]
        layout = Layout(patch_centers(indices, rows, columns), pos_embed)
        return run_blocks(
            self.originals, tokens, vit.num_prefix_tokens, reducer=self.reducer, layout=layout
        )


def reads_patches(vit: Any) -> bool:
    """Whether the head of a ViT reads patch tokens, and not the prefix alone."""
    return vit.global_pool != "token" or vit.attn_pool is not None or hasattr(vit, "aux_head")


def _refuse_inexact(vit: Any, method: str) -> None:
    """Refuse a ViT whose logits would change even if the method removed nothing."""
    reducer = REDUCERS[method]
    again = isinstance(vit.blocks, ReducedBlocks)
    blocks = None if again else unsupported_blocks(vit)
    reasons = {
        "a reducer already, see lfvit.restore": again,
        str(blocks): blocks is not None,
        "gradient checkpointing, which runs the blocks one by one": vit.grad_checkpointing,
        "patch dropout, after which the grid is unknown": not isinstance(
            vit.patch_drop, nn.Identity
        ),
        "a grid that varies with the image": getattr(vit, "dynamic_img_size", False),
        "no class token, whose attention the method goes by": (
            reducer.needs_class_token and vit.cls_token is None
        ),
    }
    if found := [reason for reason, applies in reasons.items() if applies]:
        raise ConfigError(
            f"{method} cannot be exact on this {type(vit).__name__}: it has {'; '.join(found)}"
        )
