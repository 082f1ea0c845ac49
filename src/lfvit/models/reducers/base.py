"""What a token reducer is: the hooks it has in a block, and the state of a shortened sequence.

Blocks are counted from 0 in the code and from 1 in settings, as in the papers.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lfvit.errors import ConfigError
from lfvit.models.attention import attend
from lfvit.models.registry import Registry
from lfvit.models.tokens import gather_tokens
from lfvit.utils.validation import Settings


class ViTDims(NamedTuple):
    """Sizes of the ViT that a reducer is built for."""

    depth: int
    num_heads: int
    head_dim: int
    embed_dim: int


class Layout(NamedTuple):
    """The n patch tokens of a sequence before the first block.

    num_prefix_tokens: tokens before them (class, distillation, register), never reduced.
    centers: (1 or B, n, 2), row and column of each patch's centre in the image, in [0, 1).
    pos_embed: (1 or B, n, D), their position embeddings; None if the model has none.
    """

    num_prefix_tokens: int
    centers: Tensor
    pos_embed: Tensor | None


class TokenState(NamedTuple):
    """The patch tokens of a shortened sequence, and what became of the n it started with.

    source: (B, n) long, for each patch token of the start the index, 0 to num_tokens - 1, of the
        token that now stands for it.
    num_tokens: patch tokens now.
    layout: of the sequence at the start.
    memory: whatever the reducer needs to remember.
    """

    source: Tensor
    num_tokens: int
    layout: Layout
    memory: Any = None

    @property
    def num_prefix_tokens(self) -> int:
        return self.layout.num_prefix_tokens

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


class Reducer(nn.Module):
    """Shortens the sequence of a ViT inside its blocks; the base class leaves it as it is.

    A subclass overrides what it changes. Every block calls, in this order, `before_block`,
    `attention_bias`, `attention` and `reduce_tokens`. What must be remembered of a sequence is in
    ``state.memory``: the module itself keeps nothing between calls.

    Args:
        settings: of the class's `settings_type`.
        dims: of the ViT.
    """

    settings_type: ClassVar[type[Settings]] = Settings
    needs_class_token: ClassVar[bool] = False
    learned: ClassVar[bool] = False  # training must add `loss`
    drops: ClassVar[bool] = False  # some patches have no token that stands for them

    def __init__(self, settings: Any = None, dims: ViTDims | None = None) -> None:
        super().__init__()
        self.settings = settings

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.settings or ())

    def start(self, state: TokenState) -> TokenState:
        """Set up ``state.memory`` before the first block."""
        return state

    def before_block(
        self, index: int, tokens: Tensor, state: TokenState
    ) -> tuple[Tensor, TokenState]:
        """Change the tokens (B, N, D) before block `index`."""
        return tokens, state

    def attention_bias(self, state: TokenState) -> Tensor | None:
        """(B, 1, 1, N), added to the attention logits of every query; None adds nothing."""
        return None

    def attention(
        self,
        index: int,
        attn: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        state: TokenState,
    ) -> tuple[Tensor, Any]:
        """Attended values (B, H, N, d), and the metric that `reduce_tokens` reduces by."""
        return attend(attn, q, k, v, bias), None

    def reduce_tokens(
        self, index: int, tokens: Tensor, metric: Any, state: TokenState
    ) -> tuple[Tensor, TokenState]:
        """Change the tokens (B, N, D) between attention and MLP of block `index`."""
        return tokens, state

    def loss(
        self, state: TokenState, tokens: Tensor | None, teacher: Tensor | None
    ) -> Tensor | None:
        """What training adds to the loss, weighted; None adds nothing.

        Args:
            state: after the last block.
            tokens: patch tokens (B, num_tokens, D) after the final norm.
            teacher: those (B, n, D) of the unreduced model, None without distillation.
        """
        return None

    def no_weight_decay(self) -> set[str]:
        """Parameters of the reducer without weight decay, beside biases and norms."""
        return set()


REDUCERS: Registry[type[Reducer]] = Registry()
"""Names of ``reducer.name`` -> class."""

reducer = REDUCERS.register


def patch_centers(indices: Tensor, rows: int, columns: int) -> Tensor:
    """Row-major indices (B, n) into a grid of patches -> `Layout.centers` (B, n, 2)."""
    row, column = (indices // columns + 0.5) / rows, (indices % columns + 0.5) / columns
    return torch.stack([row, column], dim=-1)


def reducing_blocks(blocks: Sequence[int] | None, depth: int) -> list[int]:
    """Blocks of the settings, from 1, as indices from 0.

    None is after a quarter, half and three quarters of the depth: 4, 7, 10 of 12 blocks, and 5, 9,
    13 of LV-ViT-S's 16.
    """
    default = sorted({depth * i // 4 + 1 for i in (1, 2, 3)})
    blocks = default if blocks is None else blocks
    if blocks[-1] > depth:
        raise ConfigError(
            f"reducer.blocks={list(blocks)}: the backbone has {depth} blocks; valid: such as "
            f"{default}"
        )
    return [block - 1 for block in blocks]


def per_block(name: str, values: list[Any], count: int) -> list[Any]:
    """One value for each of `count` blocks, from one for all of them or from `count`.

    Raises:
        ConfigError: another number of values.
    """
    if len(values) not in (1, count):
        raise ConfigError(f"reducer.{name}={values} needs one value per reducing block: {count}")
    return values * (count // len(values))
