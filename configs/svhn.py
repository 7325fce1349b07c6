"""NCSN on the Street View House Numbers, 32×32.

    python main.py --config configs/svhn.py

Song & Ermon 2019, section 5: F = 128, ten levels from 1 to 0.01, T = 100, ε = 2e-5, the 73,257 images of the
training split. The paper shows samples and quotes no score.

It trains 30 million parameters and needs an accelerator. SVHN is downloaded and prepared at first use;
--config.data.data_dir names a directory that holds it already.
"""

from ncsn_jax.app.config import Config, Data, NcsnModel
from ncsn_jax.app.overridable import overridable


def get_config():
    return overridable(Config(data=Data(name="svhn_cropped"), model=NcsnModel(num_filters=128)))
