"""The half-resolution view of the first pass."""

import torch.nn.functional as F
from torch import Tensor


def half_resolution(images: Tensor) -> Tensor:
    """Resize normalised images to half their side, as both papers' released code does.

    Bilinear with ``align_corners=True`` and no antialiasing, so the view keeps some aliasing of
    fine texture: the weights were trained with it.

    Args:
        images: (B, 3, S, S), normalised, S even.

    Returns:
        (B, 3, S/2, S/2)
    """
    side = images.shape[-1] // 2
    return F.interpolate(images, size=(side, side), mode="bilinear", align_corners=True)
