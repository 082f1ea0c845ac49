"""Early exit over a stream of batches: second looks wait until there are enough of them."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lfvit.models.selection import Selection
from lfvit.models.two_stage import FirstPass, Inference, TwoStageViT
from lfvit.utils.validation import check_whole

Columns = tuple[Tensor | None, ...]
"""Images, then the fields of `FirstPass`, then those of `Selection`: K rows each, or None."""


class _Batch:
    """The answers of one batch, and how many of them are still missing."""

    def __init__(self, answers: Inference, missing: int) -> None:
        self.answers = answers._replace(logits=answers.logits.clone())
        self.missing = missing


class _Waiting(NamedTuple):
    """Images of one batch that wait for their second look; rows: (K,) their places in it."""

    batch: _Batch
    rows: Tensor
    columns: Columns

    def part(self, rows: slice) -> "_Waiting":
        return _Waiting(self.batch, self.rows[rows], _pick(self.columns, rows))


@torch.no_grad()
def infer_stream(
    model: TwoStageViT, batches: Iterable[Tensor], threshold: float, *, bucket: int
) -> Iterator[Inference]:
    """``model.infer`` on every batch, with second passes on `bucket` images of several batches.

    Answers come in the order of the batches, each as soon as it and all before it are complete.
    The last second pass is filled up with copies, so that compiled passes meet one size only.

    Args:
        model: the two-pass model.
        batches: images (B, 3, S, S), normalised.
        threshold: eta, see `TwoStageViT.infer`.
        bucket: images per second pass; as many as the first pass has keep the device as busy.

    Raises:
        ConfigError: a bucket that is no whole number above zero.
    """
    check_whole("bucket", bucket, 1)
    unanswered: deque[_Batch] = deque()
    waiting: list[_Waiting] = []
    for images in batches:
        first, answers = model.look_once(images, threshold)
        rest = (~answers.exited).nonzero()[:, 0]
        batch = _Batch(answers, len(rest))
        unanswered.append(batch)
        if len(rest):
            columns = _pick((images, *first, *answers.selection), rest)
            waiting.append(_Waiting(batch, rest, columns))
        while sum(len(part.rows) for part in waiting) >= bucket:
            waiting = _look_again(model, waiting, bucket)
        while unanswered and unanswered[0].missing == 0:
            yield unanswered.popleft().answers
    while waiting:
        waiting = _look_again(model, waiting, bucket)
    yield from (batch.answers for batch in unanswered)


def _look_again(model: TwoStageViT, waiting: list[_Waiting], bucket: int) -> list[_Waiting]:
    """One second pass on the first `bucket` of those that wait; returns the others."""
    now: list[_Waiting] = []
    room = bucket
    while waiting and room:
        part, *waiting = waiting
        if len(part.rows) > room:
            waiting = [part.part(slice(room, None)), *waiting]
            part = part.part(slice(room))
        now.append(part)
        room -= len(part.rows)
    numbers = torch.arange(bucket, device=now[0].rows.device).clamp(max=bucket - room - 1)
    joined: Any = [
        None if column[0] is None else torch.cat(column)[numbers]
        for column in zip(*(part.columns for part in now), strict=True)
    ]
    images, first = joined[0], FirstPass(*joined[1 : 1 + len(FirstPass._fields)])
    selection = Selection(*joined[1 + len(FirstPass._fields) :])
    second = model.second_pass(images, first, selection).logits
    for part, found in zip(
        now, second.split([len(part.rows) for part in now] + [room]), strict=False
    ):
        part.batch.answers.logits[part.rows] = found.to(part.batch.answers.logits.dtype)
        part.batch.missing -= len(part.rows)
    return waiting


def _pick(columns: Columns, rows: Tensor | slice) -> Columns:
    return tuple(None if column is None else column[rows] for column in columns)
