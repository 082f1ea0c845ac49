"""Settings of a training recipe, checked without PyTorch."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from lfvit.utils.validation import Settings

NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Schedule(Settings):
    """What a recipe says beyond epochs, optimizer, learning-rate scheduler and averaged weights.

    selection_start: when the second pass starts to select instead of seeing the whole image, in
    epochs (whole number) or as a fraction of all epochs (below 1). loss: of two passes, see
    `lfvit.training.losses`. lr_batch: images per optimizer step for which ``optimizer.lr`` is
    meant; the learning rate scales linearly with the global batch. drop_path_rate: stochastic depth
    of the last block. distill_weight: of the KL divergence from the teacher, which is the model as
    training found it, without its reducer. aux_weight: of the patch tokens' loss, for backbones
    with an auxiliary head; null is 0.5 there.
    """

    selection_start: NonNegative = 0
    loss: Literal["ce_kl", "ce_ce"] = "ce_kl"
    lr_batch: Annotated[int, Field(ge=1)] = 512
    drop_path_rate: Share = 0.0
    distill_weight: NonNegative = 0.0
    aux_weight: NonNegative | None = None

    @field_validator("selection_start")
    @classmethod
    def _whole_epochs(cls, value: float) -> float:
        if value > 1 and value % 1:
            raise ValueError("a whole number of epochs, or a fraction below 1")
        return value

    def selection_epoch(self, max_epochs: int) -> int:
        """First epoch (0-based) in which the second pass selects, of `max_epochs`."""
        start = self.selection_start
        return round(start * max_epochs) if 0 < start < 1 else int(start)
