"""PNG encoding: what TFDS stores without TensorFlow is PNG bytes."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def png_bytes(image: UInt8[np.ndarray, "height width channels"]) -> bytes:
    """A grey or RGB image as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()
