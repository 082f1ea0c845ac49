"""The needle set: generated pictures with one small badge that decides the class.

Every image is clutter (1/f noise in muted colours, soft and hard-edged shapes, a gradient of light)
with one bright badge somewhere in it. The badge is easy to find at any resolution; the pattern
engraved in it has a period of a few pixels, which survives halving the resolution on a large badge
and does not on a small one: images differ in how closely they have to be looked at.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from torch.utils.data import Dataset

Floats = NDArray[np.float32]
Box = tuple[int, int, int, int]

PATTERNS: dict[str, tuple[float, ...]] = {  # name, and the directions of its waves in degrees
    "horizontal stripes": (90,),
    "vertical stripes": (0,),
    "rising stripes": (45,),
    "falling stripes": (-45,),
    "upright checks": (45, -45),
    "diamond checks": (0, 90),
    "rings": (),
    "rays": (),
}
SPLITS = ("train", "val")

BADGE_SIDE = (0.14, 0.36)  # of the smallest and the largest badge, as a share of the image's side
PERIOD_PX = (2.2, 4.0)  # of their patterns, in pixels, whatever the image's size
PERIOD_JITTER = 0.08  # the period varies by this share to either side,
ANGLE_JITTER = 8.0  # and the direction by this many degrees
RIM_SHARE = 0.13  # width of the badge's rim as a share of its radius
NUM_SHAPES = (4, 8)  # distractors in an image, fewest and most

INK = np.array([0.06, 0.05, 0.14], dtype=np.float32)
GILT = np.array([1.0, 0.84, 0.10], dtype=np.float32)
IVORY = np.array([1.0, 0.98, 0.92], dtype=np.float32)


class NeedleSet(Dataset[tuple[NDArray[np.uint8], int, Box]]):
    """Images whose class is the fine pattern of one badge, at any position and scale, in clutter.

    Nothing is on disk: image `index` is drawn from random numbers that depend on `seed`, `split`,
    `index`, `image_size` and `num_classes` alone; images of validation once in a process. Its class
    is ``index % num_classes``.

    Args:
        split: "train" or "val"; the two have no image in common.
        train_images, val_images: how many images the splits have.
        image_size: side of the square images in pixels, at least 48.
        num_classes: how many of the patterns occur, 2 to 8, the first ones of `PATTERNS`.
        seed: a natural number; another one gives another set.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        train_images: int = 5000,
        val_images: int = 2000,
        image_size: int = 112,
        num_classes: int = 6,
        seed: int = 0,
    ) -> None:
        num_images = train_images if split == "train" else val_images
        self.image_size = image_size
        self.split = split
        self.seed = seed
        self.classes: list[str] = list(PATTERNS)[:num_classes]
        self.targets: list[int] = (np.arange(num_images) % num_classes).tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def name(self, index: int) -> str:
        """The same for the same image: another size, number of classes or seed is another set."""
        return f"needle {self.image_size} {len(self.classes)} {self.seed} {index}"

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int, Box]:
        """RGB pixels (H, W, 3), class, and the badge's box x0, y0, x1, y1 in pixels, half-open."""
        target = self.targets[index]
        draw = _draw_once if self.split == "val" else _draw
        setting = (self.seed, SPLITS.index(self.split), index, self.image_size, len(self.classes))
        pixels, box = draw(setting, self.classes[target])
        return pixels, target, box


def _draw(setting: tuple[int, ...], pattern: str) -> tuple[NDArray[np.uint8], Box]:
    """The image of these random numbers, read-only, and the box of its badge."""
    rng, size = np.random.default_rng(setting), setting[3]
    scene = _background(rng, size)
    for _ in range(rng.integers(*NUM_SHAPES, endpoint=True)):
        _add_shape(rng, scene)
    box = _add_badge(rng, scene, pattern)
    _light(rng, scene)
    pixels = np.clip(scene * 255 + 0.5, 0, 255).astype(np.uint8)
    pixels.flags.writeable = False
    return pixels, box


_draw_once = lru_cache(maxsize=2048)(_draw)
"""Images of validation are looked at many times: 2,048 of 112 x 112 pixels are 77 MB."""


@lru_cache(maxsize=8)
def _pink_filter(size: int) -> Floats:
    """Amplitudes (size, size // 2 + 1) that turn white noise into pink noise of variance 1."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]) * size
    amplitude = np.where(frequency > 0, 1 / np.maximum(frequency, 1) ** 1.15, 0)
    energy = 2 * np.sum(amplitude[:, 1:] ** 2) + np.sum(amplitude[:, 0] ** 2)
    return np.asarray(amplitude * size**2 / np.sqrt(2 * energy), dtype=np.float32)


def _background(rng: Generator, size: int) -> Floats:
    """A textured ground (size, size, 3): pink noise in lightness, and less of it in colour."""
    noise = rng.standard_normal((2, 2, size, size // 2 + 1), dtype=np.float32)
    spectrum = (noise[0] + 1j * noise[1]) * _pink_filter(size)
    lightness, tint = np.fft.irfft2(spectrum, s=(size, size)).astype(np.float32)
    shade = lightness[..., None] * _muted(rng, 0.10, 0.2)
    ground: Floats = _muted(rng, 0.38, 0.3) + shade + tint[..., None] * _tint(rng, 0.05)
    return ground


def _muted(rng: Generator, level: float, saturation: float) -> Floats:
    """An RGB colour of about the lightness `level`, with little saturation."""
    return np.asarray(level * (1 + _tint(rng, saturation)), dtype=np.float32)


def _tint(rng: Generator, strength: float) -> Floats:
    """A random shift in RGB, mostly along the axis from sky to earth, about `strength` long."""
    warm, green = rng.uniform(-1, 1), rng.uniform(-0.4, 0.4)
    return np.array([warm - green / 2, green, -warm - green / 2], dtype=np.float32) * strength


def _window(scene: Floats, x: float, y: float, reach: float) -> tuple[Floats, Floats, Floats, Box]:
    """The part of `scene` within `reach` of (x, y): a view, its offsets (dx, dy), and its box."""
    height, width = scene.shape[:2]
    x0, x1 = max(0, math.floor(x - reach)), min(width, math.ceil(x + reach))
    y0, y1 = max(0, math.floor(y - reach)), min(height, math.ceil(y + reach))
    dx = np.arange(x0 + 0.5 - x, x1 - x, dtype=np.float32)[None, :]
    dy = np.arange(y0 + 0.5 - y, y1 - y, dtype=np.float32)[:, None]
    return scene[y0:y1, x0:x1], dx, dy, (x0, y0, x1, y1)


def _blend(view: Floats, colour: Floats, cover: Floats) -> None:
    """Paint `colour` over `view` in place, where `cover` is 1."""
    view += (colour - view) * cover[..., None]


def _add_shape(rng: Generator, scene: Floats) -> None:
    """Paint one distractor: an ellipse or a rectangle in a muted colour, sharp or out of focus."""
    size = scene.shape[0]
    x, y = rng.uniform(0, size), rng.uniform(0, size)
    a, b = rng.uniform(0.04, 0.2) * size, rng.uniform(0.04, 0.2) * size
    softness = 1.0 if rng.random() < 0.6 else rng.uniform(0.03, 0.08) * size
    angle = rng.uniform(0, np.pi)
    view, dx, dy, _ = _window(scene, x, y, math.hypot(a, b) + softness)
    c, s = math.cos(angle), math.sin(angle)
    u, v = dx * c + dy * s, dy * c - dx * s
    if rng.random() < 0.5:
        outside = (np.hypot(u / a, v / b) - 1) * min(a, b)
    else:
        outside = np.maximum(np.abs(u) - a, np.abs(v) - b)
    cover = np.clip(0.5 - outside / softness, 0, 1) * rng.uniform(0.5, 0.95)
    shading = 1 + rng.uniform(-0.3, 0.3) * u / a
    colour = _muted(rng, rng.uniform(0.12, 0.65), 0.35) * shading[..., None]
    _blend(view, colour, cover)


def _add_badge(rng: Generator, scene: Floats, pattern: str) -> Box:
    """Paint the badge, `pattern` in ink on gilt with an ivory rim, and return its box."""
    size = scene.shape[0]
    scale = rng.random()
    radius = size * (BADGE_SIDE[0] + (BADGE_SIDE[1] - BADGE_SIDE[0]) * scale) / 2
    period = (PERIOD_PX[0] + (PERIOD_PX[1] - PERIOD_PX[0]) * scale) * rng.uniform(
        1 - PERIOD_JITTER, 1 + PERIOD_JITTER
    )
    x, y = rng.uniform(radius, size - radius), rng.uniform(radius, size - radius)
    view, dx, dy, box = _window(scene, x, y, radius)
    distance = np.hypot(dx, dy)
    wave = _wave(rng, pattern, dx, dy, radius, period)
    face = INK + (GILT - INK) * (0.5 + 0.5 * wave[..., None])
    _blend(face, IVORY, np.clip(distance - radius * (1 - RIM_SHARE) + 0.5, 0, 1))
    _blend(view, face, np.clip(radius - distance + 0.5, 0, 1))
    return box


def _wave(
    rng: Generator, pattern: str, dx: Floats, dy: Floats, radius: float, period: float
) -> Floats:
    """The values of `pattern` at the offsets (dx, dy), between -1 (ink) and 1 (gilt)."""
    phase = rng.uniform(0, 2 * math.pi)
    turn = rng.uniform(-ANGLE_JITTER, ANGLE_JITTER)
    if pattern == "rings":
        waves = [np.hypot(dx, dy) * (2 * math.pi / period)]
    elif pattern == "rays":  # as many as are a period apart halfway to the rim
        waves = [np.arctan2(dy, dx) * round(math.pi * radius / period)]
    else:
        angles = [math.radians(degrees + turn) for degrees in PATTERNS[pattern]]
        waves = [(dx * math.cos(a) + dy * math.sin(a)) * (2 * math.pi / period) for a in angles]
    return np.clip(1.5 * sum(np.cos(wave + phase) for wave in waves), -1, 1)


def _light(rng: Generator, scene: Floats) -> None:
    """Let the light fall off to one side, and add the grain of a sensor, in place."""
    size = scene.shape[0]
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    slope_x, slope_y = rng.uniform(-0.14, 0.14, 2).astype(np.float32)
    scene *= (1 + slope_y * ramp[:, None] + slope_x * ramp[None, :])[..., None]
    scene += rng.standard_normal((size, size, 1), dtype=np.float32) * 0.015
