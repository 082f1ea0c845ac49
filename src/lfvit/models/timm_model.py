"""A two-pass model called as timm calls its models: images (B, 3, S, S) -> logits (B, C)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfvit.errors import ConfigError
from lfvit.models.factory import create_model
from lfvit.models.two_pass import TwoPassViT
from lfvit.utils.validation import check_choice

OF_TIMM = {"pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
"""Arguments of `timm.create_model` for weights, which those of the backbone need not."""

AS_THEY_ARE: dict[str, Any] = {"features_only": False, "drop_rate": 0.0, "global_pool": "token"}
"""What timm's scripts may pass, and the only value that there is."""


class TimmTwoPassViT(TwoPassViT):
    """A `TwoPassViT` for loops that were written for models of one pass.

    In evaluation `forward` stops early at ``threshold``, without gradients. In training it gives
    the logits of the last pass, and their gradient also carries the loss of the first pass,
    KL(last || first): any loss of these logits trains both, as in LF-ViT Eq. 12. A gradient scaler
    (float16) does not scale that part; use bfloat16 or float32.
    """

    threshold: float
    num_classes: int

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        if not self.training:
            return self.infer(images, self.threshold).logits
        output = super().forward(images)
        first, last = output.logits
        targets = last.detach().log_softmax(dim=1)
        loss = F.kl_div(first.log_softmax(dim=1), targets, reduction="batchmean", log_target=True)
        return _WithLoss.apply(last, loss)

    def get_classifier(self) -> nn.Module:
        return self.backbone.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head, of timm's initialisation."""
        check_choice("global_pool", global_pool or "token", ["token"])
        head = nn.Linear(self.backbone.embed_dim, num_classes) if num_classes else nn.Identity()
        self.backbone.head = head.to(self.first_pos_embed.device)
        self.num_classes = num_classes


class _WithLoss(torch.autograd.Function):
    """The logits as they are; a loss of the logits brings the gradient of another one along."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, loss: Tensor) -> Tensor:
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        return gradient, gradient.new_ones(())


def build(
    method: str,
    backbone: str,
    side: int,
    *,
    threshold: float = 0.7,
    in_chans: int = 3,
    img_size: int | tuple[int, int] | None = None,
    **options: Any,
) -> nn.Module:
    """The model of a name in timm.

    Args:
        method, backbone, side: see `lfvit.models.timm_names.NAMES`.
        threshold: eta, see `TwoPassViT.infer`.
        in_chans, img_size: as in timm; 3 channels, square images.
        **options: of `lfvit.create_model`, such as ``num_classes``, ``drop_path_rate``,
            ``region_size``, ``reducer``; ``pretrained`` starts from timm's weights of the backbone.

    Raises:
        ConfigError: naming the setting, its value and what would be valid.
    """
    sides = {img_size} if isinstance(img_size, int) else set(img_size or [side])
    if in_chans != 3 or len(sides) != 1:
        raise ConfigError(f"in_chans={in_chans}, img_size={img_size}: images are square, of RGB")
    if not threshold >= 0:
        raise ConfigError(f"threshold={threshold} is out of range; valid: 0 or more")
    for name, value in AS_THEY_ARE.items():
        check_choice(name, options.pop(name, value), [value])
    config = options.pop("pretrained_cfg", None)
    options = {key: value for key, value in options.items() if key not in OF_TIMM}
    model: Any = create_model(method, backbone=backbone, image_size=sides.pop(), **options)
    model.__class__ = TimmTwoPassViT  # the same weights and passes, another forward
    model.threshold, model.num_classes = threshold, options.get("num_classes", 1000)
    model.pretrained_cfg = model.default_cfg = config.to_dict() if config else {}
    return model
