"""Operations of the networks in the forms that XLA for CPUs compiles well.

Each returns the value of its plain form, on any platform.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int

PIXELS = (1, 2)
"""Axes of images with their pixels, height and width."""


def computed_once(x: Array) -> Array:
    """Return x unchanged; on a CPU, keep its computation from being fused into the users of x.

    XLA for CPUs would repeat the computation many times: it fuses a convolution's input into every copy of it
    that the gradient needs in another layout, and a channel's scale into the loop over the channel's pixels.
    """
    return jax.lax.optimization_barrier(x) if jax.default_backend() == "cpu" else x


# Jitted, so that it is traced and lowered once per shape, not at each of a network's hundred calls.
convolution = jax.jit(
    jax.lax.conv_general_dilated,
    static_argnames=(
        "window_strides",
        "padding",
        "lhs_dilation",
        "rhs_dilation",
        "dimension_numbers",
        "feature_group_count",
        "precision",
    ),
)


@functools.partial(jax.jit, static_argnames="parts")
def level_rows(table: Array, level: Int[Array, " batch"], parts: int) -> list[Array]:
    """Each level's row of a table, in equal parts that broadcast against `Images`: `(batch, 1, 1, channels)`.

    The rows are picked by a product with the levels' one-hot vectors, which is exact if the table is finite;
    a level outside of the table gives zeros. Picking by index, like `flax.linen.Embed`, lengthened the
    gradient's compilation by a sixth on a CPU.

    Args:
      table: the coefficients, `(num_scales, parts·channels)`.
      level: the noise level of each image.
      parts: the number of parts.
    """
    one_hot = jax.nn.one_hot(level, table.shape[0], dtype=table.dtype)
    rows = jnp.dot(one_hot, table, precision=jax.lax.Precision.HIGHEST)
    return jnp.split(jnp.expand_dims(rows, PIXELS), parts, axis=-1)
