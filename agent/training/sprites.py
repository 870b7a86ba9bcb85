"""Draws one object: a sprite posed, recoloured and pasted onto a canvas.

Knows affine resampling and looks (colour, outline, shadow). It does not know scenes, concepts or
where an object should stand.
"""

import math
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from agent.training.artwork import MASK_ALPHA

Image = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Pose:
    """How a sprite is resampled."""

    width: float
    """Pixels across the drawn part of the sprite before rotation."""
    height: float
    """Pixels down it."""
    angle_deg: float = 0.0
    """Anticlockwise rotation."""
    flip: bool = False
    """Mirrored left to right before rotation."""


@dataclass(frozen=True, slots=True)
class Look:
    """How a sprite is recoloured; the default leaves the artwork as it is."""

    colour: NDArray[np.float32] | None = None
    """(4, 4) matrix applied to premultiplied RGBA, see `colour_matrix`."""
    posterise: int = 0
    """Number of levels per channel, 0 for all."""
    blur_px: float = 0.0
    """Gaussian sigma."""
    outline_px: int = 0
    """Width of a sticker-like rim, part of the object."""
    outline_rgb: tuple[int, int, int] = (255, 255, 255)
    shadow: float = 0.0
    """Opacity of a soft drop shadow, not part of the object."""


@dataclass(frozen=True, slots=True)
class Patch:
    """A drawn object, to be pasted with its top left corner at (left, top)."""

    rgba: Image
    """(h, w, 4) premultiplied."""
    mask: NDArray[np.bool_]
    """(h, w) true on the object's own pixels."""
    left: int
    top: int
    box: tuple[int, int, int, int]
    """xyxy of the mask inside the patch; empty (0, 0, 0, 0) if nothing is opaque."""

    def moved(self, dx: int, dy: int) -> "Patch":
        return Patch(self.rgba, self.mask, self.left + dx, self.top + dy, self.box)


def colour_matrix(
    hue_deg: float = 0.0,
    saturation: float = 1.0,
    brightness: float = 1.0,
    contrast: float = 1.0,
    gains: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> NDArray[np.float32]:
    """Return a (4, 4) colour change that acts on premultiplied RGBA; all arguments are factors."""
    # Written out in floats: on matrices this small NumPy's overhead is twenty times the work.
    angle = math.radians(hue_deg)
    cos, root = math.cos(angle), math.sin(angle) / math.sqrt(3.0)
    third = (1.0 - cos) / 3.0
    same, less, more = cos + third, third - root, third + root
    # Rotation about the grey axis, so that greys keep their colour at any hue shift.
    rotation = ((same, less, more), (more, same, less), (less, more, same))
    luma = [
        0.299 * rotation[0][k] + 0.587 * rotation[1][k] + 0.114 * rotation[2][k] for k in range(3)
    ]
    rows: list[list[float]] = []
    for gain, row in zip(gains, rotation, strict=True):
        scale = gain * brightness * contrast
        mixed = [saturation * row[k] + (1.0 - saturation) * luma[k] for k in range(3)]
        # Contrast pivots on mid grey; the constant multiplies alpha as colour is premultiplied.
        rows.append([*(scale * value for value in mixed), 0.5 * (1.0 - contrast)])
    return np.array([*rows, [0.0, 0.0, 0.0, 1.0]], np.float32)


def draw_sprite(
    sprite: Image,
    content: tuple[int, int, int, int],
    pose: Pose,
    look: Look,
    centre: tuple[float, float] = (0.0, 0.0),
) -> Patch:
    """Draw a premultiplied (S, S, 4) sprite so that its content is centred on `centre` (x, y).

    `content` is the xyxy of the drawn part of the sprite, in sprite pixels.
    """
    scale_x = pose.width / (content[2] - content[0])
    scale_y = pose.height / (content[3] - content[1])
    middle_x, middle_y = (content[0] + content[2]) / 2.0, (content[1] + content[3]) / 2.0
    shrink = 1
    # Bilinear sampling aliases below about 0.7 of full size, so area-average down to there first;
    # by halves, which OpenCV does three times faster than quarters.
    while max(scale_x, scale_y) * shrink < 0.7 and shrink < 8:
        shrink *= 2
        size = sprite.shape[0] // 2
        sprite = _image(cv2.resize(sprite, (size, size), interpolation=cv2.INTER_AREA))
    angle = math.radians(pose.angle_deg)
    cos, sin = math.cos(angle), math.sin(angle)
    mirror = -1.0 if pose.flip else 1.0
    half_w = (abs(cos) * pose.width + abs(sin) * pose.height) / 2.0
    half_h = (abs(sin) * pose.width + abs(cos) * pose.height) / 2.0
    margin = 2 + look.outline_px + int(2.0 * look.blur_px)
    left, top = math.floor(centre[0] - half_w) - margin, math.floor(centre[1] - half_h) - margin
    size_wh = (int(2.0 * half_w) + 2 * margin + 2, int(2.0 * half_h) + 2 * margin + 2)
    a, b = cos * scale_x * mirror, sin * scale_y
    c, d = -sin * scale_x * mirror, cos * scale_y
    # Pixel centres lie at +0.5 in sprite and canvas coordinates but at integers for warpAffine.
    at_x, at_y = centre[0] - left - 0.5, centre[1] - top - 0.5
    from_x, from_y = middle_x / shrink - 0.5, middle_y / shrink - 0.5
    a, b, c, d = a * shrink, b * shrink, c * shrink, d * shrink
    matrix = np.array(
        [[a, b, at_x - a * from_x - b * from_y], [c, d, at_y - c * from_x - d * from_y]]
    )
    rgba = _image(cv2.warpAffine(sprite, matrix, size_wh, flags=cv2.INTER_LINEAR))
    rgba = _restyle(rgba, look)
    mask = _image(cv2.extractChannel(rgba, 3)) > MASK_ALPHA
    x, y, w, h = cv2.boundingRect(mask.view(np.uint8))
    return Patch(rgba, mask, left, top, (x, y, x + w, y + h))


def paste(canvas: Image, patch: Patch, shadow: float = 0.0) -> None:
    """Blend a patch into an (H, W, 3) canvas in place, clipped to it."""
    if shadow > 0.0:
        _paste_shadow(canvas, patch, shadow)
    window = clip(patch, canvas.shape[1], canvas.shape[0])
    if window is None:
        return
    target, source = window
    region, rgba = canvas[target], patch.rgba[source]
    inverse = cv2.cvtColor(cv2.bitwise_not(cv2.extractChannel(rgba, 3)), cv2.COLOR_GRAY2RGB)
    colour = cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB)
    canvas[target] = cv2.add(cv2.multiply(region, inverse, scale=1.0 / 255.0), colour)


def clip(
    patch: Patch, width: int, height: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
    """Return matching (canvas, patch) windows of the part inside, None if wholly outside."""
    patch_h, patch_w = patch.mask.shape
    x0, y0 = max(patch.left, 0), max(patch.top, 0)
    x1, y1 = min(patch.left + patch_w, width), min(patch.top + patch_h, height)
    if x0 >= x1 or y0 >= y1:
        return None
    target = (slice(y0, y1), slice(x0, x1))
    source = (
        slice(y0 - patch.top, y1 - patch.top),
        slice(x0 - patch.left, x1 - patch.left),
    )
    return target, source


def _restyle(rgba: Image, look: Look) -> Image:
    if look.colour is not None:
        rgba = _within_alpha(_image(cv2.transform(rgba, look.colour)))
    if look.posterise:
        levels = np.rint(np.arange(256) / 255.0 * (look.posterise - 1)) / (look.posterise - 1)
        table = np.stack([levels * 255.0] * 3 + [np.arange(256.0)], axis=-1).astype(np.uint8)
        rgba = _within_alpha(_image(cv2.LUT(rgba, table.reshape(1, 256, 4))))
    if look.blur_px > 0.0:
        rgba = _image(cv2.GaussianBlur(rgba, (0, 0), look.blur_px))
    if look.outline_px:
        size = 2 * look.outline_px + 1
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
        alpha = cv2.dilate(rgba[:, :, 3], kernel)
        rim = cv2.subtract(alpha, rgba[:, :, 3])
        solid = np.array([*look.outline_rgb, 255], np.float32) / 255.0
        rgba = _image(cv2.add(rgba, (rim[:, :, None] * solid).astype(np.uint8)))
    return rgba


def _paste_shadow(canvas: Image, patch: Patch, opacity: float) -> None:
    reach = max(2, patch.mask.shape[0] // 12)
    alpha = cv2.copyMakeBorder(
        patch.rgba[:, :, 3], reach, reach, reach, reach, cv2.BORDER_CONSTANT, value=0
    )
    alpha = cv2.blur(alpha, (2 * reach - 1, 2 * reach - 1))
    rgba = np.zeros((*alpha.shape, 4), np.uint8)
    rgba[:, :, 3] = cv2.convertScaleAbs(alpha, alpha=opacity)
    mask = np.zeros(alpha.shape, np.bool_)
    left, top = patch.left - reach // 2, patch.top
    paste(canvas, Patch(rgba, mask, left, top, (0, 0, 0, 0)))


def _within_alpha(rgba: Image) -> Image:
    # Premultiplied colour above alpha would glow when pasted.
    limit = cv2.cvtColor(cv2.extractChannel(rgba, 3), cv2.COLOR_GRAY2RGBA)
    return _image(cv2.min(rgba, limit))


def _image(array: object) -> Image:
    # OpenCV's annotations lose the element type.
    return cast(Image, array)
