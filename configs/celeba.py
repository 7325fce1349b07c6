"""CelebA, cropped to the central 140×140 pixels and resized, with the networks of three papers.

    python main.py --config configs/celeba.py              # or configs/celeba.py:ncsn
    python main.py --config configs/celeba.py:ncsnv2
    python main.py --config configs/celeba.py:ncsnpp

ncsn is Song & Ermon 2019, section 5: 32×32 pixels, F = 128, ten levels from 1 to 0.01, T = 100, ε = 2e-5. The
paper shows samples and quotes no score.

ncsnv2 is Song & Ermon 2020: 64×64 pixels, F = 128, 500 levels from 90 to 0.01, T = 5, ε = 3.3e-6, sampled
from the moving average with a denoising step. Published: FID 10.23.

The number of training steps of NCSNv2 is this project's choice; the papers' tables don't give it.

ncsnpp is Song et al. 2021 (ve/celeba_ncsnpp): 64×64 pixels, the network of
`configs/cifar10.py:ncsnpp_discrete` (62,693,251 parameters), 1,000 levels from 90 to 0.01, r = 0.17. Its
authors publish neither weights nor FID.

ncsn and ncsnv2 train 30 million parameters. All need an accelerator.

CelebA is downloaded and prepared at first use; --config.data.data_dir names a directory that holds it
already. If Google Drive refuses the download, put img_align_celeba.zip, list_eval_partition.txt,
list_attr_celeba.txt, list_landmarks_align_celeba.txt and identity_CelebA.txt into
DATA_DIR/downloads/manual.
"""

from ncsn_jax.app.config import Config, Data, NcsnModel, NcsnppModel, Ncsnv2Model, Sampling, Training
from ncsn_jax.app.overridable import overridable
from ncsn_jax.app.published import published


def get_config(network: str = "ncsn"):
    networks = {
        "ncsn": Config(
            data=Data(name="celeb_a", crop=140, image_size=32, random_flip=True),
            model=NcsnModel(num_filters=128),
        ),
        "ncsnv2": Config(
            data=Data(name="celeb_a", crop=140, image_size=64, random_flip=True, dequantization="none"),
            model=Ncsnv2Model(num_filters=128, sigma_begin=90.0, num_scales=500),
            training=Training(num_steps=210_000, learning_rate=1e-4, ema_rate=0.999),
            sampling=Sampling(step_size=3.3e-6, steps_per_scale=5, denoise=True),
        ),
        "ncsnpp": published(
            Data(name="celeb_a", crop=140, image_size=64),
            NcsnppModel(
                image_size=64,
                embedding="positional",
                sigma_begin=90.0,
                num_scales=1000,
                dropout=0.1,
            ),
            snr=0.17,
        ),
    }
    if network not in networks:
        raise ValueError(f"configs/celeba.py:{network}: accepted: {', '.join(networks)}")
    return overridable(networks[network])
