"""Means over the images of all processes: what makes several learn what one would.

Every process computes the loss of its own images, and DDP averages the gradients. That is the
gradient of the whole batch if a loss is a mean over images, and a process with more of them counts
for more (`share_of_batch`). What is normalised by anything else needs `mean_over_images`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_absent = False


def world_size() -> int:
    """How many processes train together; 1 before they have met."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextmanager
def absent() -> Iterator[None]:
    """Go through the motions without being counted: for a process that has no image of a batch,
    while the others wait for it in every sum over the processes.
    """
    global _absent
    _absent = True
    try:
        yield
    finally:
        _absent = False


def counted() -> bool:
    """Whether this process has images of the batch, see `absent`."""
    return not _absent


def gathered(part: Sequence[Any]) -> list[Any]:
    """The lists of all processes in the order of ranks, as one, in every process."""
    if world_size() == 1:
        return list(part)
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, list(part))
    return [item for found in parts for item in found]


def share_of_batch(images: int, device: torch.device) -> Tensor | float:
    """What to multiply the mean loss of this process's images by before gradients are averaged.

    1 where all processes have equally many, 0 where this one has none.
    """
    if world_size() == 1:
        return 1.0
    own = torch.tensor(float(images), device=device)
    return own * world_size() / summed(own).clamp(min=1)


def mean_over_images(values: Tensor) -> Tensor:
    """The mean of values (B,), one per image, over the images of all processes: a scalar."""
    if world_size() == 1:
        return values.mean()
    total, images = summed(_counted(torch.stack([values.sum(), values.new_tensor(len(values))])))
    return total / images.clamp(min=1)


def summed(values: Tensor) -> Tensor:
    """The sum over all processes, with its gradient."""
    return _Sum.apply(values)


def _counted(sums: Tensor) -> Tensor:
    return sums * 0 if _absent else sums  # keeps its gradient, which the others sum as well


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _Sum.forward(ctx, grads[0].contiguous())


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation whose statistics in training are those of all processes' images.

    PyTorch's SyncBatchNorm does the same, on GPUs only. Weights and buffers are BatchNorm2d's.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(input)
        x = input.float()  # (B, C, H, W)
        count = x.new_full((1,), x.numel() / x.shape[1])
        sums = summed(_counted(torch.cat([x.sum((0, 2, 3)), count])))
        n = sums[-1]
        mean = sums[:-1] / n  # (C,)
        x = x - mean[:, None, None]
        variance = summed(_counted(x.square().sum((0, 2, 3)))) / n
        self._follow(mean.detach(), variance.detach() * n / (n - 1))
        scale = self.weight * (variance + self.eps).rsqrt()
        return (x * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        buffers: Any = self
        buffers.num_batches_tracked.add_(1)
        buffers.running_mean.lerp_(mean, self.momentum)
        buffers.running_var.lerp_(variance, self.momentum)
