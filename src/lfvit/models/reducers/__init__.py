"""Token reduction inside the blocks of a ViT: fewer tokens from block to block, the same weights.

A reducer is a subclass of `Reducer`, registered by name. To add one, put a class like `evit.EViT`
into a new file of this package under ``@reducer("name")``: models, the check of settings, the cost
counter and the tests over the registry pick it up.

Blocks are counted from 0 in the code and from 1 in settings, as in the papers.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lfvit.errors import ConfigError
from lfvit.models.blocks import Layout as Layout
from lfvit.models.blocks import TokenState as TokenState
from lfvit.models.blocks import attend
from lfvit.models.registry import REDUCERS as REDUCERS
from lfvit.models.registry import reducer as reducer
from lfvit.utils.validation import Settings

Reduced = tuple[Tensor, TokenState]
"""The tokens (B, N, D) after a reduction, and their state."""


class Reducer(nn.Module):
    """Shortens the sequence of a ViT inside its blocks; the base class leaves it as it is.

    A subclass overrides what it changes. Every block calls, in this order, `before_block`,
    `attention_bias`, `attention` and `reduce_tokens`; the first and the last only in the reducing
    blocks. `start` comes before all blocks, `finish` after them. What must be remembered of a
    sequence is in ``state.memory``: the module itself keeps nothing between calls.

    Args:
        settings: of the class's `settings_type`.
        vit: timm's ViT in whose blocks it will work, to read sizes off.

    Attributes:
        blocks: indices of the reducing blocks, from 0: the setting ``blocks``, and its default of a
            quarter, half and three quarters of the depth (with `parts` of 4); all blocks for a
            class without it.
        fixed_length: an adaptive reducer keeps the longest sequence there can be, see `longest`.

    Raises:
        ConfigError: more blocks than the ViT has.
    """

    settings_type: ClassVar[type[Settings]] = Settings
    needs_class_token: ClassVar[bool] = False
    learned: ClassVar[bool] = False  # training must add `loss`
    adaptive: ClassVar[bool] = False  # the number of tokens, and with it the cost, is the image's
    parts: ClassVar[int] = 4  # of the depth, between which it reduces
    drops: bool = False  # some patches have no token that stands for them
    unmerges: bool = True  # heads that read patches see every patch, not every token

    def __init__(self, settings: Any, vit: Any) -> None:
        super().__init__()
        self.settings = settings
        self.fixed_length = False
        depth = len(vit.blocks)
        self.blocks = list(range(depth))
        if hasattr(settings, "blocks"):  # 4, 7, 10 of 12 blocks, 5, 9, 13 of LV-ViT-S's 16
            default = sorted({depth * i // self.parts + 1 for i in range(1, self.parts)})
            blocks = settings.blocks or default
            if blocks[-1] > depth:
                raise ConfigError(
                    f"reducer.blocks={blocks}: the backbone has {depth} blocks; valid: such as "
                    f"{default}"
                )
            self.blocks = [block - 1 for block in blocks]

    def per_block(self, name: str) -> list[Any]:
        """A setting's value for each reducing block, from one for all of them or one for each.

        Raises:
            ConfigError: another number of values.
        """
        values, count = getattr(self.settings, name), len(self.blocks)
        if len(values) not in (1, count):
            raise ConfigError(
                f"reducer.{name}={values} needs one value per reducing block: {count}"
            )
        return values * (count // len(values))

    def num_left(self, index: int, n: int) -> int:
        """Patch tokens left of `n` after reducing block `index`, the s-th: n * keep_rate^s."""
        stage = self.blocks.index(index) + 1
        return max(int(round(self.settings.keep_rate**stage * n, 9)), 1)

    def longest(self, counts: Tensor, most: int) -> int:
        """Places that a batch needs for sequences of `counts` (B,) tokens, at most `most`.

        All of them while training and in compiled graphs, whose shapes must be known.
        """
        if self.training or self.fixed_length or torch.compiler.is_compiling():
            return most
        return max(int(counts.max()), 1)

    def start_batch(self, epoch: float) -> None:
        """Called before every batch of training, with the epochs done so far and their fraction."""

    def start(self, state: TokenState) -> TokenState:
        """Set up ``state.memory`` before the first block."""
        return state

    def before_block(self, index: int, tokens: Tensor, metric: Any, state: TokenState) -> Reduced:
        """Change the tokens (B, N, D) before reducing block `index`.

        metric: of the block before, see `attention`; None before the first.
        """
        return tokens, state

    def attention_bias(self, state: TokenState) -> Tensor | None:
        """(B, 1, 1, N), added to the attention logits of every query; None adds nothing."""
        return None

    def attention(
        self, index: int, attn: Any, q: Tensor, k: Tensor, v: Tensor, bias: Any, state: TokenState
    ) -> tuple[Tensor, Any]:
        """Attended values (B, H, N, d), and the metric that the tokens are reduced by."""
        return attend(attn, q, k, v, bias), None

    def reduce_tokens(self, index: int, tokens: Tensor, metric: Any, state: TokenState) -> Reduced:
        """Change the tokens (B, N, D) between attention and MLP of reducing block `index`."""
        return tokens, state

    def finish(self, tokens: Tensor, state: TokenState) -> Reduced:
        """Change the tokens (B, N, D) after the last block."""
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
