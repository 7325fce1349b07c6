"""Pictures of arrays: some of their channels, in a range that most of their values lie in."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ncsn_jax.runtime import processes
from ncsn_jax.runtime.errors import ArgumentError

States = Sequence[Float[np.ndarray, "n height width channels"]]
SHARE = 0.99
"""Share of the values within the range that is shown."""


def as_images(states: States, channels: tuple[int, ...] | None) -> tuple[list[np.ndarray], str]:
    """Return states with one or three channels and numbers in [0, 1], and a text about them for the log.

    Args:
      states: states of the same arrays; the range is 99 % of the last one's values.
      channels: the channels; None is all if there are one or three, and otherwise the first.

    Returns:
      The pictures, grey where a state is NaN, and the text.

    Raises:
      ArgumentError: if there is no such channel.
    """
    count = states[-1].shape[-1]
    shown = channels or (tuple(range(count)) if count in (1, 3) else (0,))
    if len(shown) not in (1, 3) or not all(0 <= channel < count for channel in shown):
        raise ArgumentError(
            f"shown_channels={shown}: accepted: one or three of the channels 0 to {count - 1}"
        )
    some = [state[..., list(shown)] for state in states]
    finite = some[-1][np.isfinite(some[-1])]
    tail = (1 - SHARE) / 2
    low, high = np.quantile(finite, [tail, 1 - tail]).tolist() if finite.size else (0.0, 1.0)
    scale = (high - low) or 1.0
    names = ", ".join(map(str, shown))
    text = f"pictures show channel {names} from {low:.4g} (black) to {high:.4g} (white)"
    return [np.where(np.isnan(state), 0.5, (state - low) / scale) for state in some], text


def announced(directory: Path, states: States, channels: tuple[int, ...] | None) -> list[np.ndarray]:
    """Return the images of `as_images`, and log its text."""
    images, text = as_images(states, channels)
    processes.say(f"{directory}: {text}, {SHARE:.0%} of the values")
    return images
