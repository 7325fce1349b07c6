"""A network small enough to compile in a second, and a run small enough to finish in seconds."""

import pytest
from flax import linen as nn

from ncsn_jax.config import Config, Data, MlpModel, Sampling, Training


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


@pytest.fixture(scope="session")
def tiny_config():
    """40 steps on points, with a checkpoint every 10; test_kill.py and test_main.py train on images."""
    return Config(
        seed=3,
        data=Data(name="two_moons"),
        model=MlpModel(num_features=8, num_layers=2, num_scales=3),
        training=Training(
            num_steps=40,
            batch_size=8,
            warmup_steps=4,
            gradient_clip=100.0,
            ema_rate=0.9,
            log_every=10,
            eval_every=20,
            eval_examples=12,
            checkpoint_every=10,
            keep_checkpoints=2,
            preview_every=20,
            preview_samples=4,
        ),
        sampling=Sampling(num_samples=6, batch_size=4, steps_per_scale=2, denoise=True),
    )
