"""The needle set: generated photographs-to-be with one small badge that decides the class.

Every image is clutter (1/f noise in muted colours, soft and hard-edged shapes, a gradient of light)
with one bright badge somewhere in it.  The badge is easy to find at any resolution; what it *says*,
the pattern engraved in it, has a period of a few pixels.  On a large badge the pattern survives
halving the resolution, on a small one it does not: the images differ in how closely they have to be
looked at, which is what LF-ViT exploits.
"""

from functools import lru_cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from torch.utils.data import Dataset

Floats = NDArray[np.float32]
Box = tuple[int, int, int, int]

PATTERNS = (
    "horizontal stripes",
    "vertical stripes",
    "rising stripes",
    "falling stripes",
    "upright checks",
    "diamond checks",
    "rings",
    "plain",
)
SPLITS = ("train", "val")
MIN_IMAGE_SIZE = 48

BADGE_SIDE = (0.14, 0.36)  # side of the badge, smallest and largest, as a share of the image's side
PERIOD_PX = (2.3, 5.5)  # period of the pattern on the smallest and on the largest badge, in pixels
PERIOD_JITTER = 0.08  # the period varies by this share to either side,
ANGLE_JITTER = 0.14  # and the direction of the pattern by this angle in radians
RIM_SHARE = 0.13  # width of the badge's rim as a share of its radius
NUM_SHAPES = (5, 9)  # distractors in an image, fewest and most

INK = np.array([0.06, 0.05, 0.14], dtype=np.float32)
GILT = np.array([1.0, 0.84, 0.10], dtype=np.float32)
IVORY = np.array([1.0, 0.98, 0.92], dtype=np.float32)


class NeedleSet(Dataset[tuple[NDArray[np.uint8], int, Box]]):
    """Images whose class is the fine pattern of one badge, at any place and scale, in clutter.

    Nothing is stored: image `index` is drawn anew each time, from random numbers that depend only on
    `seed`, `split`, `index`, `image_size` and `num_classes`, so that any worker draws the same one.
    Class `index % num_classes` keeps the classes balanced.

    The side of the badge is uniform between 14% and 36% of the image's side.  The period of its
    pattern grows with it from 2.3 to 5.5 pixels, whatever `image_size` is: at half the resolution
    about half of the images keep too little of the pattern to be told apart.

    Args:
        num_images: how many images the set has, at least 1.
        image_size: side of the square images in pixels, at least 48.
        num_classes: how many of the patterns occur, 2 to 8, the first ones of `PATTERNS`.
        split: "train" or "val"; the two have no image in common.
        seed: a natural number; another one gives another set.

    Raises:
        ValueError: if an argument is outside its range.
    """

    def __init__(
        self,
        num_images: int,
        *,
        image_size: int = 112,
        num_classes: int = 8,
        split: str = "train",
        seed: int = 0,
    ) -> None:
        if num_images < 1:
            raise ValueError(f"num_images is {num_images}, but has to be at least 1")
        if image_size < MIN_IMAGE_SIZE:
            raise ValueError(f"image_size is {image_size}, but has to be at least {MIN_IMAGE_SIZE}")
        if not 2 <= num_classes <= len(PATTERNS):
            raise ValueError(f"num_classes is {num_classes}, but has to be 2 to {len(PATTERNS)}")
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}, but has to be one of {', '.join(SPLITS)}")
        if seed < 0:
            raise ValueError(f"seed is {seed}, but has to be at least 0")
        self.image_size = image_size
        self.split = split
        self.seed = seed
        self.classes: list[str] = list(PATTERNS[:num_classes])
        self.targets: list[int] = [index % num_classes for index in range(num_images)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int, Box]:
        return self.draw(index)

    def draw(self, index: int) -> tuple[NDArray[np.uint8], int, Box]:
        """Draw image `index`: RGB pixels (H, W, 3), class, and the badge's box.

        The box (x0, y0, x1, y1) is in pixels, without its last column x1 and row y1.

        Raises:
            IndexError: if `index` is not in 0 .. len(self) - 1.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index is {index}, but has to be 0 to {len(self) - 1}")
        target = self.targets[index]
        split = SPLITS.index(self.split)
        rng = np.random.default_rng(
            [self.seed, split, index, self.image_size, len(self.classes)],
        )
        scene = _background(rng, self.image_size)
        for _ in range(rng.integers(*NUM_SHAPES, endpoint=True)):
            _add_shape(rng, scene)
        box = _add_badge(rng, scene, PATTERNS[target])
        _light(rng, scene)
        return np.clip(scene * 255 + 0.5, 0, 255).astype(np.uint8), target, box


@lru_cache(maxsize=8)
def _pink_filter(size: int) -> Floats:
    """Amplitudes (size, size // 2 + 1) that make white noise of unit variance pink, with variance 1."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]) * size
    amplitude = np.where(frequency > 0, 1 / np.maximum(frequency, 1) ** 1.15, 0)
    energy = 2 * np.sum(amplitude[:, 1:] ** 2) + np.sum(amplitude[:, 0] ** 2)
    return (amplitude * size**2 / np.sqrt(2 * energy)).astype(np.float32)


def _background(rng: Generator, size: int) -> Floats:
    """A textured ground (size, size, 3): pink noise in lightness, and less of it in colour."""
    noise = rng.standard_normal((2, 2, size, size // 2 + 1), dtype=np.float32)
    spectrum = (noise[0] + 1j * noise[1]) * _pink_filter(size)
    lightness, tint = np.fft.irfft2(spectrum, s=(size, size)).astype(np.float32)
    shade = lightness[..., None] * _muted(rng, 0.10, 0.2)
    return _muted(rng, 0.42, 0.3) + shade + tint[..., None] * _tint(rng, 0.05)


def _muted(rng: Generator, level: float, saturation: float) -> Floats:
    """An RGB colour of about the lightness `level`, with little saturation."""
    return np.float32(level) * (1 + _tint(rng, saturation))


def _tint(rng: Generator, strength: float) -> Floats:
    """A random shift in RGB, mostly along the axis from sky to earth, about `strength` long."""
    warm, green = rng.uniform(-1, 1), rng.uniform(-0.4, 0.4)
    return np.array([warm - green / 2, green, -warm - green / 2], dtype=np.float32) * strength


def _window(scene: Floats, x: float, y: float, reach: float) -> tuple[Floats, Floats, Floats, Box]:
    """The part of `scene` within `reach` of (x, y): a view, its offsets (dx, dy), and its box."""
    height, width = scene.shape[:2]
    x0, x1 = max(0, int(np.floor(x - reach))), min(width, int(np.ceil(x + reach)))
    y0, y1 = max(0, int(np.floor(y - reach))), min(height, int(np.ceil(y + reach)))
    dx = np.arange(x0, x1, dtype=np.float32)[None, :] + np.float32(0.5 - x)
    dy = np.arange(y0, y1, dtype=np.float32)[:, None] + np.float32(0.5 - y)
    return scene[y0:y1, x0:x1], dx, dy, (x0, y0, x1, y1)


def _blend(view: Floats, colour: Floats, cover: Floats) -> None:
    """Paint `colour` over `view` in place, where `cover` is 1."""
    view += (colour - view) * cover[..., None]


def _add_shape(rng: Generator, scene: Floats) -> None:
    """Paint one distractor: an ellipse or a rectangle in a muted colour, sharp or out of focus."""
    size = scene.shape[0]
    x, y = rng.uniform(0, size, 2)
    a, b = rng.uniform(0.04, 0.2, 2) * size
    softness = 1.0 if rng.random() < 0.6 else rng.uniform(0.03, 0.08) * size
    angle = rng.uniform(0, np.pi)
    view, dx, dy, _ = _window(scene, x, y, float(np.hypot(a, b)) + softness)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = c * dx + s * dy, c * dy - s * dx
    if rng.random() < 0.5:
        outside = (np.sqrt((u / a) ** 2 + (v / b) ** 2) - 1) * min(a, b)
    else:
        outside = np.maximum(np.abs(u) - a, np.abs(v) - b)
    cover = np.clip(0.5 - outside / softness, 0, 1) * rng.uniform(0.5, 0.95)
    shading = 1 + rng.uniform(-0.3, 0.3) * u / a
    colour = _muted(rng, rng.uniform(0.15, 0.75), 0.35) * shading[..., None]
    _blend(view, colour.astype(np.float32), cover.astype(np.float32))


def _add_badge(rng: Generator, scene: Floats, pattern: str) -> Box:
    """Paint the badge, a gilt disc with `pattern` in ink and an ivory rim, and return its box."""
    size = scene.shape[0]
    scale = rng.random()
    radius = size * np.interp(scale, (0, 1), BADGE_SIDE) / 2
    period = np.interp(scale, (0, 1), PERIOD_PX) * (1 + rng.uniform(-PERIOD_JITTER, PERIOD_JITTER))
    x, y = rng.uniform(radius, size - radius, 2)
    view, dx, dy, box = _window(scene, x, y, radius)
    distance = np.hypot(dx, dy)
    rim = max(RIM_SHARE * radius, 1.0)
    wave = _wave(rng, pattern, dx, dy, distance, float(period))
    face = INK + (GILT - INK) * (0.5 + 0.5 * wave[..., None])
    _blend(face, IVORY, np.clip(distance - (radius - rim) + 0.5, 0, 1))
    _blend(view, face, np.clip(radius - distance + 0.5, 0, 1))
    return box


def _wave(
    rng: Generator, pattern: str, dx: Floats, dy: Floats, distance: Floats, period: float
) -> Floats:
    """The values of `pattern` at the offsets (dx, dy), between -1 and 1."""
    turn = rng.uniform(-ANGLE_JITTER, ANGLE_JITTER)
    phase = rng.uniform(0, 2 * np.pi, 2)

    def stripes(degrees: float, offset: float) -> Floats:
        angle = np.deg2rad(degrees) + turn
        along = np.float32(np.cos(angle)) * dx + np.float32(np.sin(angle)) * dy
        return np.cos(np.float32(2 * np.pi / period) * along + np.float32(offset))

    degrees = {
        "horizontal stripes": [90],
        "vertical stripes": [0],
        "rising stripes": [45],
        "falling stripes": [-45],
        "upright checks": [45, -45],
        "diamond checks": [0, 90],
    }
    if pattern == "plain":
        return np.zeros_like(distance)
    if pattern == "rings":
        wave = np.cos(np.float32(2 * np.pi / period) * distance + np.float32(phase[0]))
    elif len(degrees[pattern]) == 1:
        wave = stripes(degrees[pattern][0], phase[0])
    else:
        wave = 0.75 * sum(stripes(d, p) for d, p in zip(degrees[pattern], phase, strict=True))
    return np.clip(1.6 * wave, -1, 1)


def _light(rng: Generator, scene: Floats) -> None:
    """Let the light fall off to one side, and add the grain of a sensor, in place."""
    size = scene.shape[0]
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    slope_x, slope_y = rng.uniform(-0.14, 0.14, 2).astype(np.float32)
    scene *= (1 + slope_y * ramp[:, None] + slope_x * ramp[None, :])[..., None]
    scene += rng.standard_normal((size, size, 1), dtype=np.float32) * np.float32(0.015)
