"""NCSN on MNIST.

    python main.py --config configs/mnist.py          # the paper's experiment
    python main.py --config configs/mnist.py:small    # a small network, for two CPU cores

The first is Song & Ermon 2019, section 5 and appendix B: F = 64, ten levels from 1 to 0.01, Adam at 1e-3,
200,000 steps of 128 images, T = 100, ε = 2e-5. It needs an accelerator.

The second takes about an hour on two CPU cores and ends at a held-out loss of 38.5; README.md shows its
samples.

MNIST is downloaded and prepared at first use (TensorFlow isn't needed); --config.data.data_dir names a
directory that holds it already.
"""

from configs.overridable import overridable
from ncsn_jax.config import Config, Data, NcsnModel, Sampling, Training


def get_config(size: str = "paper"):
    sizes = {
        "paper": Config(data=Data(name="mnist")),
        "small": Config(
            data=Data(name="mnist"),
            model=NcsnModel(num_filters=32),
            training=Training(
                num_steps=2500,
                batch_size=32,
                learning_rate=2e-3,
                schedule="cosine",
                warmup_steps=100,
                ema_rate=0.995,
                log_every=25,
                eval_every=250,
                eval_examples=256,
                checkpoint_every=100,
                preview_every=500,
                preview_samples=16,
            ),
            sampling=Sampling(
                num_samples=64, batch_size=64, step_size=2e-5, steps_per_scale=20, denoise=True
            ),
        ),
    }
    if size not in sizes:
        raise ValueError(f"configs/mnist.py:{size}: accepted: {', '.join(sizes)}")
    return overridable(sizes[size])
