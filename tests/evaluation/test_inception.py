"""Inception-v3 with random weights from a local file, by torch-fidelity's own code; and its errors."""

import os
import pickle
import socket
import sys

import numpy as np
import pytest

from ncsn_jax.evaluation import inception as module
from ncsn_jax.evaluation.distances import (
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall_density_coverage,
)
from ncsn_jax.evaluation.inception import inception
from ncsn_jax.runtime.errors import UserError

FLAG = "`inception_weights=FILE`"


@pytest.fixture(scope="module")
def library():
    """torch-fidelity's module, where it is installed."""
    return pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")


@pytest.fixture(scope="module")
def weights(library, tmp_path_factory) -> str:
    """A file of random weights, by which the features of different images differ."""
    import torch

    with pytest.MonkeyPatch.context() as patch:
        network = library.FeatureExtractorInceptionV3
        patch.setattr(library, "load_state_dict_from_url", lambda *_, **__: None)
        patch.setattr(network, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        random = network("random", ["2048"])
    for layer in random.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
    with torch.no_grad():
        random.fc.weight *= 100  # otherwise all classes are equally probable
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(random.state_dict(), path)
    return str(path)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """PyTorch's cache of downloads, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "torch" / "hub" / "checkpoints"


def images(count, size=8, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def message(weights=None):
    """The one line of the error."""
    with pytest.raises(UserError) as caught:
        inception(weights)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.slow
def test_inception_features_equal_the_outputs_of_torch_fidelitys_network(library, weights):
    """Compared with a network that torch-fidelity loads itself, including the last, smaller batch."""
    import torch

    theirs = library.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=weights
    )
    x = images(3)
    with torch.inference_mode():
        pooled, logits = theirs(torch.tensor(x).permute(0, 3, 1, 2))
    found = inception(weights, batch_size=2).extract(x)
    assert found.features.shape == (3, 2048)
    assert found.probabilities.shape == (3, 1008)
    assert found.features.dtype == found.probabilities.dtype == np.float32
    scale = np.abs(pooled.numpy()).max()
    np.testing.assert_allclose(found.features, pooled.numpy(), rtol=0, atol=1e-5 * scale)
    np.testing.assert_allclose(found.probabilities, logits.softmax(1).numpy(), rtol=1e-3, atol=1e-7)
    # An image's features are its own.
    distances = np.linalg.norm(found.features[:, None] - pooled.numpy(), axis=-1)
    assert distances[~np.eye(3, dtype=bool)].min() > 100 * distances.diagonal().max()


@pytest.mark.slow
def test_a_grey_image_has_the_inception_features_of_three_equal_channels(weights):
    features = inception(weights)
    grey = images(1, channels=1)
    found, expected = features.extract(grey), features.extract(np.repeat(grey, 3, axis=-1))
    np.testing.assert_array_equal(found.features, expected.features)
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    with pytest.raises(ValueError, match="1 or 3 channels, found 4"):
        features.extract(images(1, channels=4))


def test_inception_features_of_no_images_are_empty(weights):
    found = inception(weights).extract(images(0))
    assert (found.features.shape, found.probabilities.shape) == ((0, 2048), (0, 1008))


def test_fingerprint_depends_on_the_weights_and_not_on_the_file(weights, tmp_path):
    import torch

    state = torch.load(weights, weights_only=True)
    torch.save(state, tmp_path / "again.pth")
    state["fc.bias"][3] += 1e-3
    torch.save(state, tmp_path / "other.pth")
    first, again, other = (
        inception(str(path)) for path in (weights, tmp_path / "again.pth", tmp_path / "other.pth")
    )
    assert first.fingerprint == again.fingerprint != other.fingerprint
    name, _, digest = first.fingerprint.partition("-")
    assert name == first.name == "inception"
    assert len(bytes.fromhex(digest)) == 8


@pytest.mark.slow
def test_metrics_computed_from_images_equal_torch_fidelitys(library, weights):
    """Starting from the images, through `torch_fidelity.calculate_metrics`."""
    import torch
    import torch_fidelity

    class Images(torch.utils.data.Dataset):
        def __init__(self, x):
            self.x = torch.tensor(x).permute(0, 3, 1, 2)

        def __len__(self):
            return len(self.x)

        def __getitem__(self, index):
            return self.x[index]

    real = images(8)
    fake = images(8, seed=1) // 2 + 50
    expected = torch_fidelity.calculate_metrics(
        input1=Images(fake),
        input2=Images(real),
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=weights,
        cuda=False,
        save_cpu_ram=True,  # no worker processes
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        isc_splits=2,
        kid_subsets=1,
        kid_subset_size=8,
        samples_shuffle=False,
        cache=False,
        verbose=False,
    )
    features = inception(weights, batch_size=5)
    of_fake, of_real = features.extract(fake), features.extract(real)
    fid = frechet_distance(of_fake.features, of_real.features)
    assert fid == pytest.approx(expected["frechet_inception_distance"], rel=1e-3)
    kid = kernel_distance(of_fake.features, of_real.features)
    expected_kid = expected["kernel_inception_distance_mean"]
    assert abs(kid.value - expected_kid) <= 1e-3 * max(abs(expected_kid), kid.standard_error)
    score = inception_score(of_fake.probabilities, num_splits=2)
    assert score.value > 1.001
    assert score.value == pytest.approx(expected["inception_score_mean"], rel=1e-4)
    found = precision_recall_density_coverage(of_real.features, of_fake.features, num_neighbours=3)
    assert found.precision == pytest.approx(expected["precision"])
    assert found.recall == pytest.approx(expected["recall"])


# --- errors ---


def test_missing_torch_fidelity_is_reported_with_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    assert message().endswith("pip install -e '.[fid]'")


def test_a_refused_weights_download_names_the_url_and_the_flag(library, cache, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # closed again: connections are refused
    url = f"http://127.0.0.1:{port}/weights-inception-2015-12-05-6726825d.pth"
    monkeypatch.setattr(library, "URL_INCEPTION_V3", url)
    found = message()
    assert url in found
    assert FLAG in found
    assert "refused" in found
    assert os.listdir(cache) == []


def test_a_hanging_weights_download_times_out_and_leaves_no_file(library, cache, monkeypatch):
    monkeypatch.setattr(module, "_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:  # it never answers
        url = f"http://127.0.0.1:{server.getsockname()[1]}/weights-6726825d.pth"
        monkeypatch.setattr(library, "URL_INCEPTION_V3", url)
        found = message()
    assert "timed out" in found
    assert FLAG in found
    assert socket.getdefaulttimeout() is None
    assert os.listdir(cache) == []


def test_a_weights_download_with_a_wrong_hash_is_refused(library, cache, monkeypatch, tmp_path):
    (tmp_path / "weights-6726825d.pth").write_bytes(b"a login page")
    url = (tmp_path / "weights-6726825d.pth").as_uri()
    monkeypatch.setattr(library, "URL_INCEPTION_V3", url)
    assert "invalid hash value" in message()
    assert os.listdir(cache) == []


def test_cached_inception_weights_are_not_downloaded_again(library, weights, cache, monkeypatch):
    cache.mkdir(parents=True)
    name = library.URL_INCEPTION_V3.rpartition("/")[2]
    (cache / name).symlink_to(weights)
    monkeypatch.setattr("torch.hub.download_url_to_file", None)
    assert inception().fingerprint == inception(weights).fingerprint


def test_a_damaged_cached_weights_file_is_named_in_the_error(library, cache):
    cache.mkdir(parents=True)
    path = cache / library.URL_INCEPTION_V3.rpartition("/")[2]
    path.write_bytes(b"PK\3\4")
    assert message().startswith(
        f"Inception-v3's weights, downloaded to {path}: found no file of plain tensors"
    )


def test_a_missing_inception_weights_file_is_named_in_the_error(library, tmp_path):
    path = str(tmp_path / "missing.pth")
    expected = f"inception_weights={path}: found No such file or directory; accepted: "
    assert message(path) == f"{expected}a copy of {library.URL_INCEPTION_V3}"
    assert "found Is a directory" in message(str(tmp_path))


class Pickled:
    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_loading_inception_weights_runs_no_pickled_code(library, tmp_path):
    program = Pickled()
    program.path = str(tmp_path / "made")
    path = tmp_path / "program.pth"
    for save in ("pickle", "torch"):
        if save == "pickle":
            path.write_bytes(pickle.dumps(program, protocol=2))
        else:
            import torch

            torch.save({"fc.weight": program}, path)
        assert "found no file of plain tensors (UnpicklingError)" in message(str(path))
        assert not os.path.exists(program.path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02", b"PK\3\4 and nothing more"])
def test_a_weights_file_without_plain_tensors_is_refused(library, tmp_path, content):
    path = tmp_path / "other.pth"
    path.write_bytes(content)
    assert "found no file of plain tensors" in message(str(path))


def test_checkpoints_of_other_networks_are_refused_as_inception_weights(library, weights, tmp_path):
    import torch

    path = str(tmp_path / "other.pth")
    torch.save([torch.zeros(3)], path)
    assert "found a list that doesn't map names to tensors" in message(path)
    torch.save({"model": {"conv.weight": torch.zeros(3)}}, path)
    assert "found a dict that doesn't map names to tensors" in message(path)
    torch.save({"conv.weight": torch.zeros(3), "conv.bias": torch.zeros(3)}, path)
    assert "found 2 tensors of another network, the first 'conv.weight'" in message(path)
    state = torch.load(weights, weights_only=True)
    state["fc.weight"] = state["fc.weight"][:1000]  # torchvision's classes
    torch.save(state, path)
    assert "tensors of another network" in message(path)
