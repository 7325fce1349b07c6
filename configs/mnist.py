"""NCSN on MNIST.

    python main.py --config configs/mnist.py          # the paper's experiment
    python main.py --config configs/mnist.py:small    # a small network, for two CPU cores
    python main.py --config configs/mnist.py:ncsnv2   # the network of 2020

The first is Song & Ermon 2019, section 5 and appendix B: F = 64, ten levels from 1 to 0.01, Adam at 1e-3,
200,000 steps of 128 images, T = 100, ε = 2e-5. It needs an accelerator.

The second takes 24 minutes on two CPU cores and ends at a held-out loss of 37.2; README.md shows its
samples.

The third, NCSNv2 with F = 64, has no published result. Its noise levels and step size are the output of
`python main.py --mode suggest_noise` for MNIST and T = 5. It needs an accelerator.

MNIST is downloaded and prepared at first use (TensorFlow isn't needed); --config.data.data_dir names a
directory that holds it already.
"""

from ncsn_jax.app.config import Config, Data, Evaluation, NcsnModel, Ncsnv2Model, Sampling, Training
from ncsn_jax.app.overridable import overridable


def get_config(size: str = "paper"):
    sizes = {
        "paper": Config(data=Data(name="mnist")),
        "small": Config(
            data=Data(name="mnist"),
            model=NcsnModel(num_filters=32),
            training=Training(
                num_steps=4800,
                batch_size=8,
                learning_rate=4e-3,
                schedule="cosine",
                warmup_steps=100,
                ema_rate=0.998,
                log_every=100,
                eval_every=800,
                eval_examples=256,
                checkpoint_every=400,
                preview_every=1600,
                preview_samples=16,
            ),
            sampling=Sampling(
                num_samples=64, batch_size=64, step_size=2e-5, steps_per_scale=20, denoise=True
            ),
            evaluation=Evaluation(num_samples=1000),
        ),
        "ncsnv2": Config(
            data=Data(name="mnist", dequantization="none"),
            model=Ncsnv2Model(num_filters=64, sigma_begin=16.9, num_scales=96),
            training=Training(learning_rate=1e-4, ema_rate=0.999),
            sampling=Sampling(step_size=1.1e-5, steps_per_scale=5, denoise=True),
        ),
    }
    if size not in sizes:
        raise ValueError(f"configs/mnist.py:{size}: accepted: {', '.join(sizes)}")
    return overridable(sizes[size])
