"""Token reduction for a ViT of timm in one line, and back."""

import copy
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from lfvit.errors import ConfigError
from lfvit.models.reduction.registry import REDUCERS, Layout, Reducer, Shape, centres
from lfvit.models.reduction.run import Run, run_blocks
from lfvit.utils.validation import check_choice, check_names

DROPPED = "a head that reads patch tokens, some of which the method drops"


def reduce(model: nn.Module, method: str, **options: Any) -> nn.Module:
    """Make a ViT of timm shorten its sequence block by block.

    Its weights and their names stay as they are; a method with weights of its own ("frequency",
    "dynamic_vit") adds them under ``blocks.reducer``. Where nothing is removed, the logits are
    those of the model itself. Heads that read more than the class token see every patch, as the
    token that stands for it.

    Args:
        model: a timm `VisionTransformer` of any size, pooling and number of prefix tokens; changed
            in place. The two-pass models take a ``reducer`` in `lfvit.create_model` instead.
        method: "frequency", "evit", "tome", "dynamic_vit", or a registered one of your own.
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
    reasons = list(_in_the_way(vit, REDUCERS[method]))
    if reasons:
        raise ConfigError(
            f"{method} cannot be exact on this {type(model).__name__}: it has {'; '.join(reasons)}"
        )
    if "name" in options:
        raise ConfigError(f"{method} has no setting 'name'; the method is the second argument")
    reducer = build_reducer({"name": method, **options}, shape_of(vit.blocks))
    like = next(vit.blocks.parameters())
    reducer.to(like.device, like.dtype)
    vit.blocks = ReducedBlocks(vit, reducer)
    return model


def restore(model: nn.Module) -> nn.Module:
    """Undo `reduce`: the model with its weights as they are now, without the reducer's own.

    Raises:
        ConfigError: the model is not reduced.
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, ReducedBlocks):
        raise ConfigError(f"this {type(model).__name__} is not reduced, so nothing can be restored")
    model.blocks = nn.Sequential(*blocks.each)
    model.blocks.training = blocks.training
    return model


def unreduced(model: nn.Module) -> nn.Module:
    """A copy of a one-pass or two-pass model without its reducer."""
    model = copy.deepcopy(model)
    if isinstance(getattr(model, "blocks", None), ReducedBlocks):
        return restore(model)
    if getattr(model, "reducer", None) is not None:
        model.reducer = None  # type: ignore[assignment]
    return model


def answer(vit: Any, images: Tensor) -> tuple[Tensor, Tensor | None, Run | None]:
    """A one-pass model's logits, as ``vit(images)`` gives them, and what a learned reducer needs.

    Returns:
        logits (B, C); the patch tokens (B, n, D) after the final norm, and the run that made them,
        None where the head reads patch tokens.
    """
    if reads_patches(vit):
        return vit(images), None, None
    tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
    blocks = vit.blocks
    run = blocks.run(tokens) if isinstance(blocks, ReducedBlocks) else Run(blocks(tokens), [], None)
    tokens = vit.norm(run.tokens)
    return vit.forward_head(tokens), tokens[:, vit.num_prefix_tokens :], run


def build_reducer(settings: Mapping[str, Any], shape: Shape) -> Reducer:
    """A registered reducer from its name and options.

    Raises:
        ConfigError: an unknown name or option, or a value out of range.
    """
    options = dict(settings)
    name = options.pop("name", None)
    check_choice("reducer.name", name, REDUCERS)
    known = [n for n in inspect.signature(REDUCERS[name]).parameters if n != "shape"]
    check_names(f"reducer={name}", options, known)
    return REDUCERS[name](shape, **options)


def shape_of(blocks: Any) -> Shape:
    """The sizes of a ViT, from its blocks."""
    attn = blocks[0].attn
    return Shape(len(blocks), attn.num_heads, attn.head_dim, attn.qkv.in_features)


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
        # in a tuple, so that it is no module of this one: its parameters would appear twice
        self._vit = (vit,)

    @property
    def vit(self) -> Any:
        """The model these are the blocks of: its head and its image size may change later."""
        return self._vit[0]

    @property
    def each(self) -> list[Any]:
        """The blocks, in order."""
        return [block for name, block in self.named_children() if name != "reducer"]

    def __len__(self) -> int:
        return len(self.each)

    def __iter__(self) -> Iterator[Any]:
        raise ConfigError(
            "the blocks of a reduced model do not run one by one, as gradient checkpointing, "
            "attention masks and intermediate features need it; call lfvit.restore(model) first"
        )

    def __getitem__(self, index: Any) -> Any:
        return self.__iter__()

    def forward(self, tokens: Tensor) -> Tensor:
        if not reads_patches(self.vit):
            return self.run(tokens).tokens
        if self.reducer.drops:
            raise ConfigError(f"the model now has {DROPPED}; call lfvit.restore(model) first")
        run = self.run(tokens)
        return run.expand(run.tokens)

    def run(self, tokens: Tensor) -> Run:
        """(B, prefix + n, D) through all blocks."""
        prefix, (rows, columns) = self.vit.num_prefix_tokens, self.vit.patch_embed.grid_size
        if tokens.shape[1] != prefix + rows * columns:
            raise ConfigError(
                f"{tokens.shape[1] - prefix} patches came in, but this reduced model has a grid of "
                f"{rows} x {columns}; build it for the image size in use"
            )
        numbers = torch.arange(rows * columns, device=tokens.device)[None]
        positions = self.vit.pos_embed
        if positions is not None:  # those of the prefix come first, where there are any
            positions = positions[:, positions.shape[1] - rows * columns :]
        layout = Layout(prefix, centres(numbers, rows, columns), positions)
        return run_blocks(self.each, tokens, reducer=self.reducer, layout=layout)


def reads_patches(vit: Any) -> bool:
    """Whether the head of a ViT reads patch tokens, and not the prefix alone."""
    return vit.global_pool != "token" or vit.attn_pool is not None or hasattr(vit, "aux_head")


def foreign_blocks(vit: Any) -> Iterator[str]:
    """Parts of a timm ViT's blocks that this project's own loop does not know."""
    for block in getattr(vit.blocks, "each", vit.blocks):
        attn = getattr(block, "attn", None)
        if type(block) is not Block or type(attn) is not Attention:
            yield f"blocks of type {type(block).__name__} with {type(attn).__name__}"
            return
        if getattr(attn, "gate", None) is not None:
            yield "gated attention"
            return
        if any(_hooked(part) for part in (block, attn)):
            yield "blocks with hooks or a forward of their own, which would not run"
            return


def _hooked(module: nn.Module) -> bool:
    """Whether calling the module does more, or something else, than its class's forward."""
    after = module._forward_hooks, module._backward_hooks
    before = module._forward_pre_hooks, module._backward_pre_hooks
    return any(after) or any(before) or "forward" in vars(module)


def _in_the_way(vit: Any, method: type[Reducer]) -> Iterator[str]:
    if isinstance(vit.blocks, ReducedBlocks):
        yield "a reducer already, see lfvit.restore"
        return
    yield from foreign_blocks(vit)
    if vit.grad_checkpointing:
        yield "gradient checkpointing, which runs the blocks one by one"
    if not isinstance(vit.patch_drop, nn.Identity):
        yield "patch dropout, after which the grid is unknown"
    if getattr(vit, "dynamic_img_size", False):
        yield "a grid that varies with the image"
    if method.needs_class_token and vit.cls_token is None:
        yield "no class token, whose attention the method goes by"
    if method.drops and reads_patches(vit):
        yield DROPPED
