"""Settings of the reducers that come with the package; without PyTorch, like `models.settings`."""

from itertools import pairwise
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from lfvit.utils.validation import OneOrList, Settings

Share = Annotated[float, Field(gt=0, le=1)]


class BlockSettings(Settings):
    """Settings of reducers that work in some blocks only.

    blocks: the reducing blocks, from 1; None: 4, 7, 10 of 12, and the same shares of other depths.
    """

    blocks: list[PositiveInt] | None = None

    @field_validator("blocks")
    @classmethod
    def _ascending(cls, blocks: list[int] | None) -> list[int] | None:
        if blocks is not None and (not blocks or blocks != sorted(set(blocks))):
            raise ValueError("must be ascending block numbers from 1, such as [4, 7, 10]")
        return blocks


class KeepRateSettings(BlockSettings):
    """Settings of reducers that have a fixed number of tokens left.

    keep_rate: keep_rate^s of the patch tokens are left after the s-th reduction, rounded down.
    """

    keep_rate: Share = 0.7


class EViTSettings(BlockSettings):
    """Settings of EViT.

    keep_rate: share of the patch tokens kept in each reducing block.
    fuse_token: whether the others become one token, or are dropped.
    shrink_start, shrink_epochs: in training, everything is kept until epoch `shrink_start`, and
        the share falls to keep_rate along a cosine in the `shrink_epochs` after it; 0: keep_rate
        from the first epoch on.
    """

    keep_rate: Share = 0.7
    fuse_token: bool = True
    shrink_start: int = Field(10, ge=0)
    shrink_epochs: int = Field(0, ge=0)


class DynamicViTSettings(KeepRateSettings):
    """Settings of DynamicViT.

    ratio_weight: of the loss on the share of kept tokens (section 3.3).
    token_weight: of the mean squared distance of the kept tokens from a teacher's, with a teacher.
    """

    ratio_weight: float = Field(2.0, ge=0)
    token_weight: float = Field(0.5, ge=0)


class FrequencySettings(BlockSettings):
    """Settings of frequency-aware reduction.

    removed: share of the high-frequency tokens removed in each reducing block, or one per block.
    windows: w, for w * w DC tokens, or one per reducing block; each divides the one before. The
        published setting is 2, 1, 1, and 2, 2, 1 for ViT-S.
    w1_init, w2_init: initial values of w1, w2, which the paper does not give. 0 and -1 leave the
        attention of a pretrained model as it is.
    position_term: add the mean position embedding of the patches it replaces to a DC token.
    """

    removed: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], OneOrList] = Field([0.3])
    windows: Annotated[list[PositiveInt], OneOrList] = Field([2, 1, 1])
    w1_init: float = 0.0
    w2_init: float = -1.0
    position_term: bool = True

    @field_validator("windows")
    @classmethod
    def _nested(cls, windows: list[int]) -> list[int]:
        for before, after in pairwise(windows):
            if before % after:
                raise ValueError(
                    f"{after} does not divide {before}, so that its windows cut through earlier "
                    "ones; valid: such as [4, 2, 1]"
                )
        return windows


class PairSettings(Settings):
    """Settings of reducers that make one token of two.

    r: pairs merged per block, or one number per block; below 1, a share of the patch tokens. At
        most half of the tokens merge at once.
    slope: of a schedule over the blocks with r as its mean, in the released code's terms: from
        r * (1 - slope) to r * (1 + slope), rounded down. 0 is constant, -1 the paper's decreasing
        schedule.
    """

    r: Annotated[list[Annotated[float, Field(ge=0)]], OneOrList] = Field([13.0])
    slope: float = Field(0.0, ge=-1, le=1)

    @field_validator("r")
    @classmethod
    def _pairs_or_shares(cls, r: list[float]) -> list[float]:
        if any(number >= 1 and number % 1 for number in r):
            raise ValueError("must be whole numbers of pairs, or shares below 1")
        return r


class ToMeSettings(PairSettings):
    """Settings of ToMe.

    weighted_pool: whether a head that averages counts every patch, as the token that stands for
        it; false: every token once, as in the released patch for timm.
    proportional: add log(size) to the attention logits. The paper leaves it out for models trained
        as masked autoencoders and not fine-tuned.
    """

    weighted_pool: bool = True
    proportional: bool = True


class ToFuSettings(PairSettings):
    """Settings of ToFu.

    prune_blocks: so many blocks at the start prune, the others merge; None: half of them.
    """

    prune_blocks: int | None = Field(None, ge=0)


class DPCKNNSettings(KeepRateSettings):
    """Settings of DPC-KNN.

    neighbors: nearest tokens by whose distance density is estimated, the token itself among them.
    weighted: whether the tokens of a cluster are averaged with learned weights.
    """

    neighbors: PositiveInt = 5
    weighted: bool = True


class KMedoidsSettings(KeepRateSettings):
    """Settings of K-Medoids.

    iterations: of assigning tokens to medoids and choosing the medoids again.
    """

    iterations: PositiveInt = 3


class SinkhornSettings(KeepRateSettings):
    """Settings of Sinkhorn.

    temperature: of the similarities, epsilon of optimal transport with an entropy term.
    iterations: normalisations of rows and columns.
    """

    temperature: PositiveFloat = 1.0
    iterations: PositiveInt = 3


class EvoViTSettings(KeepRateSettings):
    """Settings of Evo-ViT.

    blocks: first blocks of the stages, from 2; None: 5 and 9 of 12.
    keep_rate: share of the patch tokens that are updated slowly in every stage.
    tradeoff: weight of a block's class attention in the average over blocks.
    """

    keep_rate: Share = 0.5
    tradeoff: Share = 0.5

    @field_validator("blocks")
    @classmethod
    def _not_first(cls, blocks: list[int] | None) -> list[int] | None:
        if blocks and blocks[0] == 1:
            raise ValueError("must begin after block 1, whose class attention it goes by")
        return blocks


class AViTSettings(Settings):
    """Settings of A-ViT. The values are those of the release for DeiT-Tiny.

    gate_scale, gate_center: a token's score after a block is sigmoid(scale * x - center), with x
        its first channel.
    ponder_weight: of the mean number of blocks that a token is in.
    prior_weight: of the divergence of the scores from a normal distribution over the blocks.
    target_depth: its mean, from 0; None: two thirds of the depth.
    """

    gate_scale: float = 10.0
    gate_center: float = 30.0
    ponder_weight: float = Field(5e-4, ge=0)
    prior_weight: float = Field(1e-3, ge=0)
    target_depth: int | None = Field(None, ge=1)


REDUCER_SETTINGS: dict[str, type[Settings]] = {
    "a_vit": AViTSettings,
    "ats": KeepRateSettings,
    "dpc_knn": DPCKNNSettings,
    "dynamic_vit": DynamicViTSettings,
    "evit": EViTSettings,
    "evo_vit": EvoViTSettings,
    "frequency": FrequencySettings,
    "k_medoids": KMedoidsSettings,
    "patch_merger": KeepRateSettings,
    "sinkhorn": SinkhornSettings,
    "sit": KeepRateSettings,
    "tofu": ToFuSettings,
    "tome": ToMeSettings,
    "topk": KeepRateSettings,
}
"""Of the reducers that come with the package; the class of another one names its own."""
