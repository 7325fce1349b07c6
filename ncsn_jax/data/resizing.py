"""Conversion of images of any mode and shape to arrays of one shape."""

import math
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from ncsn_jax.runtime.errors import UserError

BILINEAR = Image.Resampling.BILINEAR


def resized(
    image: Image.Image,
    *,
    size: int | None,
    channels: Literal[1, 3] = 3,
    crop: int | None = None,
    fit: Literal["crop", "stretch", "pad"] = "crop",
) -> UInt8[np.ndarray, "height width channels"]:
    """Return an image as 8-bit grey or RGB pixels: turned upright, cropped, and resized to a square.

    Resizing is bilinear and antialiased, with the same pixels as torchvision's for PIL images. The official
    code's CelebA is crop=140, and its LSUN is fit="crop".

    Args:
      image: an image of any mode. 16-bit greys are scaled to 8 bits, transparent pixels are laid over white.
      size: the height and the width to resize to; None keeps them.
      channels: 1 for grey, 3 for RGB.
      crop: the height and the width of the centre crop, which comes first.
      fit: the way to make an image square: "crop" takes the centre, "stretch" distorts, "pad" adds
        black.

    Raises:
      UserError: if the image has real numbers or more than 16 bits, is smaller than the crop, or is too
        elongated for fit="crop".
    """
    image = _converted(ImageOps.exif_transpose(image), "L" if channels == 1 else "RGB")
    if crop is not None:
        image = _centre(image, crop)
    if size is not None:
        image = _squared(image, size, fit)
    return np.array(image).reshape(image.height, image.width, channels)


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        # Pillow would clip 16-bit values, which come in the modes I;16 and I (32 bits).
        pixels = np.asarray(image)
        if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
            raise UserError(
                f"found numbers from {pixels.min():g} to {pixels.max():g} in the mode {image.mode}, which "
                "has no fixed range; accepted: 8 or 16 bits"
            )
        image = Image.fromarray((pixels / 257).round().astype(np.uint8))
    elif image.has_transparency_data:
        straight = image.convert("LA") if image.mode == "La" else image
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, straight.convert("RGBA"))
    return image.convert(mode)


def _squared(image: Image.Image, size: int, fit: Literal["crop", "stretch", "pad"]) -> Image.Image:
    if fit == "stretch":
        return image.resize((size, size), BILINEAR)
    if fit == "pad":
        # `ImageOps.pad` would drop an image that becomes thinner than half a pixel.
        width, height = (max(1, round(size * side / max(image.size))) for side in image.size)
        padded = Image.new(image.mode, (size, size))
        padded.paste(image.resize((width, height), BILINEAR), ((size - width) // 2, (size - height) // 2))
        return padded
    # `ImageOps.fit` would differ by a fraction of a pixel from torchvision's Resize and CenterCrop.
    width, height = (int(size * side / min(image.size)) for side in image.size)
    if width * height > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise UserError(
            f"an image of {image.width}×{image.height} pixels would become one of {width}×{height} before "
            f"cropping to {size}×{size}; accepted: less elongated images, or fit='stretch' or fit='pad'"
        )
    return _centre(image.resize((width, height), BILINEAR), size)


def _centre(image: Image.Image, crop: int) -> Image.Image:
    if crop > min(image.size):
        raise UserError(
            f"crop={crop}: larger than an image of {image.width}×{image.height} pixels; "
            f"accepted: at most {min(image.size)}"
        )
    left, top = round((image.width - crop) / 2), round((image.height - crop) / 2)
    return image.crop((left, top, left + crop, top + crop))
