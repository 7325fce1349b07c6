"""NCSN on MNIST.

    python main.py --config configs/mnist.py          # the paper's experiment
    python main.py --config configs/mnist.py:small    # a small preconditioned NCSN++, for two CPU cores
    python main.py --config configs/mnist.py:conditional   # the same given a class
    python main.py --config configs/mnist.py:hour     # a larger one given a class
    python main.py --config configs/mnist.py:ncsnv2   # the network of 2020

The first is Song & Ermon 2019, section 5 and appendix B: F = 64, ten levels from 1 to 0.01, Adam at 1e-3,
200,000 steps of 128 images, T = 100, ε = 2e-5. It needs an accelerator.

The next three see patches of 2×2 pixels and are trained as Karras et al. 2022, with Muon. `small` takes 16
minutes on two CPU cores. The project's classifier is sure of 87 % of its samples (p > 0.9; 98 % of test
images), whose Fréchet distance in the classifier's features is 0.66 (1,000 samples; test images 0.42).
docs/notes/small-networks.md has the trials that led there.

`conditional` is `small` given each digit's class, `--config.sampling.condition=7` (docs/conditions.md): 98 %
and 0.41. `hour` has two blocks a level and 10,000 steps, which make 36 minutes at 147 images/s: 98 % and
0.38. The classifier takes 98.6 % and 98.8 % of the samples for the class asked for.

The last, NCSNv2 with F = 64, has no published result. Its noise levels and step size are the output of
`python main.py --mode suggest_noise` for MNIST and T = 5. It needs an accelerator.

MNIST is downloaded and prepared at first use (TensorFlow isn't needed); --config.data.data_dir names a
directory that holds it already.
"""

from typing import Literal

from ncsn_jax.app.config import (
    Config,
    Data,
    Evaluation,
    NcsnppModel,
    Ncsnv2Model,
    Sampling,
    Training,
)
from ncsn_jax.app.overridable import overridable


def small(num_res_blocks: int, num_steps: int, condition: Literal["none", "class"] = "none") -> Config:
    """Return the settings of a small preconditioned NCSN++ on patches."""
    return Config(
        data=Data(name="mnist", condition=condition),
        model=NcsnppModel(
            num_filters=32,
            multipliers=(1, 2),
            num_res_blocks=num_res_blocks,
            attention_resolutions=(7,),
            image_size=14,
            patch_size=2,
            fir=False,
            progressive_input="none",
            fourier_scale=1.0,
            scale_by_sigma=False,
            preconditioning="karras",
            sigma_begin=20.0,
            sigma_end=0.005,
            num_scales=100,
        ),
        training=Training(
            num_steps=num_steps,
            batch_size=32,
            unconditional=0.1 if condition == "class" else 0.0,
            weighting="karras",
            noise="log_normal",
            p_mean=-0.4,
            p_std=1.0,
            optimizer="muon",
            learning_rate=6e-3,
            warmup_steps=100,
            schedule="cosine",
            ema_rate=0.998,
            log_every=100,
            eval_every=1000,
            eval_examples=256,
            checkpoint_every=500,
            preview_every=2000,
            preview_samples=16,
        ),
        sampling=Sampling(
            num_samples=64,
            method="heun",
            num_levels=24,
            s_churn=10.0,
            s_noise=0.8,
            s_min=0.3,
            step_size=2.9e-6,
            steps_per_scale=5,
            denoise=True,
        ),
        evaluation=Evaluation(num_samples=1000),
    )


def get_config(size: str = "paper"):
    sizes = {
        "paper": Config(data=Data(name="mnist")),
        "small": small(num_res_blocks=1, num_steps=5600),
        "conditional": small(num_res_blocks=1, num_steps=5600, condition="class"),
        "hour": small(num_res_blocks=2, num_steps=10_000, condition="class"),
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
