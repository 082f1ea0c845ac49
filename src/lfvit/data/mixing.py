"""What is done to whole training batches: random erasing, mixup, cutmix, label smoothing."""

import torch
from timm.data import Mixup
from timm.data.mixup import mixup_target
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from lfvit.data.augment import Augment


def mix(augment: Augment, images: Tensor, targets: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Random erasing, then mixup or cutmix.

    Args:
        augment: how much of it.
        images: (B, 3, S, S), changed in place.
        targets: (B,) class indices.
        classes: C.

    Returns:
        The images and (B, C) probabilities.
    """
    if augment.erasing:
        images = RandomErasing(augment.erasing, mode="pixel", device=images.device)(images)
    if augment.mixup or augment.cutmix:
        mixup = Mixup(
            augment.mixup,
            augment.cutmix,
            prob=augment.mix_prob,
            switch_prob=augment.mix_switch,
            label_smoothing=augment.label_smoothing,
            num_classes=classes,
        )
        pairs = len(images) - len(images) % 2  # an odd image out stays as it is
        if pairs:
            images[:pairs], mixed = mixup(images[:pairs], targets[:pairs])
            rest = mixup_target(targets[pairs:], classes, 1.0, augment.label_smoothing)
            return images, torch.cat([mixed, rest])
    return images, mixup_target(targets, classes, 1.0, augment.label_smoothing)
