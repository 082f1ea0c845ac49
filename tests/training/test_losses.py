"""The two-pass loss, written out, and where its gradients go."""

import torch

from lfvit.training.losses import pass_losses


def two_pass_loss(first, second, *arguments):
    return sum(pass_losses([first, second], *arguments))


def logits():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(4, 6, generator=generator, requires_grad=True) for _ in range(2))
    targets = torch.rand(4, 6, generator=generator).softmax(1)
    return first, second, targets


def test_ce_kl_is_the_papers_sum():
    first, second, targets = logits()
    p1, p2 = first.softmax(1), second.softmax(1)
    expected = 0
    for i in range(4):
        for c in range(6):
            expected = expected - targets[i, c] * p2[i, c].log()
            expected = expected + p2[i, c] * (p2[i, c].log() - p1[i, c].log())
    torch.testing.assert_close(two_pass_loss(first, second, targets), expected / 4)


def test_the_first_pass_does_not_teach_the_second():
    first, second, targets = logits()
    two_pass_loss(first, second, targets).backward()
    alone = second.detach().clone().requires_grad_()
    torch.nn.functional.cross_entropy(alone, targets).backward()
    torch.testing.assert_close(second.grad, alone.grad)
    torch.testing.assert_close(first.grad, (first.softmax(1) - second.softmax(1)).detach() / 4)


def test_ce_ce_and_class_indices():
    first, second, _ = logits()
    targets = torch.tensor([0, 1, 2, 3])
    expected = torch.nn.functional.cross_entropy(first, targets)
    expected = expected + torch.nn.functional.cross_entropy(second, targets)
    torch.testing.assert_close(two_pass_loss(first, second, targets, "ce_ce"), expected)
