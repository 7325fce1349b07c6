"""A small preconditioned NCSN++ on patches of 2×2 pixels, for your own arrays.

    python main.py --config configs/arrays.py --config.data.data_dir=DIR --workdir RUN

DIR holds train.npy, and test.npy if you have it: `(n, height, width, channels)` or `(n, height, width)` with
heights and widths divisible by 4, of any range and any number of channels. Samples have the units of the
data. docs/measurements.md is a worked example, from arrays to posteriors.

The settings fit two CPU cores: 2,000 steps of 32 examples of 32×32 take 8 minutes. Larger
images want smaller batches (--config.training.batch_size=1) and fewer filters (--config.model.num_filters=8).
"""

from ncsn_jax.app.config import Config, Data, Evaluation, NcsnppModel, Sampling, Training
from ncsn_jax.app.overridable import overridable


def get_config():
    return overridable(
        Config(
            data=Data(name="arrays"),
            model=NcsnppModel(
                num_filters=32,
                multipliers=(1, 2),
                num_res_blocks=1,
                attention_resolutions=(),
                middle_attention=False,
                patch_size=2,
                fir=False,
                progressive_input="none",
                fourier_scale=1.0,
                scale_by_sigma=False,
                preconditioning="karras",
                sigma_begin=80.0,
                sigma_end=0.01,
                num_scales=100,
            ),
            training=Training(
                num_steps=2000,
                batch_size=32,
                weighting="karras",
                noise="log_normal",
                p_mean=-0.4,
                p_std=1.2,
                optimizer="muon",
                learning_rate=5e-3,
                warmup_steps=100,
                schedule="cosine",
                ema_rate=0.998,
                log_every=100,
                eval_every=1000,
                eval_examples=256,
                checkpoint_every=500,
                preview_every=1000,
                preview_samples=16,
            ),
            sampling=Sampling(
                num_samples=16,
                method="heun",
                num_levels=24,
                step_size=1e-5,
                steps_per_scale=5,
                denoise=True,
            ),
            evaluation=Evaluation(num_samples=256),
        )
    )
