"""Spectra of maps whose spectrum is known, and slow loops for the rest."""

import math

import pytest
import torch

from lfvit.errors import ConfigError
from lfvit.measure.spectrum import (
    FLOOR,
    high_frequency_energy,
    high_frequency_set,
    relative_log_amplitude,
    similarity_to_dc,
)


def slow_relative_log_amplitude(image):
    """The definition for one map (g, g), written out with sums."""
    g = len(image)
    logs = {}
    for u in range(-(g // 2), (g + 1) // 2):
        for v in range(-(g // 2), (g + 1) // 2):
            total = sum(
                image[y, x].item()
                * complex(math.cos(a := 2 * math.pi * (u * y + v * x) / g), -math.sin(a))
                for y in range(g)
                for x in range(g)
            )
            logs[u, v] = math.log(abs(total))
    ring = [log for (u, v), log in logs.items() if max(abs(u), abs(v)) == g // 2]
    return sum(ring) / len(ring) - logs[0, 0]


@pytest.mark.parametrize("g", [2, 7])
def test_log_amplitude_equals_the_definition(g):
    tokens = torch.randn(2, g * g, 3, generator=torch.Generator().manual_seed(g)) + 0.5
    maps = tokens.transpose(1, 2).unflatten(2, (g, g))
    slow = [sum(slow_relative_log_amplitude(m) for m in image) / 3 for image in maps]
    torch.testing.assert_close(
        relative_log_amplitude(tokens), torch.tensor(slow), rtol=1e-4, atol=1e-4
    )


def test_a_constant_map_has_nothing_but_dc():
    flat = relative_log_amplitude(torch.full((1, 49, 4), 3.0))
    assert flat.item() == pytest.approx(math.log(FLOOR), abs=1e-4)
    assert relative_log_amplitude(torch.zeros(1, 49, 4)).item() == 0


def test_log_amplitude_has_no_unit_and_no_preferred_direction():
    tokens = torch.rand(2, 49, 5)
    turned = tokens.unflatten(1, (7, 7)).transpose(1, 2).flatten(1, 2)
    for same in (1e-3 * tokens, turned, tokens.flip(1)):
        torch.testing.assert_close(relative_log_amplitude(same), relative_log_amplitude(tokens))
    with pytest.raises(ConfigError, match="48 patch tokens are not a square grid"):
        relative_log_amplitude(tokens[:, :48])


def test_the_set_is_the_top_share_rounded_up():
    scores = torch.tensor([[0.1, 0.5, 0.2, 0.2, 0.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    high = high_frequency_set(scores, 0.5)
    assert high.tolist() == [[False, True, True, True, False], [True, True, True, False, False]]
    assert high_frequency_set(torch.rand(3, 196), 0.3).sum(dim=1).tolist() == [138] * 3
    assert high_frequency_set(torch.rand(1, 4), 0.999).sum() == 1
    with pytest.raises(ConfigError, match=r"removed=0\.1 of 5 tokens is less than one"):
        high_frequency_set(scores, 0.1)


def test_distances_from_dc_equal_a_loop():
    tokens = torch.randn(2, 6, 4) + 1
    for b, image in enumerate(tokens):
        mean = sum(image) / 6
        unit = sum(token.norm() ** 2 for token in image) / 6
        cosines = [(token @ mean / token.norm() / mean.norm()).item() for token in image]
        energies = [((token - mean).norm() ** 2 / unit).item() for token in image]
        assert similarity_to_dc(tokens)[b].tolist() == pytest.approx(cosines, abs=1e-5)
        assert high_frequency_energy(tokens)[b].tolist() == pytest.approx(energies, rel=1e-4)
