"""Features of Inception-v3, for FID, KID and IS, by torch-fidelity (the extra `fid`)."""

import hashlib
import http.client
import importlib.util
import io
import os
import pickle
import socket

import numpy as np
from jaxtyping import UInt8

from ncsn_jax.evaluation.features import Extracted, Features
from ncsn_jax.runtime.errors import ArgumentError, UserError

_NUM_FEATURES, _NUM_CLASSES = 2048, 1008
_TIMEOUT = 10.0
"""Seconds that a download waits for an answer, or for the next bytes."""


def is_installed() -> bool:
    """Return whether torch-fidelity is installed, without importing it."""
    return importlib.util.find_spec("torch_fidelity") is not None


def require_installed(weights: str | None) -> None:
    """Refuse Inception's features before anything is drawn, if they can't be computed later.

    Raises:
      UserError: if torch-fidelity isn't installed, or the named file of weights doesn't exist.
    """
    if not is_installed():
        raise UserError("Inception-v3's features need torch-fidelity: pip install -e '.[fid]'")
    if weights is not None and not os.path.isfile(weights):
        raise ArgumentError(f"inception_weights={weights}: no such file")


def inception(weights: str | None = None, *, batch_size: int = 64) -> Features:
    """Return the feature map of the Inception-v3 first used for FID, on a GPU if PyTorch has one.

    An image, of any size, is resized to 299×299 as in TensorFlow 1. Its features are the output of the last
    pooling layer, its probabilities the softmax of the logits without their bias. A grey image is repeated in
    three equal channels.

    Args:
      weights: a file of the weights, in torch-fidelity's format; None downloads them, once, into PyTorch's
        cache.
      batch_size: the number of images in a batch of the network.

    Returns:
      The map from images 0 … 255, uint8 `(n, height, width, 1 or 3)`, to features `(n, 2048)` and
      probabilities `(n, 1008)`, both float32. Its fingerprint is the SHA-256 of the weights.

    Raises:
      UserError: if torch-fidelity isn't installed, the weights can't be downloaded, or the file doesn't hold
        such weights.

    Reference:
      Szegedy et al. 2015 (arXiv:1512.00567); Heusel et al. 2017 (arXiv:1706.08500); Obukhov et al. 2020,
      torch-fidelity (doi:10.5281/zenodo.4957738).
    """
    network = _network(weights)
    return Features("inception", f"inception-{_digest(network)}", lambda x: _extract(network, x, batch_size))


def _network(weights: str | None):
    try:
        import torch  # pyright: ignore[reportMissingImports]
        from torch_fidelity.feature_extractor_inceptionv3 import (  # pyright: ignore[reportMissingImports]
            URL_INCEPTION_V3,
            FeatureExtractorInceptionV3,
        )
    except ImportError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"Inception-v3's features need torch-fidelity: found {reason!r}; pip install -e '.[fid]'"
        ) from error
    if weights is None:
        path = _downloaded(URL_INCEPTION_V3)
        name = f"Inception-v3's weights, downloaded to {path}"
    else:
        path, name = weights, f"inception_weights={weights}"
    accepted = f"accepted: a copy of {URL_INCEPTION_V3}"
    state = _loaded(path, name, accepted)
    # torch-fidelity would run any code in a pickle, so it gets only the plain tensors read from the file.
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    try:
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=file
        )
    except RuntimeError as error:  # other names or shapes
        first = next(iter(state), None)
        raise UserError(
            f"{name}: found {len(state)} tensors of another network, the first {first!r}; {accepted}"
        ) from error
    return network.to("cuda" if torch.cuda.is_available() else "cpu")


def _downloaded(url: str) -> str:
    """Return the path of the weights in PyTorch's cache, and download them if necessary."""
    import torch  # pyright: ignore[reportMissingImports]

    path = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(url))
    if os.path.exists(path):
        return path
    before = socket.getdefaulttimeout()
    # PyTorch's download has no timeout, and would wait for a silent network forever.
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        # The name ends in the first digits of the file's SHA-256.
        digest = os.path.splitext(path)[0].rpartition("-")[2]
        torch.hub.download_url_to_file(url, path, hash_prefix=digest)
    except (OSError, http.client.HTTPException, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"Inception-v3's weights can't be downloaded from {url}: {reason}; without a network, "
            "set `inception_weights=FILE`, a copy of that file"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return path


def _loaded(path: str, name: str, accepted: str) -> dict:
    """Read the file's state dict without running code."""
    import torch  # pyright: ignore[reportMissingImports]

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        found = error.strerror or type(error).__name__
    except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError) as error:
        found = f"no file of plain tensors ({type(error).__name__})"
    else:
        if isinstance(state, dict) and all(isinstance(value, torch.Tensor) for value in state.values()):
            return state
        found = f"a {type(state).__name__} that doesn't map names to tensors"
    raise UserError(f"{name}: found {found}; {accepted}")


def _digest(network) -> str:
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        array = value.cpu().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()[:16]


def _extract(network, images: UInt8[np.ndarray, "n h w c"], batch_size: int) -> Extracted:
    import torch  # pyright: ignore[reportMissingImports]

    if images.shape[-1] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, found {images.shape[-1]}")
    device = next(network.parameters()).device
    features = np.empty((len(images), _NUM_FEATURES), np.float32)
    probabilities = np.empty((len(images), _NUM_CLASSES), np.float32)
    for first in range(0, len(images), batch_size):
        rows = slice(first, first + batch_size)
        batch = (
            torch.tensor(np.ascontiguousarray(images[rows]), device=device)
            .permute(0, 3, 1, 2)
            .expand(-1, 3, -1, -1)
        )
        with torch.inference_mode():
            pooled, logits = network(batch)
            features[rows] = pooled.cpu().numpy()
            probabilities[rows] = logits.double().softmax(1).float().cpu().numpy()
    return Extracted(features, probabilities)
