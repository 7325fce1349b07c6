"""CIFAR-10, with the networks of both papers.

    python main.py --config configs/cifar10.py             # or configs/cifar10.py:ncsn
    python main.py --config configs/cifar10.py:ncsnv2

ncsn is Song & Ermon 2019, section 5: F = 128, ten levels from 1 to 0.01, T = 100, ε = 2e-5. Published:
inception score 8.87, FID 25.32.

ncsnv2 is Song & Ermon 2020: F = 128, 232 levels from 50 to 0.01, T = 5, ε = 6.2e-6, sampled from the moving
average with a denoising step. Published: FID 10.87, inception score 8.40.

The number of training steps of NCSNv2 is this project's choice; the papers' tables don't give it.

Both train 30 million parameters and need an accelerator. CIFAR-10 is downloaded and prepared at first use;
--config.data.data_dir names a directory that holds it already.
"""

from ncsn_jax.app.config import Config, Data, NcsnModel, Ncsnv2Model, Sampling, Training
from ncsn_jax.app.overridable import overridable


def get_config(network: str = "ncsn"):
    networks = {
        "ncsn": Config(data=Data(name="cifar10", random_flip=True), model=NcsnModel(num_filters=128)),
        "ncsnv2": Config(
            data=Data(name="cifar10", random_flip=True, dequantization="none"),
            model=Ncsnv2Model(num_filters=128, sigma_begin=50.0, num_scales=232),
            training=Training(num_steps=300_000, learning_rate=1e-4, ema_rate=0.999),
            sampling=Sampling(step_size=6.2e-6, steps_per_scale=5, denoise=True),
        ),
    }
    if network not in networks:
        raise ValueError(f"configs/cifar10.py:{network}: accepted: {', '.join(networks)}")
    return overridable(networks[network])
