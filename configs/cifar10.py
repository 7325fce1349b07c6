"""CIFAR-10, with the networks of three papers.

    python main.py --config configs/cifar10.py             # or configs/cifar10.py:ncsn
    python main.py --config configs/cifar10.py:ncsnv2
    python main.py --config configs/cifar10.py:ncsnpp      # or :ncsnpp_deep, :ncsnpp_discrete, :ddpm
    python main.py --config configs/cifar10.py:conditional # NCSN++ given a class

ncsn is Song & Ermon 2019, section 5: F = 128, ten levels from 1 to 0.01, T = 100, ε = 2e-5. Published:
inception score 8.87, FID 25.32.

ncsnv2 is Song & Ermon 2020: F = 128, 232 levels from 50 to 0.01, T = 5, ε = 6.2e-6, sampled from the moving
average with a denoising step. Published: FID 10.87, inception score 8.40.

The number of training steps of NCSNv2 is this project's choice; the papers' tables don't give it.

The others are Song et al. 2021: NCSN++ with F = 128 and noise levels from 50 to 0.01, sampled by
predictor-corrector with r = 0.16 on 1,000 levels, from the moving average. `ncsn_jax/app/published.py` has
the settings that they share.

| experiment | of the release | parameters | FID | inception score |
|---|---|---|---|---|
| ncsnpp | ve/cifar10_ncsnpp_continuous | 62,758,915 | 2.38 | 9.83 |
| ncsnpp_deep | ve/cifar10_ncsnpp_deep_continuous | 107,587,075 | 2.20 | 9.89 |
| ncsnpp_discrete | ve/cifar10_ncsnpp | 62,693,251 | 2.45 | 9.73 |
| ddpm | ve/cifar10_ddpm, the plain DDPM network | 35,218,947 | | |

Their authors publish these figures for the best of all checkpoints. They weren't trained with this program.

conditional is ncsnpp given a class, `--config.sampling.condition=horse` (docs/conditions.md). It has no
published result.

ncsn and ncsnv2 train 30 million parameters. All need an accelerator.

CIFAR-10 is downloaded and prepared at first use; --config.data.data_dir names a directory that holds it
already.
"""

from ncsn_jax.app.config import Config, Data, NcsnModel, NcsnppModel, Ncsnv2Model, Sampling, Training
from ncsn_jax.app.overridable import overridable
from ncsn_jax.app.published import published

LEVELS = {"sigma_begin": 50.0, "num_scales": 1000, "dropout": 0.1}
DDPM = {
    "num_res_blocks": 2,
    "block": "ddpm",
    "fir": False,
    "skip_rescale": False,
    "progressive_input": "none",
    "embedding": "positional",
    "num_groups": 32,
}


def conditional(model: NcsnppModel) -> Config:
    """Return NCSN++ with classes, which a tenth of the training examples lose."""
    config = published(Data(name="cifar10", condition="class"), model)
    training = config.training.model_copy(update={"unconditional": 0.1})
    return config.model_copy(update={"training": training})


def get_config(network: str = "ncsn"):
    images = Data(name="cifar10")
    networks = {
        "ncsn": Config(data=Data(name="cifar10", random_flip=True), model=NcsnModel(num_filters=128)),
        "ncsnv2": Config(
            data=Data(name="cifar10", random_flip=True, dequantization="none"),
            model=Ncsnv2Model(num_filters=128, sigma_begin=50.0, num_scales=232),
            training=Training(num_steps=300_000, learning_rate=1e-4, ema_rate=0.999),
            sampling=Sampling(step_size=6.2e-6, steps_per_scale=5, denoise=True),
        ),
        "ncsnpp": published(images, NcsnppModel(**LEVELS)),
        "ncsnpp_deep": published(images, NcsnppModel(num_res_blocks=8, **LEVELS), num_steps=950_001),
        "ncsnpp_discrete": published(images, NcsnppModel(embedding="positional", **LEVELS)),
        "ddpm": published(images, NcsnppModel(**DDPM, **LEVELS)),
        "conditional": conditional(NcsnppModel(**LEVELS)),
    }
    if network not in networks:
        raise ValueError(f"configs/cifar10.py:{network}: accepted: {', '.join(networks)}")
    return overridable(networks[network])
