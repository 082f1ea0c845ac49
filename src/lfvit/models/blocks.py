"""timm's blocks in parts: attention, the state of a shortened sequence, the loop over blocks.

`project_qkv`, then `attend`, then `project_out` is timm's own attention, fused where timm fuses it.
The full N x N matrix is computed by `attention_weights` alone.

Shapes: B images, N tokens, D width, H heads, d head width, n patch tokens at the start.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from lfvit.models.tokens import gather_tokens

if TYPE_CHECKING:
    from lfvit.models.reducers import Reducer


def project_qkv(attn: Any, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values: (B, N, D) -> three of (B, H, N, d)."""
    B, N, _ = tokens.shape
    qkv = attn.qkv(tokens).reshape(B, N, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    return attn.q_norm(q), attn.k_norm(k), v


def attend(attn: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T * scale + bias) v: (B, H, N, d).

    Args:
        bias: (B, 1, 1, N), added to the logits of every query; None adds nothing.
    """
    dropout = attn.attn_drop.p if attn.training else 0.0
    if attn.fused_attn:
        bias = None if bias is None else bias.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, bias, dropout_p=dropout, scale=attn.scale)
    return F.dropout(attention_weights(attn, q, k, bias), dropout) @ v


def attention_weights(attn: Any, q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T * scale + bias): (B, H, N, N), rows sum to one."""
    logits = q * attn.scale @ k.transpose(-2, -1)
    return (logits if bias is None else logits + bias.to(logits.dtype)).softmax(dim=-1)


@contextmanager
def trainable_attention(model: nn.Module, images: Tensor) -> Iterator[None]:
    """For a forward pass with gradients: unfused on a CPU in bfloat16, else as it is.

    There the backward pass of PyTorch's fused attention takes 2 to 5 times as long as that of the
    two products and the softmax, and the forward pass hardly less.
    """
    mixed = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    slow = images.device.type == "cpu" and (mixed or images.dtype == torch.bfloat16)
    fused: list[Any] = [m for m in model.modules() if slow and getattr(m, "fused_attn", False)]
    for attn in fused:
        attn.fused_attn = False
    try:
        yield
    finally:
        for attn in fused:
            attn.fused_attn = True


def project_out(attn: Any, x: Tensor) -> Tensor:
    """Heads concatenated and projected: (B, H, N, d) -> (B, N, D)."""
    B, H, N, d = x.shape
    return attn.proj_drop(attn.proj(attn.norm(x.transpose(1, 2).reshape(B, N, H * d))))


def class_attention(
    attn: Any, q: Tensor, k: Tensor, bias: Tensor | None = None, *, every_head: bool = False
) -> Tensor:
    """Attention of the first token to every other one, mean over heads, in float32: (B, N-1).

    One query against all keys. The softmax runs over all keys; the class token's attention to
    itself is dropped afterwards without rescaling (LF-ViT section 3.2, CF-ViT section 4.1).

    Args:
        every_head: not their mean: (B, H, N-1).
    """
    with torch.autocast(q.device.type, enabled=False):  # it would round to half precision again
        logits = (q[:, :, :1].float() * attn.scale) @ k.float().transpose(-2, -1)  # (B, H, 1, N)
        if bias is not None:
            logits = logits + bias
    heads = logits.softmax(dim=-1)[:, :, 0, 1:]  # (B, H, N-1)
    return heads if every_head else heads.mean(dim=1)


def padding_bias(is_token: Tensor, num_prefix_tokens: int) -> Tensor:
    """A bias with which no query attends to the places (B, n) without a token: (B, 1, 1, N).

    -1000 leaves no weight in a softmax, and no NaN where a sequence has no token at all.
    """
    bias = -1000.0 * (~is_token).float()
    return F.pad(bias, (num_prefix_tokens, 0))[:, None, None]


class Layout(NamedTuple):
    """Where the n patch tokens of a sequence are before the first block.

    centers: (1 or B, n, 2), row and column of each patch's centre in the image, in [0, 1).
    pos_embed: (1 or B, n, D), their position embeddings; None if the model has none.
    """

    centers: Tensor
    pos_embed: Tensor | None


def patch_centers(indices: Tensor, rows: int, columns: int) -> Tensor:
    """Row-major indices (B, n) into a grid of patches -> `Layout.centers` (B, n, 2)."""
    row, column = (indices // columns + 0.5) / rows, (indices % columns + 0.5) / columns
    return torch.stack([row, column], dim=-1)


class TokenState(NamedTuple):
    """The patch tokens of a shortened sequence, and what became of the n it started with.

    source: (B, n) long, for each patch token of the start the index, 0 to num_tokens - 1, of the
        token that now stands for it.
    num_tokens: patch tokens now.
    num_prefix_tokens: tokens before them (class, distillation, register), never reduced.
    layout: of the sequence at the start.
    memory: whatever the reducer needs to remember.
    """

    source: Tensor
    num_tokens: int
    num_prefix_tokens: int
    layout: Layout
    memory: Any = None

    @property
    def num_patches(self) -> int:
        """n, the patch tokens before the first block."""
        return int(self.source.shape[1])

    def size(self) -> Tensor:
        """How many patch tokens of the start each token stands for: (B, num_tokens) float."""
        ones = torch.ones_like(self.source, dtype=torch.float32)
        zeros = ones.new_zeros(self.source.shape[0], self.num_tokens)
        return zeros.scatter_add(1, self.source, ones)

    def remap(self, index: Tensor, num_tokens: int, memory: Any = None) -> "TokenState":
        """After a reduction to `num_tokens` that moves patch token i to ``index[:, i]``."""
        source = index.gather(1, self.source)
        return self._replace(source=source, num_tokens=num_tokens, memory=memory)

    def keep(self, kept: Tensor, num_tokens: int) -> "TokenState":
        """After a reduction that puts the tokens kept (B, k) first; the last one is the others'."""
        B, k = kept.shape
        index = kept.new_full((B, self.num_tokens), num_tokens - 1)
        new = torch.arange(k, device=kept.device).expand_as(kept)
        return self.remap(index.scatter(1, kept, new), num_tokens)

    def spread(self, attention: Tensor) -> Tensor:
        """Attention of the tokens (B, num_tokens), divided among the patches they stand for.

        Returns:
            (B, n), with the same sum.
        """
        return (attention / self.size().clamp(min=1)).gather(1, self.source)

    def unmerge(self, tokens: Tensor) -> Tensor:
        """A token for every patch of the start: (B, N, D) -> (B, num_prefix_tokens + n, D)."""
        prefix, patches = tokens.tensor_split([self.num_prefix_tokens], dim=1)
        return torch.cat([prefix, gather_tokens(patches, self.source)], dim=1)


class BlocksOutput(NamedTuple):
    """What comes out of the blocks.

    tokens: (B, N, D) before the final norm.
    class_attention: one (B, n) per counted block.
    state: of the reducer; None without one.
    """

    tokens: Tensor
    class_attention: list[Tensor]
    state: TokenState | None


def run_blocks(
    blocks: Iterable[Any],
    tokens: Tensor,
    num_prefix_tokens: int,
    *,
    reducer: "Reducer | None" = None,
    layout: Layout | None = None,
    class_attention_from: int | None = None,
) -> BlocksOutput:
    """timm's pre-norm blocks on tokens (B, N, D), with and without a reducer.

    Args:
        blocks: timm `Block`s.
        tokens: prefix tokens first, the class token before all others.
        num_prefix_tokens: before the n patch tokens.
        reducer: shortens the sequence; needs `layout`.
        class_attention_from: collect the class attention of the blocks from this index on; None
            collects none. Selectors choose by it: it has no gradient.
    """
    rows: list[Tensor] = []
    state: Any = None
    bias = metric = None
    if reducer is not None:
        if layout is None:
            raise ValueError("a reducer needs the layout of the sequence")
        n = int(layout.centers.shape[1])  # a plain number, also while tracing
        source = torch.arange(n, device=tokens.device).expand(tokens.shape[0], -1)
        state = reducer.start(TokenState(source, n, num_prefix_tokens, layout))
    for index, block in enumerate(blocks):
        reducing = reducer is not None and index in reducer.blocks
        if reducer is not None:
            if reducing:
                tokens, state = reducer.before_block(index, tokens, metric, state)
            bias = reducer.attention_bias(state)
        q, k, v = project_qkv(block.attn, block.norm1(tokens))  # (B, H, N, d) each
        if class_attention_from is not None and index >= class_attention_from:
            with torch.no_grad():
                row = class_attention(block.attn, q, k, bias)[:, num_prefix_tokens - 1 :]
                rows.append(row if state is None else state.spread(row))  # (B, n)
        if reducer is None:
            x = attend(block.attn, q, k, v)  # (B, H, N, d)
        else:
            x, metric = reducer.attention(index, block.attn, q, k, v, bias, state)
        tokens = tokens + block.drop_path1(block.ls1(project_out(block.attn, x)))
        if reducer is not None and reducing:
            tokens, state = reducer.reduce_tokens(index, tokens, metric, state)
        tokens = tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))
    if reducer is not None:
        tokens, state = reducer.finish(tokens, state)
    return BlocksOutput(tokens, rows, state)


def unsupported_blocks(vit: Any) -> str | None:
    """What of a timm ViT's blocks `run_blocks` would compute differently; None if nothing."""
    for block in vit.blocks:
        attn = getattr(block, "attn", None)
        if type(block) is not Block or type(attn) is not Attention:
            return f"blocks of type {type(block).__name__} with {type(attn).__name__}"
        if getattr(attn, "gate", None) is not None:
            return "gated attention"
        for module in (block, attn):
            if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
                return "blocks with hooks or a forward of their own, which would not run"
    return None
