import functools
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from ncsn_jax import data
from ncsn_jax.data import Data
from ncsn_jax.data.folder import load_folder
from ncsn_jax.data.resizing import resized
from ncsn_jax.runtime.errors import UserError

load = functools.partial(load_folder, decode=functools.partial(resized, size=4), in_memory_bytes=2**20)
load_lazily = functools.partial(load, in_memory_bytes=0)


def fill(directory, names):
    """Write images of one colour each; return the colours by name."""
    colours = {}
    for i, name in enumerate(names):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        colours[name] = (i % 256, i // 256, 7)
        # Lossless, so that the same colours are read.
        Image.new("RGB", (6, 6), colours[name]).save(path, "PNG")
    return colours


def colours_of(images):
    return [tuple(images[i][0, 0].tolist()) for i in range(len(images))]


def names_of(images, colours):
    by_colour = {colour: name for name, colour in colours.items()}
    return [by_colour[colour] for colour in colours_of(images)]


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def fifty(tmp_path):
    return fill(tmp_path, [f"{i:02d}.png" for i in range(50)])


@pytest.fixture
def bad(tmp_path):
    """The name of a truncated training image, one file of many."""
    colours = fill(tmp_path, [f"{i:02d}.png" for i in range(20)])
    train, _ = load(tmp_path)
    bad = names_of(train, colours)[3]
    truncate(tmp_path / bad)
    return bad


def truncate(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path, "PNG")
    path.write_bytes(path.read_bytes()[:5000])


def test_every_image_of_a_folder_is_in_exactly_one_sorted_split(tmp_path, fifty):
    train, test = load(tmp_path, test_fraction=0.2)
    assert isinstance(train, np.ndarray)
    assert train.shape[1:] == (4, 4, 3)
    assert train.dtype == np.uint8
    names = names_of(train, fifty), names_of(test, fifty)
    assert sorted(names[0] + names[1]) == sorted(fifty)
    assert all(part == sorted(part) for part in names)
    assert 3 <= len(test) <= 17  # of 50 at 0.2, within 2.5 standard deviations


def test_folder_split_is_pinned_for_known_file_names(tmp_path):
    """Pinned: another hash would mix training images of older runs into the test split."""
    colours = fill(tmp_path, [f"{i}.png" for i in range(12)])
    assert names_of(load(tmp_path, test_fraction=0.3)[1], colours) == [
        "0.png",
        "2.png",
        "6.png",
        "7.png",
        "8.png",
    ]


def test_folder_split_keeps_its_files_when_others_are_added(tmp_path, fifty):
    test = names_of(load(tmp_path)[1], fifty)
    more = fill(tmp_path, [*fifty, *(f"more/{i}.png" for i in range(50))])
    assert [name for name in names_of(load(tmp_path)[1], more) if name in fifty] == test


def test_folder_split_ignores_unicode_normalisation_of_file_names(tmp_path):
    """One file system stores é, another stores e and ´."""
    tests = []
    for form in ("caf\u00e9", "cafe\u0301"):
        colours = fill(tmp_path / form, [f"{form}{i}.png" for i in range(20)])
        test = load(tmp_path / form, test_fraction=0.5)[1]
        tests.append([name.removeprefix(form) for name in names_of(test, colours)])
    assert tests[0] == tests[1]


@pytest.mark.parametrize("test_fraction", [0.0, 1.0])
def test_each_folder_split_has_an_image_at_extreme_test_fractions(tmp_path, test_fraction):
    fill(tmp_path, [f"{i}.png" for i in range(5)])
    train, test = load(tmp_path, test_fraction=test_fraction)
    assert (len(train), len(test)) == ((4, 1) if test_fraction == 0 else (1, 4))


def test_folder_includes_nested_and_linked_files_and_skips_hidden_ones(tmp_path):
    seen = ["cats/1.PNG", "cats/old/2.Jpeg", "dogs/3.webp", "猫 1.jpg", "4.png", "thumbs.d/5.png"]
    hidden = [".6.png", ".cache/7.png", "cats/.trash/8.png", "__MACOSX/._9.png", "notes.txt", "10.gif"]
    colours = fill(tmp_path / "images", seen + hidden)
    elsewhere = fill(tmp_path / "elsewhere", [f"{i}.png" for i in range(3)])
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "images" / "notes.txt")
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "images")
    train, test = load(tmp_path / "images")
    expected = [colours[name] for name in [*seen, "notes.txt"]] + list(elsewhere.values())
    assert sorted(colours_of(train) + colours_of(test)) == sorted(expected)


def test_lazily_read_images_equal_images_read_into_memory(tmp_path, fifty):
    for lazy, images in zip(load_lazily(tmp_path), load(tmp_path), strict=True):
        assert not isinstance(lazy, np.ndarray)
        assert len(lazy) == len(images)
        np.testing.assert_array_equal(np.stack(list(lazy)), images)
        np.testing.assert_array_equal(lazy[np.int64(2)], images[2])
        np.testing.assert_array_equal(lazy[-1], images[-1])


def test_in_memory_limit_counts_the_decoded_bytes_of_each_split(tmp_path, fifty):
    bytes_of_train = len(load(tmp_path)[0]) * 4 * 4 * 3
    assert isinstance(load(tmp_path, in_memory_bytes=bytes_of_train)[0], np.ndarray)
    train, test = load(tmp_path, in_memory_bytes=bytes_of_train - 1)
    assert not isinstance(train, np.ndarray)
    assert isinstance(test, np.ndarray)


def test_training_batches_are_equal_for_lazy_and_in_memory_folders(tmp_path, fifty):
    batches = [
        next(data.training_batches(images, batch_size=8, seed=0))
        for images in (load(tmp_path)[0], load_lazily(tmp_path)[0])
    ]
    np.testing.assert_array_equal(batches[0]["examples"], batches[1]["examples"])


def test_a_corrupt_file_is_named_with_the_skip_setting_eagerly_and_lazily(tmp_path, bad):
    with pytest.raises(UserError) as error:
        load(tmp_path)
    message = one_line(error)
    assert message.startswith(f"{tmp_path / bad}: can't be decoded (OSError: ")
    assert message.endswith("; `corrupt=skip` skips such files")
    train, _ = load_lazily(tmp_path)
    with pytest.raises(UserError) as error:
        train[3]
    assert one_line(error) == message


def test_a_corrupt_file_is_reported_even_if_the_decoder_ignores_its_pixels(tmp_path, bad):
    with pytest.raises(UserError, match=rf"{bad}: can't be decoded"):
        load(tmp_path, decode=lambda _: np.zeros((4, 4, 3), np.uint8))


def test_a_corrupt_file_is_reported_when_a_lazy_batch_reads_it(tmp_path, bad):
    train, _ = load_lazily(tmp_path)
    with pytest.raises(UserError, match=rf"{bad}: can't be decoded .*corrupt=skip"):
        next(data.training_batches(train, batch_size=len(train), seed=0))


def test_corrupt_skip_leaves_the_file_out_with_one_warning(tmp_path, bad):
    readable = load(tmp_path, corrupt="skip", in_memory_bytes=0)[0]
    with pytest.warns(UserWarning, match=rf"{bad}: can't be decoded \(OSError: .*\); skipped$") as caught:
        train, _ = load(tmp_path, corrupt="skip")
    assert len(caught) == 1
    assert len(train) == len(readable) - 1
    with pytest.warns(UserWarning, match="skipped") as caught:
        lazily = np.stack([*readable, *readable])
    assert len(caught) == 1
    np.testing.assert_array_equal(np.delete(lazily, [3, 3 + len(readable)], axis=0), [*train, *train])
    np.testing.assert_array_equal(lazily[3], lazily[4])


@pytest.mark.filterwarnings("ignore:.*skipped")
@pytest.mark.parametrize("loaded", [load, load_lazily])
@pytest.mark.parametrize("split", ["train", "test"])
def test_readable_images_are_split_anew_when_a_whole_split_is_corrupt(tmp_path, loaded, split):
    """The split is the same as without the corrupt files."""
    colours = fill(tmp_path / "all", [f"{i}.png" for i in range(9)])
    splits = dict(zip(("train", "test"), load(tmp_path / "all", test_fraction=0.01), strict=True))
    assert len(splits["test"]) == 1
    if split == "train":  # nearly all are test images
        splits = dict(zip(("train", "test"), load(tmp_path / "all", test_fraction=0.99), strict=True))
    bad = names_of(splits[split], colours)
    shutil.copytree(tmp_path / "all", tmp_path / "good")
    for name in bad:
        truncate(tmp_path / "all" / name)
        (tmp_path / "good" / name).unlink()
    fraction = 0.01 if split == "test" else 0.99
    found = loaded(tmp_path / "all", corrupt="skip", test_fraction=fraction)
    expected = load(tmp_path / "good", test_fraction=fraction)
    for some, others in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.stack([*some]), others)


def test_corrupt_skip_works_when_the_first_file_is_corrupt(tmp_path, fifty):
    train, _ = load(tmp_path)
    truncate(tmp_path / names_of(train, fifty)[0])
    with pytest.warns(UserWarning, match="skipped") as caught:
        skipped, _ = load(tmp_path, corrupt="skip")
    assert len(caught) == 1
    np.testing.assert_array_equal(skipped, train[1:])


def test_a_corrupt_last_image_is_lazily_replaced_by_the_first(tmp_path, fifty):
    train, _ = load(tmp_path)
    truncate(tmp_path / names_of(train, fifty)[-1])
    lazy, _ = load_lazily(tmp_path, corrupt="skip")
    with pytest.warns(UserWarning, match="skipped"):
        np.testing.assert_array_equal(lazy[len(lazy) - 1], train[0])


def test_a_skipped_file_prints_a_one_line_warning(tmp_path, bad):
    """As a user sees it, without pytest's capture of warnings."""
    code = (
        "import sys; from ncsn_jax.data.folder import load_folder; import numpy as np;"
        "load_folder(sys.argv[1], decode=np.asarray, corrupt='skip', in_memory_bytes=2**20)"
    )
    # Import this source tree, not an installed copy.
    package = os.path.dirname(os.path.dirname(data.__file__))
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(package)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    (line,) = result.stderr.splitlines()
    assert f"UserWarning: {tmp_path / bad}: can't be decoded" in line


@pytest.mark.filterwarnings("ignore:.*skipped")
@pytest.mark.parametrize("corrupt", ["error", "skip"])
@pytest.mark.parametrize(
    "content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" + bytes(100)], ids=repr
)
def test_files_that_are_not_images_are_reported_in_one_line(tmp_path, content, corrupt):
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_bytes(content)
    expected = "can't be decoded" if corrupt == "error" else "images that can be decoded: 1; accepted"
    with pytest.raises(UserError, match=expected) as error:
        load(tmp_path, corrupt=corrupt)
    one_line(error)


def test_a_decompression_bomb_is_reported_as_undecodable(tmp_path, fifty, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 17)
    with pytest.raises(UserError, match=r"00\.png: can't be decoded \(DecompressionBombError: "):
        load(tmp_path)


def test_a_dangling_link_is_reported_as_undecodable(tmp_path, fifty):
    (tmp_path / "z.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"z\.png: can't be decoded \(FileNotFoundError: "):
        load(tmp_path)


def test_an_image_smaller_than_the_crop_is_named_in_the_error(tmp_path, fifty):
    with pytest.raises(UserError, match=r"00\.png: can't be decoded \(crop=9: .* 6×6 pixels"):
        load(tmp_path, decode=functools.partial(resized, size=4, crop=9))


@pytest.mark.parametrize("corrupt", ["error", "skip"])
def test_an_image_of_another_shape_is_reported_when_no_size_is_set(tmp_path, fifty, corrupt):
    Image.new("RGB", (6, 5)).save(tmp_path / "wide.png")
    with pytest.raises(UserError, match=r"wide\.png: .* \(5, 6, 3\) among images of \(6, 6, 3\)") as error:
        load(tmp_path, corrupt=corrupt, decode=functools.partial(resized, size=None))
    one_line(error)


def test_a_missing_image_directory_is_reported_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: can't be read \(No such file .*accepted: a dir") as error:
        load(tmp_path / "nowhere")
    one_line(error)


def test_a_file_given_as_image_directory_is_refused(tmp_path, fifty):
    with pytest.raises(UserError, match=r"00\.png: can't be read \(Not a directory\); accepted: a directory"):
        load(str(tmp_path / "00.png"))


def test_an_unreadable_subdirectory_is_reported(tmp_path, fifty, monkeypatch):
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refuse(place):
        if str(place).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"locked: can't be read \(Permission denied\); accepted: "):
        load(tmp_path)


@pytest.mark.parametrize("count", [0, 1])
def test_a_folder_with_fewer_than_two_images_is_refused(tmp_path, count):
    fill(tmp_path, [*["1.png"][:count], "2.gif"])
    with pytest.raises(UserError, match=f"images found: {count}; accepted: .* at least 2 .*webp"):
        load(tmp_path)


def test_tilde_in_data_dir_means_the_home_directory(tmp_path, fifty, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = Data(name="folder", data_dir="~", image_size=4)
    assert len(data.load(settings).train) == len(load(tmp_path)[0])


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_only_the_first_frame_of_an_animated_image_is_read(tmp_path, suffix):
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "lime", "blue")]
    for i in range(2):
        options = {"lossless": True} if suffix == "webp" else {}
        frames[0].save(tmp_path / f"{i}.{suffix}", save_all=True, append_images=frames[1:], **options)
    with Image.open(tmp_path / f"0.{suffix}") as image:
        assert image.n_frames == 3
    train, test = load(tmp_path)
    np.testing.assert_array_equal(train, np.full((1, 4, 4, 3), [255, 0, 0]))
    np.testing.assert_array_equal(test, train)


def test_images_with_palette_alpha_cmyk_or_orientation_load_without_warnings(tmp_path):
    """Palettes, transparency, CMYK and orientations."""
    grey = Image.new("L", (6, 6), 100)
    palette = grey.convert("P")
    exif = Image.Exif()
    exif[0x0112] = 6
    palette.save(tmp_path / "palette.png", transparency=bytes(range(256)))
    grey.convert("RGBA").save(tmp_path / "alpha.webp", lossless=True)
    grey.convert("RGB").convert("CMYK").save(tmp_path / "cmyk.jpg")
    grey.convert("RGB").save(tmp_path / "photo.JPG", exif=exif)
    grey.convert("I;16").save(tmp_path / "deep.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train, test = load(tmp_path)
    assert len(train) + len(test) == 5


def test_a_named_pipe_in_the_folder_is_refused_without_blocking(tmp_path, fifty):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png: can't be decoded \(it is not a regular file\)"):
        load(tmp_path)


def test_a_file_name_with_a_newline_is_escaped_in_the_error(tmp_path, fifty):
    (tmp_path / "two\nlines.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"two\\nlines\.png': can't be decoded") as error:
        load(tmp_path)
    one_line(error)
