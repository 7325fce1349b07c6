"""A network small enough to compile in a second."""

import pytest
from flax import linen as nn


class TinyScore(nn.Module):
    """A score network of one hidden convolution."""

    sigmas: tuple[float, ...] = (1.0, 0.1)

    @nn.compact
    def __call__(self, x, sigma):
        h = nn.tanh(nn.Conv(4, (3, 3))(x))
        return nn.Conv(x.shape[-1], (3, 3))(h) / sigma[:, None, None, None]


@pytest.fixture(scope="session")
def tiny_score():
    return TinyScore()
