"""Arrays as Pillow's images, and as PNG bytes, which is what TFDS stores without TensorFlow."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def pillow_image(image: UInt8[np.ndarray, "height width channels"]) -> Image.Image:
    """A grey or RGB image as Pillow's."""
    return Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)


def png_bytes(image: UInt8[np.ndarray, "height width channels"]) -> bytes:
    """A grey or RGB image as a PNG file."""
    buffer = io.BytesIO()
    pillow_image(image).save(buffer, "PNG")
    return buffer.getvalue()
