"""The embedded default: NCSN on scikit-learn's 8×8 digits, tuned for two CPU cores; no download.

    make demo                 # or: python main.py

Cost: 1,500 steps of 64 images and 100 samples, 4 minutes on two cores. Result: held-out loss 14.3; of 1,000
samples every class holds 8-13 %, and their Fréchet distance (pixels) to the training images is 0.23
(`python -m benchmarks.digits_quality`).
"""

from configs.overridable import overridable
from ncsn_jax.config import Config, Data, NcsnModel, Sampling, Training


def get_config():
    return overridable(
        Config(
            data=Data(name="digits"),
            model=NcsnModel(num_filters=16),
            training=Training(
                num_steps=1500,
                batch_size=64,
                learning_rate=2e-3,
                schedule="cosine",
                ema_rate=0.995,
                log_every=50,
                eval_every=500,
                checkpoint_every=500,
                preview_every=500,
                preview_samples=25,
            ),
            sampling=Sampling(
                num_samples=100, batch_size=100, step_size=2e-5, steps_per_scale=20, denoise=True
            ),
        )
    )
