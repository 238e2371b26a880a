"""Procedural pictures of ten shapes, with labels and captions: a data set that needs no download.

Image `i` is a pure function of (seed, i): its random numbers come from Philox keyed by both. Scenes are described in
units of the image, drawn from signed distance functions, so that every resolution shows the same scene.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench.errors import UserError

VERSION = 1  # part of the digest: raise it with any change to the pixels or captions
MIN_RESOLUTION = 8
SAMPLED_RESOLUTION = 96  # smaller images are averages of a grid at least this fine
Array = npt.NDArray[np.float64]
Distance = Callable[[Array, Array], Array]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 45, 48),
    "orange": (245, 136, 30),
    "yellow": (250, 212, 44),
    "green": (52, 168, 83),
    "turquoise": (38, 190, 190),
    "blue": (45, 104, 222),
    "purple": (134, 64, 176),
    "pink": (240, 120, 176),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (246, 246, 243),
    "light grey": (206, 209, 214),
    "cream": (249, 236, 206),
    "light blue": (196, 222, 246),
    "light green": (206, 236, 204),
    "dark blue": (22, 36, 84),
    "dark green": (14, 62, 46),
    "dark brown": (66, 40, 28),
    "dark grey": (56, 60, 68),
    "black": (18, 18, 22),
}
SIZES: dict[str, float] = {"small": 0.16, "medium": 0.245, "large": 0.35}  # radius, in units of the image
MIN_CONTRAST = 2.4  # of relative luminance, as WCAG 2 defines contrast


def _circle(x: Array, y: Array) -> Array:
    return np.hypot(x, y) - 0.9


def _ring(x: Array, y: Array) -> Array:
    return np.abs(np.hypot(x, y) - 0.72) - 0.2


def _crescent(x: Array, y: Array) -> Array:
    return np.maximum(np.hypot(x, y) - 0.95, 0.78 - np.hypot(x - 0.42, y + 0.1))


def _cross(x: Array, y: Array) -> Array:
    return np.minimum(_box(x, y, 0.9, 0.3), _box(x, y, 0.3, 0.9))


def _box(x: Array, y: Array, half_width: float, half_height: float) -> Array:
    dx, dy = np.abs(x) - half_width, np.abs(y) - half_height
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0)


def _square(x: Array, y: Array) -> Array:
    return _box(x, y, 0.76, 0.76)


def _heart(x: Array, y: Array) -> Array:
    """A square on its corner with half discs on the two upper sides, in units of its side."""
    x, y = np.abs(x) * 0.72, 0.46 - y * 0.72
    lobe = np.hypot(x - 0.25, y - 0.75) - math.sqrt(0.125)
    along = np.maximum(x + y, 0) / 2
    edge = np.minimum(np.hypot(x, y - 1), np.hypot(x - along, y - along)) * np.sign(x - y)
    return np.where(x + y > 1, lobe, edge) / 0.72


def _polygon(vertices: list[tuple[float, float]]) -> Distance:
    """Distance to a simple polygon: to the nearest edge, negative where a ray crosses an odd number of edges."""
    start = np.array(vertices)
    edge = np.roll(start, -1, axis=0) - start

    def distance(x: Array, y: Array) -> Array:
        nearest, inside = np.full(x.shape, np.inf), np.zeros(x.shape, dtype=bool)
        for (ax, ay), (ex, ey) in zip(start, edge, strict=True):
            px, py = x - ax, y - ay
            t = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
            nearest = np.minimum(nearest, (px - t * ex) ** 2 + (py - t * ey) ** 2)
            if ey != 0:
                inside ^= ((py >= 0) != (py >= ey)) & (px < ex * py / ey)
        distances: Array = np.where(inside, -1, 1) * np.sqrt(nearest)
        return distances

    return distance


def _regular(corners: int, radius: float, inner: float | None = None) -> Distance:
    """A regular polygon with a corner on top, or a star if an inner radius is given."""
    radii = [radius] if inner is None else [radius, inner]
    count = corners * len(radii)
    turns = [2 * math.pi * k / count for k in range(count)]
    return _polygon(
        [(radii[k % len(radii)] * math.sin(t), -radii[k % len(radii)] * math.cos(t)) for k, t in enumerate(turns)]
    )


CLASSES: dict[str, Distance] = {
    "circle": _circle,
    "square": _square,
    "triangle": _regular(3, 1.0),
    "star": _regular(5, 1.0, 0.42),
    "ring": _ring,
    "cross": _cross,
    "heart": _heart,
    "crescent": _crescent,
    "hexagon": _regular(6, 0.95),
    "diamond": _polygon([(0.0, -1.0), (0.6, 0.0), (0.0, 1.0), (-0.6, 0.0)]),
}


@dataclass(frozen=True, slots=True)
class Scene:
    """What one image shows, in units of the image; angles in radians."""

    shape: str
    colour: str
    background: str
    size: str
    centre: tuple[float, float]
    radius: float
    tilt: float
    light: float  # direction that the light comes from

    @property
    def caption(self) -> str:
        """The scene in words."""
        return f"a {self.size} {self.colour} {self.shape} on a {self.background} background"


def draw_scene(seed: int, index: int) -> Scene:
    """Draw scene `index`: its class is `index % 10`, so that every stretch of ten images is balanced."""
    u = np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64))).random(8)
    colour = _pick(list(COLOURS), u[0])
    size = _pick(list(SIZES), u[2])
    radius = SIZES[size] * (0.92 + 0.16 * u[3])
    margin = radius + 0.03
    return Scene(
        shape=list(CLASSES)[index % len(CLASSES)],
        colour=colour,
        background=_pick(_CONTRASTING[colour], u[1]),
        size=size,
        centre=(margin + (1 - 2 * margin) * u[4], margin + (1 - 2 * margin) * u[5]),
        radius=radius,
        tilt=math.radians(24) * (u[6] - 0.5),
        light=math.radians(-120 + 60 * u[7]),
    )


def render(scene: Scene, resolution: int) -> npt.NDArray[np.uint8]:
    """Draw a scene as uint8 `[H, W, 3]`."""
    factor = -(-SAMPLED_RESOLUTION // resolution)
    fine = resolution * factor
    axis = (np.arange(fine) + 0.5) / fine
    x, y = axis[None, :], axis[:, None]
    light = (math.cos(scene.light), math.sin(scene.light))

    brightness = 0.95 + 0.13 * ((x - 0.5) * light[0] + (y - 0.5) * light[1])
    picture = np.array(BACKGROUNDS[scene.background]) * brightness[..., None]
    rows, columns = (_near(centre, 1.3 * scene.radius, fine) for centre in scene.centre[::-1])
    _paint(picture[rows, columns], scene, x[:, columns], y[rows], light)
    rows_summed = np.clip(picture, 0, 255).reshape(resolution, factor, fine, 3).sum(axis=1)
    pixels = rows_summed.reshape(resolution, resolution, factor, 3).sum(axis=2) / factor**2
    rounded: npt.NDArray[np.uint8] = (pixels + 0.5).astype(np.uint8)
    return rounded


def _near(centre: float, reach: float, fine: int) -> slice:
    return slice(max(int((centre - reach) * fine) - 1, 0), int((centre + reach) * fine) + 2)


def _paint(picture: Array, scene: Scene, x: Array, y: Array, light: tuple[float, float]) -> None:
    """Draw the shadow and the shape onto a part of the picture with these coordinates."""
    drop, softness = 0.09 * scene.radius, 0.16 * scene.radius
    shadow = _distance(scene, x + drop * light[0], y + drop * light[1])
    picture *= 1 - 0.38 * _smoothstep(0.5 - shadow / (2 * softness))[..., None]

    distance = _distance(scene, x, y)
    height = ((x - scene.centre[0]) * light[0] + (y - scene.centre[1]) * light[1]) / scene.radius
    rim = _smoothstep(1 + distance / (0.14 * scene.radius))
    paint = np.array(COLOURS[scene.colour]) * (0.98 + 0.12 * height - 0.12 * rim)[..., None]
    pixel = x[0, 1] - x[0, 0]
    coverage = np.clip(0.5 - distance / pixel, 0, 1)[..., None]
    picture += coverage * (paint - picture)


def _distance(scene: Scene, x: Array, y: Array) -> Array:
    """Signed distance to the outline of the shape, in units of the image."""
    x, y = x - scene.centre[0], y - scene.centre[1]
    cos, sin = math.cos(scene.tilt) / scene.radius, math.sin(scene.tilt) / scene.radius
    return CLASSES[scene.shape](x * cos + y * sin, y * cos - x * sin) * scene.radius


def _smoothstep(t: Array) -> Array:
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def _pick(choices: Sequence[str], u: float) -> str:
    return choices[int(u * len(choices))]


def _luminance(colour: tuple[int, int, int]) -> float:
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
    dark, light = sorted((_luminance(a), _luminance(b)))
    return (light + 0.05) / (dark + 0.05)


_CONTRASTING: dict[str, list[str]] = {
    name: [other for other, behind in BACKGROUNDS.items() if _contrast(colour, behind) >= MIN_CONTRAST]
    for name, colour in COLOURS.items()
}


class ShapesDataset:
    """Labelled and captioned shapes; see the module."""

    def __init__(self, resolution: int, count: int = 2000, seed: int = 0) -> None:
        if resolution < MIN_RESOLUTION or count < 1 or not 0 <= seed < 2**64:
            raise UserError(
                f"shapes: got resolution {resolution}, count {count}, seed {seed}; "
                f"needs a resolution of at least {MIN_RESOLUTION}, a count of at least 1, a seed from 0 to 2^64 - 1."
            )
        self.name, self.resolution, self.num_classes = "shapes", resolution, len(CLASSES)
        self.class_names, self.has_captions = tuple(CLASSES), True
        self._count, self._seed = count, seed

    def __len__(self) -> int:
        return self._count

    def scene(self, index: int) -> Scene:
        """What image `index` shows."""
        if not 0 <= index < self._count:
            raise IndexError(f"shapes: image {index} of {self._count}")
        return draw_scene(self._seed, index)

    def image(self, index: int) -> Tensor:
        """Image `index`, uint8 `[3, H, W]`."""
        return torch.from_numpy(render(self.scene(index), self.resolution)).permute(2, 0, 1).contiguous()

    def label(self, index: int) -> int:
        """Class of image `index`."""
        return self.class_names.index(self.scene(index).shape)

    def caption(self, index: int) -> str:
        """The scene in words, "a large red star on a dark blue background"."""
        return self.scene(index).caption

    def content_sha256(self) -> str:
        """Digest of (version, resolution, count, seed), which the pixels are a function of."""
        content = f"shapes version {VERSION} resolution {self.resolution} count {self._count} seed {self._seed}"
        return hashlib.sha256(content.encode()).hexdigest()
