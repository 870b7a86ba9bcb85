"""Makes the background of a scene and the camera's faults over it.

Knows photographs, procedural textures, blur, noise and compression. It does not know of objects.
"""

from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

_NOISE_PX = 640


class Backdrops:
    """Photographs and a shared noise field from which backgrounds are made."""

    def __init__(self, photos: tuple[Image, ...]) -> None:
        self._photos = photos
        # One field, offset and scaled per scene: drawing fresh normals would cost more than
        # everything else in a scene together.
        rng = np.random.default_rng(0)
        field = rng.normal(0.0, 1.0, (_NOISE_PX, _NOISE_PX, 3)) * 32.0
        self._noise = np.clip(field, -127, 127).astype(np.int8)

    def draw(
        self, rng: np.random.Generator, width: int, height: int, photo_probability: float
    ) -> Image:
        """Return a fresh (height, width, 3) background."""
        if self._photos and rng.random() < photo_probability:
            return np.ascontiguousarray(self._photo(rng, width, height))
        return np.ascontiguousarray(self._procedural(rng, width, height))

    def calm(self, rng: np.random.Generator, width: int, height: int) -> Image:
        """Return a pale (height, width, 3) background without shapes, for people to look at."""
        base, drift = rng.uniform(150.0, 225.0, 3), rng.normal(0.0, 22.0, (6, 8, 3))
        coarse = np.clip(base + drift, 90, 245).astype(np.uint8)
        # Twice cubic: enlarged in one step the knots of the coarse grid would show as creases.
        middle = cv2.resize(coarse, (64, 48), interpolation=cv2.INTER_CUBIC)
        soft = cv2.GaussianBlur(middle, (0, 0), 3.0)
        return _image(cv2.resize(soft, (width, height), interpolation=cv2.INTER_CUBIC))

    def degrade(self, rng: np.random.Generator, rgb: Image) -> Image:
        """Return the picture as a mediocre camera would have delivered it."""
        chance = rng.random(6)
        if chance[0] < 0.12:
            rgb = _image(cv2.GaussianBlur(rgb, (0, 0), float(rng.uniform(0.4, 1.3))))
        if chance[1] < 0.08:
            height, width = rgb.shape[:2]
            factor = float(rng.uniform(0.5, 0.85))
            small = cv2.resize(rgb, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
            rgb = _image(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR))
        if chance[2] < 0.35:
            rgb = _tone(rng, rgb)
        if chance[3] < 0.3:
            rgb = self._add_noise(rng, rgb, float(rng.uniform(2.0, 14.0)))
        if chance[4] < 0.3:
            rgb = _compress(rgb, int(rng.integers(30, 90)))
        return rgb

    def _photo(self, rng: np.random.Generator, width: int, height: int) -> Image:
        photo = self._photos[int(rng.integers(len(self._photos)))]
        photo_h, photo_w = photo.shape[:2]
        # The largest crop of the scene's aspect, shrunk at random.
        crop_w = min(photo_w, photo_h * width / height) * float(rng.uniform(0.35, 1.0))
        crop_h = crop_w * height / width
        x, y = rng.random() * (photo_w - crop_w), rng.random() * (photo_h - crop_h)
        crop = photo[int(y) : int(y + crop_h), int(x) : int(x + crop_w)]
        if crop_w > 1.5 * width:
            # Halving first avoids aliasing, and is ten times faster than an inexact area resize.
            half = (crop.shape[1] // 2, crop.shape[0] // 2)
            even = crop[: half[1] * 2, : half[0] * 2]
            crop = _image(cv2.resize(even, half, interpolation=cv2.INTER_AREA))
        rgb = cv2.resize(crop, (width, height), interpolation=cv2.INTER_LINEAR)
        if rng.random() < 0.5:
            rgb = cv2.flip(rgb, 1)
        if rng.random() < 0.15:
            rgb = cv2.flip(rgb, 0)
        if rng.random() < 0.3:
            rgb = cv2.blur(rgb, (int(rng.integers(2, 10)),) * 2)
        if rng.random() < 0.2:
            rgb = rgb[:, :, rng.permutation(3)]
        gain, offset = rng.uniform(0.55, 1.25), rng.uniform(-35.0, 35.0)
        table = np.clip(np.arange(256) * gain + offset, 0, 255).astype(np.uint8)
        return _image(cv2.LUT(rgb, table))

    def _procedural(self, rng: np.random.Generator, width: int, height: int) -> Image:
        kind = int(rng.integers(5))
        if kind == 0:
            rgb = np.empty((height, width, 3), np.uint8)
            rgb[:] = rng.integers(0, 256, 3)
        elif kind == 1:
            rgb = _gradient(rng, width, height)
        elif kind == 2:
            rgb = _stripes(rng, width, height)
        else:
            rgb = _clouds(rng, width, height)
        if rng.random() < 0.6:
            _clutter(rng, rgb)
        if rng.random() < 0.4:
            rgb = self._add_noise(rng, rgb, float(rng.uniform(2.0, 20.0)))
        return rgb

    def _add_noise(self, rng: np.random.Generator, rgb: Image, sigma: float) -> Image:
        height, width = rgb.shape[:2]
        if height > _NOISE_PX or width > _NOISE_PX:
            repeats = (height // _NOISE_PX + 1, width // _NOISE_PX + 1, 1)
            noise = np.tile(self._noise, repeats)[:height, :width]
        else:
            y = int(rng.integers(_NOISE_PX - height + 1))
            x = int(rng.integers(_NOISE_PX - width + 1))
            noise = self._noise[y : y + height, x : x + width]
        mixed = cv2.addWeighted(rgb, 1.0, noise, sigma / 32.0, 0.0, dtype=cv2.CV_8U)
        return _image(mixed)


def _gradient(rng: np.random.Generator, width: int, height: int) -> Image:
    corners = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    # Cut to the inner half: beyond its texels' centres a resize holds the values constant.
    small = cv2.resize(corners, (64, 64), interpolation=cv2.INTER_LINEAR)[16:48, 16:48]
    return _image(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR))


def _clouds(rng: np.random.Generator, width: int, height: int) -> Image:
    cells = 2 ** int(rng.integers(1, 7))
    contrast = rng.uniform(20.0, 120.0)
    base = rng.uniform(20.0, 235.0, 3)
    rows = max(2, cells * height // width)
    coarse = np.clip(base + rng.normal(0.0, contrast / 2.0, (rows, cells, 3)), 0, 255)
    if rng.random() < 0.5:
        coarse[:] = base + (coarse.mean(axis=2, keepdims=True) - base.mean())
    small = np.clip(coarse, 0, 255).astype(np.uint8)
    methods = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC)
    method = methods[int(rng.integers(3))]
    return _image(cv2.resize(small, (width, height), interpolation=method))


def _stripes(rng: np.random.Generator, width: int, height: int) -> Image:
    colours = rng.integers(0, 256, (int(rng.integers(2, 5)), 3), dtype=np.uint8)
    period = float(rng.uniform(4.0, 60.0))
    angle = rng.uniform(0.0, np.pi)
    across = np.arange(width, dtype=np.float32) * np.float32(np.cos(angle) / period) + 256.0
    down = np.arange(height, dtype=np.float32) * np.float32(np.sin(angle) / period)
    # The offset keeps the sum positive, so that truncation is floor; stripes wrap at 256.
    index = (across[None, :] + down[:, None]).astype(np.int16).astype(np.uint8)
    table = np.resize(colours, (256, 3)).reshape(1, 256, 3)
    return _image(cv2.LUT(cv2.merge([index, index, index]), table))


def _clutter(rng: np.random.Generator, rgb: Image) -> None:
    # Shapes that are nothing nameable, so that "a closed outline" is not enough for an object.
    height, width = rgb.shape[:2]
    for _ in range(int(rng.integers(1, 14))):
        colour = [int(value) for value in rng.integers(0, 256, 3)]
        x, y = int(rng.integers(width)), int(rng.integers(height))
        size = int(np.exp(rng.uniform(np.log(8.0), np.log(0.5 * width))))
        thickness = -1 if rng.random() < 0.7 else int(rng.integers(1, 6))
        kind = int(rng.integers(4))
        if kind == 0:
            cv2.rectangle(rgb, (x, y), (x + size, y + int(size * rng.random())), colour, thickness)
        elif kind == 1:
            axes = (max(1, size // 2), max(1, int(size * rng.random()) // 2))
            cv2.ellipse(
                rgb,
                (x, y),
                axes,
                float(rng.uniform(0, 180)),
                0,
                360,
                colour,
                thickness,
                cv2.LINE_AA,
            )
        elif kind == 2:
            offsets = rng.integers(-size, size + 1, (int(rng.integers(3, 7)), 2))
            points = (offsets + np.array([x, y])).astype(np.int32)
            if thickness < 0:
                cv2.fillPoly(rgb, [points], colour, cv2.LINE_AA)
            else:
                cv2.polylines(rgb, [points], True, colour, thickness, cv2.LINE_AA)
        else:
            end = (x + int(rng.integers(-size, size + 1)), y + int(rng.integers(-size, size + 1)))
            cv2.line(rgb, (x, y), end, colour, int(rng.integers(1, 8)), cv2.LINE_AA)


def _tone(rng: np.random.Generator, rgb: Image) -> Image:
    gamma = rng.uniform(0.65, 1.5)
    gains = rng.uniform(0.88, 1.08, 3) * rng.uniform(0.85, 1.1)
    levels = (np.arange(256) / 255.0)[:, None] ** gamma * 255.0 * gains
    table = np.clip(levels, 0, 255).astype(np.uint8).reshape(1, 256, 3)
    return _image(cv2.LUT(rgb, table))


def _compress(rgb: Image, quality: int) -> Image:
    # The channel order is irrelevant to the artefacts, so no conversion to BGR and back.
    _, encoded = cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return _image(cv2.imdecode(encoded, cv2.IMREAD_COLOR))


def _image(array: object) -> Image:
    # OpenCV's annotations lose the element type.
    return cast(Image, array)
