"""CelebA-HQ, from a folder of images, with the network of Song et al. 2021.

    python main.py --config configs/celebahq.py --config.data.data_dir=DIR              # 256×256; or :256
    python main.py --config configs/celebahq.py:1024 --config.data.data_dir=DIR         # 1024×1024

DIR holds the 30,000 images as files, of any size, in any subdirectories.

The experiments are ve/celebahq_256_ncsnpp_continuous and ve/celebahq_ncsnpp_continuous: the settings of
`configs/ffhq.py:ncsnpp` and `:ncsnpp_1024`, except that squares are summed at 1024×1024, too. The authors
publish the weights for 256×256, and no FID.

They need several accelerators.
"""

import runpy
from pathlib import Path


def get_config(size: str = "256"):
    networks = {"256": "ncsnpp", "1024": "ncsnpp_1024"}
    if size not in networks:
        raise ValueError(f"configs/celebahq.py:{size}: accepted: {', '.join(networks)}")
    ffhq = runpy.run_path(str(Path(__file__).with_name("ffhq.py")))["get_config"](networks[size])
    ffhq.training.reduce_mean = False
    return ffhq
