"""Predictions of models that are right more often than not."""

import torch
from torch.nn.functional import one_hot

from lfvit.measure.predictions import Predictions


def predicted(seed, n, classes=4, passes=2, ties=False):
    """The table of n images; with `ties` many have the same confidence in the first pass."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (n,), generator=generator)
    noise = torch.randn(passes, n, classes, generator=generator)
    logits = list((2 * noise + 2 * one_hot(targets, classes)).cumsum(0))  # evidence adds up
    if ties:
        logits[0] = logits[0].round()
    return Predictions(logits, targets).table()
