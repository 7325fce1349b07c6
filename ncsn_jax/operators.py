"""Linear operators A of observations y = A x₀ + noise.

An operator is any real-linear function of one example, such as these. `Observation` finds the transpose
itself. An operator of your own may have one of two properties, which give the likelihood in closed form:

- `squared_row_length`, if its rows are orthogonal: their squared lengths, the diagonal of A Aᵀ;
- `squared_spectrum(shape)`, if Aᵀ A is circulant for x of this shape: its eigenvalues by frequency, in the
  order of `numpy.fft`, or None.

Frequencies belong to the first two axes of x, height and width, or to the axis of a vector.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.scipy.signal import fftconvolve
from jaxtyping import Bool, Complex, Float

LUMA = (0.299, 0.587, 0.114)


class Identity(struct.PyTreeNode):
    """Operator of denoising: x itself."""

    @property
    def squared_row_length(self) -> float:
        """1."""
        return 1.0

    def __call__(self, x: Float[Array, "*event"]) -> Float[Array, "*event"]:
        return x


class Scale(struct.PyTreeNode):
    """Operator that multiplies each channel by a number.

    Attributes:
      factors: the numbers, `(channels,)`.
    """

    factors: Any

    def __call__(self, x: Float[Array, "*event"]) -> Float[Array, "*event"]:
        return x * jnp.broadcast_to(jnp.asarray(self.factors, x.dtype), x.shape)


class Mask(struct.PyTreeNode):
    """Operator of inpainting: the known pixels, with 0 for the others.

    Attributes:
      mask: true where a pixel is known, shape `(*event,)`.
    """

    mask: Any

    @property
    def squared_row_length(self) -> Bool[Array, "*event"]:
        """1 for a known pixel, 0 for another."""
        return jnp.asarray(self.mask, bool)

    def __call__(self, x: Float[Array, "*event"]) -> Float[Array, "*event"]:
        return jnp.where(self.mask, x, 0.0)


class Luma(struct.PyTreeNode):
    """Operator of colorization: the grey 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601, as in Pillow)."""

    @property
    def squared_row_length(self) -> float:
        """0.299² + 0.587² + 0.114²."""
        return float(np.dot(LUMA, LUMA))

    def __call__(self, x: Float[Array, "height width 3"]) -> Float[Array, "height width 1"]:
        return x @ jnp.array(LUMA, x.dtype)[:, None]


class BlockAverage(struct.PyTreeNode):
    """Operator of super-resolution: the averages of square blocks.

    Attributes:
      factor: the side of a block, in pixels; it must divide height and width.
    """

    factor: int = struct.field(pytree_node=False)

    @property
    def squared_row_length(self) -> float:
        """1 / factor²."""
        return 1.0 / self.factor**2

    def __call__(self, x: Float[Array, "height width c"]) -> Float[Array, "rows columns c"]:
        height, width, channels = x.shape
        if self.factor < 1 or height % self.factor or width % self.factor:
            raise ValueError(
                f"blocks of {self.factor}×{self.factor} pixels don't tile {height}×{width}; accepted: a "
                "factor that divides both"
            )
        blocks = x.reshape(height // self.factor, self.factor, width // self.factor, self.factor, channels)
        return jnp.mean(blocks, axis=(1, 3))


class Convolution(struct.PyTreeNode):
    """Operator of deblurring: the convolution with a point-spread function, by FFT.

    Attributes:
      psf: the point-spread function, `(height, width)`, `(height, width, channels)`, or `(D,)` for vectors;
        no larger than x. Its centre is element (n − 1) // 2 of each axis, as in `scipy.signal.convolve` with
        `mode="same"`.
      boundary: the values of x outside the image: `periodic`, or `zero`.
    """

    psf: Any
    boundary: Literal["periodic", "zero"] = struct.field(default="periodic", pytree_node=False)

    def squared_spectrum(self, shape: tuple[int, ...]) -> Float[Array, "..."] | None:
        """|FFT of the point-spread function|²; None with a zero boundary."""
        if self.boundary == "zero":
            return None
        return jnp.square(jnp.abs(self._spectrum(shape)))

    def __call__(self, x: Float[Array, "*event"]) -> Float[Array, "*event"]:
        axes = frequency_axes(x.shape)
        if self.boundary == "zero":
            psf = jnp.broadcast_to(self._psf(x.shape), (*self._psf(x.shape).shape[: len(axes)], *x.shape[2:]))
            return fftconvolve(x, psf.astype(x.dtype), mode="same", axes=axes)
        spectrum = self._spectrum(x.shape)
        return jnp.fft.ifftn(spectrum * jnp.fft.fftn(x, axes=axes), axes=axes).real.astype(x.dtype)

    def _psf(self, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """The point-spread function with the axes of x."""
        psf, rank = jnp.asarray(self.psf), len(frequency_axes(shape))
        psf = psf[..., None] if psf.ndim == rank < len(shape) else psf
        fits = psf.ndim == len(shape) and all(p <= n for p, n in zip(psf.shape, shape, strict=True))
        if not fits or psf.shape[rank:] not in (shape[rank:], (1,) * (len(shape) - rank)):
            raise ValueError(
                f"psf must be no larger than x, {shape}, and have one channel or its channels, found the "
                f"shape {jnp.shape(self.psf)}"
            )
        return psf

    def _spectrum(self, shape: tuple[int, ...]) -> Complex[Array, "..."]:
        """The eigenvalues of the periodic convolution, by frequency."""
        axes, psf = frequency_axes(shape), self._psf(shape)
        padding = [(0, shape[axis] - psf.shape[axis]) for axis in axes]
        padded = jnp.pad(psf, [*padding, *[(0, 0)] * (psf.ndim - len(axes))])
        centred = jnp.roll(padded, [-((psf.shape[axis] - 1) // 2) for axis in axes], axes)
        return jnp.fft.fftn(centred, axes=axes)


class FourierMask(struct.PyTreeNode):
    """Operator of interferometry and magnetic resonance: the known frequencies, with 0 for the others.

    Frequencies are complex numbers, from the unitary FFT (`norm="ortho"`), each channel's for itself.

    Attributes:
      mask: true where a frequency is known, `(height, width)`, or `(D,)` for vectors; frequency 0 is first,
        as in `numpy.fft` (`numpy.fft.ifftshift` converts a centred mask).
    """

    mask: Any

    def squared_spectrum(self, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """The average of the mask at k and −k, which hold the same information about real x."""
        axes = frequency_axes(shape)
        mask = self._mask(shape).astype(float)
        mirrored = jnp.roll(jnp.flip(mask, axes), [1] * len(axes), axes)
        return (mask + mirrored) / 2

    def __call__(self, x: Float[Array, "*event"]) -> Complex[Array, "*event"]:
        frequencies = jnp.fft.fftn(x, axes=frequency_axes(x.shape), norm="ortho")
        return jnp.where(self._mask(x.shape), frequencies, 0.0)

    def _mask(self, shape: tuple[int, ...]) -> Bool[Array, "..."]:
        mask, rank = jnp.asarray(self.mask, bool), len(frequency_axes(shape))
        if mask.shape != shape[:rank]:
            raise ValueError(f"mask must have the shape {shape[:rank]}, found {mask.shape}")
        return mask.reshape(*mask.shape, *[1] * (len(shape) - rank))


class Compose(struct.PyTreeNode):
    """Operator x ↦ outer(inner(x)), such as `Compose(Mask(known), Convolution(psf))`.

    It is a pytree if both are; wrap a plain function in `jax.tree_util.Partial`.

    Attributes:
      outer: the second operator.
      inner: the first operator.
    """

    outer: Callable[[Array], Array]
    inner: Callable[[Array], Array]

    def __call__(self, x: Array) -> Array:
        return self.outer(self.inner(x))


def frequency_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes of an example that have frequencies: height and width, or a vector's one axis."""
    return tuple(range(min(2, len(shape))))
