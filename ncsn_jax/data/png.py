"""Arrays as Pillow images, and as PNG bytes, the format that TFDS stores without TensorFlow."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def pillow_image(image: UInt8[np.ndarray, "height width channels"]) -> Image.Image:
    """Return a grey or RGB image as a Pillow image."""
    return Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)


def png_bytes(image: UInt8[np.ndarray, "height width channels"]) -> bytes:
    """Return a grey or RGB image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    pillow_image(image).save(buffer, "PNG")
    return buffer.getvalue()
