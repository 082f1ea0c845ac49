"""The table of token reducers, what each can change in a block, and what a shortened sequence is.

Blocks are counted from 0 in the code and from 1 in settings, as in the papers.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from lfvit.errors import ConfigError
from lfvit.models.attention import mix
from lfvit.models.indexing import take
from lfvit.utils.validation import check_whole


class Shape(NamedTuple):
    """The sizes of a ViT that a reducer may build on."""

    depth: int
    num_heads: int
    head_dim: int
    embed_dim: int


class Layout(NamedTuple):
    """Where the n patch tokens of a sequence lie in the image, before any block.

    prefix: tokens in front of them (class, distillation, register), never reduced.
    places: (1 or B, n, 2), row and column of each patch's centre, in [0, 1).
    positions: (1 or B, n, D), their position embeddings; None where the model has none.
    """

    prefix: int
    places: Tensor
    positions: Tensor | None


class Carried(NamedTuple):
    """What is left of the n patch tokens a sequence started with.

    owner: (B, n) long, for each patch token of the start the index of the one that now stands for
        it, in 0 .. length - 1.
    length: how many there are now.
    layout: of the sequence at the start.
    memory: what the reducer itself needs to remember.
    """

    owner: Tensor
    length: int
    layout: Layout
    memory: Any = None

    @property
    def prefix(self) -> int:
        return self.layout.prefix

    @property
    def start(self) -> int:
        """How many there were before the first block."""
        return int(self.owner.shape[1])

    def sizes(self) -> Tensor:
        """How many of the first patch tokens each one stands for: (B, length) float."""
        ones = torch.ones_like(self.owner, dtype=torch.float32)
        empty = ones.new_zeros(self.owner.shape[0], self.length)
        return empty.scatter_add(1, self.owner, ones)

    def moved(self, to: Tensor, length: int, memory: Any = None) -> "Carried":
        """After a reduction that puts patch token i at ``to[:, i]``, of `length` tokens."""
        return self._replace(owner=to.gather(1, self.owner), length=length, memory=memory)

    def spread(self, row: Tensor) -> Tensor:
        """Values of the tokens (B, length), shared equally among the ones each stands for: (B, n).

        Sums stay as they are: this is how class attention reaches the patches.
        """
        return (row / self.sizes().clamp(min=1)).gather(1, self.owner)

    def expand(self, tokens: Tensor) -> Tensor:
        """One token for every first patch token again: (B, N, D) -> (B, prefix + n, D)."""
        patches = take(tokens[:, self.prefix :], self.owner)
        return torch.cat([tokens[:, : self.prefix], patches], dim=1)


class Reducer(nn.Module):
    """Shortens the sequence of a ViT inside its blocks; this one leaves everything as it is.

    A subclass overrides what it changes. In each block, in this order: `enter`, `key_bias`,
    `attention`, `shorten`. It keeps nothing between calls: what it must remember of a sequence is
    in ``carried.memory``. `lengths` and `extra_macs` are for counting the cost.
    """

    needs_class_token: ClassVar[bool] = False
    learned: ClassVar[bool] = False  # training needs its `loss`
    drops: ClassVar[bool] = False  # leaves patches without a token that stands for them

    def start(self, carried: Carried) -> Carried:
        """Called once before the first block, to set up ``carried.memory``."""
        return carried

    def enter(self, index: int, tokens: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        """Change the tokens (B, N, D) before block `index`."""
        return tokens, carried

    def key_bias(self, carried: Carried) -> Tensor | None:
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
        carried: Carried,
    ) -> tuple[Tensor, Any]:
        """Mixed values (B, H, N, d), and whatever `shorten` wants to have seen of the attention."""
        return mix(attn, q, k, v, bias), None

    def shorten(
        self, index: int, tokens: Tensor, seen: Any, carried: Carried
    ) -> tuple[Tensor, Carried]:
        """Change the tokens (B, N, D) between attention and MLP."""
        return tokens, carried

    def loss(
        self, carried: Carried, tokens: Tensor | None, teacher: Tensor | None
    ) -> Tensor | None:
        """What training should add to the loss, already weighted; None adds nothing.

        Args:
            carried: as the last block left it.
            tokens: the patch tokens (B, length, D) after the final norm.
            teacher: those (B, n, D) of the unreduced model it learns from, if there is one.
        """
        return None

    def no_weight_decay(self) -> set[str]:
        """Parameters of its own that weight decay leaves alone, beside biases and norms."""
        return set()

    def lengths(self, index: int, count: int, start: int) -> tuple[int, int]:
        """Patch tokens in the attention and in the MLP of block `index`.

        Args:
            count: patch tokens that enter the block.
            start: patch tokens that entered the first block.
        """
        return count, count

    def extra_macs(self, index: int, count: int, start: int, prefix: int) -> int:
        """MACs of block `index` beyond its own products, if `count` patch tokens enter it."""
        return 0


REDUCERS: dict[str, type[Reducer]] = {}
"""Names of ``reducer.name`` -> class, built as ``cls(shape, **options)``."""

R = TypeVar("R", bound=type[Reducer])


def reducer(name: str) -> Callable[[R], R]:
    """Register a reducer under the name used by ``reducer.name`` and `lfvit.reduce`."""

    def register(cls: R) -> R:
        if name in REDUCERS:
            raise ValueError(f"two reducers are called {name!r}")
        REDUCERS[name] = cls
        return cls

    return register


def centres(patches: Tensor, rows: int, columns: int) -> Tensor:
    """Where patches of a grid lie: row-major numbers (B, n) -> `Layout.places` (B, n, 2)."""
    row, column = (patches // columns + 0.5) / rows, (patches % columns + 0.5) / columns
    return torch.stack([row, column], dim=-1)


def check_blocks(blocks: Sequence[int] | None, depth: int) -> list[int]:
    """Where to reduce: block numbers from 1, ascending; returned from 0.

    None is after a quarter, half and three quarters of the depth: 4, 7, 10 of 12 blocks, and 5, 9,
    13 of LV-ViT-S's 16.
    """
    if blocks is None:
        blocks = sorted({depth * i // 4 + 1 for i in (1, 2, 3)})
    if not isinstance(blocks, Sequence):
        raise ConfigError(f"reducer.blocks={blocks!r} must be a list, such as [4, 7, 10]")
    blocks = list(blocks)
    for block in blocks:
        check_whole("reducer.blocks", block, 1)
    if not blocks or blocks != sorted(set(blocks)) or blocks[-1] > depth:
        raise ConfigError(
            f"reducer.blocks={blocks} must be ascending block numbers from 1 to {depth}, such as "
            f"{[b + 1 for b in check_blocks(None, depth)]}"
        )
    return [block - 1 for block in blocks]
