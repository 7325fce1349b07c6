import io

import numpy as np
import pytest
from PIL import Image

from ncsn_jax.data.resizing import resized
from ncsn_jax.runtime.errors import UserError


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def reopened(image, suffix="PNG", **options):
    file = io.BytesIO()
    image.save(file, suffix, **options)
    return Image.open(file)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_resizing_keeps_a_constant_image_constant(fit, channels):
    image = resized(Image.new("RGB", (37, 61), (90, 90, 90)), size=16, channels=channels, fit=fit)
    np.testing.assert_array_equal(image, np.full((16, 16, channels), 90))
    assert image.dtype == np.uint8


def test_pixels_are_unchanged_without_a_size_or_at_the_same_size():
    pixels = noise(5, 7, 3)
    np.testing.assert_array_equal(resized(Image.fromarray(pixels), size=None), pixels)
    np.testing.assert_array_equal(resized(Image.fromarray(noise(5, 5, 3)), size=5), noise(5, 5, 3))


def test_grey_is_repeated_to_three_channels_and_colour_becomes_luma_in_one():
    grey = noise(5, 7)
    np.testing.assert_array_equal(
        resized(Image.fromarray(grey), size=None), np.repeat(grey[..., None], 3, -1)
    )
    np.testing.assert_array_equal(resized(Image.fromarray(grey), size=None, channels=1)[..., 0], grey)
    colour = noise(5, 7, 3)
    luma = colour @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(
        resized(Image.fromarray(colour), size=None, channels=1)[..., 0], luma, atol=0.51
    )


TURNED = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNED)
def test_images_are_turned_upright_by_their_exif_orientation(orientation):
    pixels = noise(5, 7, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = reopened(Image.fromarray(pixels), exif=exif)
    np.testing.assert_array_equal(resized(image, size=None), TURNED[orientation](pixels))


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
def test_16_bit_greys_are_scaled_to_8_bits(kind):
    values = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]])
    image = Image.fromarray(values.astype(kind))
    assert image.mode == ("I;16" if kind == np.uint16 else "I")
    expected = [[0, 0, 1, 1, 128, 254, 255, 255]]
    np.testing.assert_array_equal(resized(image, size=None, channels=1)[..., 0], expected)
    np.testing.assert_array_equal(resized(image, size=None)[..., 2], expected)


def test_16_bit_png_files_are_scaled_to_8_bits():
    image = reopened(Image.fromarray(np.array([[0, 32768, 65535]], np.uint16)))
    np.testing.assert_array_equal(resized(image, size=None, channels=1)[..., 0], [[0, 128, 255]])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "La", "PA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_images_are_blended_over_white(mode, channels):
    grey, alpha = np.full((3, 256), 100, np.uint8), np.tile(np.arange(256, dtype=np.uint8), (3, 1))
    image = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
    image = image.convert(mode if mode == "La" else "RGBA").convert(mode)
    over_white = 255 - alpha / 255 * (255.0 - grey)
    np.testing.assert_allclose(
        resized(image, size=None, channels=channels), over_white[..., None] * np.ones(channels), atol=1.5
    )


def test_transparent_palette_and_rgb_colours_of_png_files_become_white():
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    palette = palette.convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    expected = [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]
    np.testing.assert_array_equal(resized(reopened(palette, transparency=1), size=None), expected)
    alphas = reopened(palette, transparency=bytes([255, 0, 255]))
    np.testing.assert_array_equal(resized(alphas, size=None), expected)
    opaque = [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]
    np.testing.assert_array_equal(resized(reopened(palette), size=None), opaque)
    rgb = reopened(Image.fromarray(np.array(opaque, np.uint8)), transparency=(40, 50, 60))
    np.testing.assert_array_equal(resized(rgb, size=None), expected)


@pytest.mark.parametrize("mode", ["1", "CMYK", "YCbCr", "RGBX", "HSV"])
def test_images_of_other_colour_modes_are_converted_to_rgb_or_grey(mode):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, 4:] = 255
    image = Image.fromarray(pixels).convert(mode)
    assert image.mode == mode
    np.testing.assert_allclose(resized(image, size=None), pixels, atol=1)
    np.testing.assert_allclose(resized(image, size=None, channels=1), pixels[..., :1], atol=1)


def test_a_cmyk_jpeg_keeps_its_colours():
    image = reopened(Image.new("RGB", (16, 16), (200, 100, 50)).convert("CMYK"), "JPEG", quality=95)
    assert image.mode == "CMYK"
    np.testing.assert_allclose(resized(image, size=8)[4, 4], [200, 100, 50], atol=3)


def test_fixed_crop_takes_the_centre():
    """The place of CelebA's crop of 140 in its 218×178 pixels."""
    pixels = noise(218, 178, 3)
    cropped = resized(Image.fromarray(pixels), size=None, crop=140)
    np.testing.assert_array_equal(cropped, pixels[39:179, 19:159])


@pytest.mark.parametrize(("height", "width"), [(6, 4), (4, 6), (4, 4)])
def test_fit_crop_takes_the_largest_centred_square(height, width):
    pixels = noise(height, width, 3)
    top, left = (height - 4) // 2, (width - 4) // 2
    np.testing.assert_array_equal(
        resized(Image.fromarray(pixels), size=4), pixels[top : top + 4, left : left + 4]
    )


def test_a_crop_larger_than_the_image_is_refused():
    with pytest.raises(UserError, match=r"^crop=140: .* 178×100 pixels; accepted: at most 100$"):
        resized(Image.new("RGB", (178, 100)), size=64, crop=140)


def test_resizing_is_bilinear_and_antialiased():
    """Half the size weighs the pixels by the triangle filter of width 4; the ends drop outer weights."""
    row = noise(8).astype(float)
    pixels = np.tile(row.astype(np.uint8), (8, 1))
    weights = np.zeros((4, 8))
    for i, j in np.ndindex(weights.shape):
        weights[i, j] = max(0, 1 - abs((j + 0.5) - (2 * i + 1)) / 2)
    expected = weights @ row / weights.sum(1)
    for fit in ("crop", "stretch", "pad"):
        image = resized(Image.fromarray(pixels), size=4, channels=1, fit=fit)
        np.testing.assert_allclose(image[..., 0], np.tile(expected, (4, 1)), atol=1.01)


def test_fit_stretch_keeps_the_whole_image_and_fit_pad_its_proportions():
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 200
    stretched = resized(Image.fromarray(pixels), size=8, fit="stretch")
    assert (stretched[:, :3] == 200).all()
    assert (stretched[:, 5:] == 0).all()
    padded = resized(Image.new("RGB", (16, 8), "white"), size=8, fit="pad")
    np.testing.assert_array_equal(padded[2:6], np.full((4, 8, 3), 255))
    np.testing.assert_array_equal(padded[[0, 1, 6, 7]], np.zeros((4, 8, 3)))


@pytest.mark.parametrize("shape", [(3000, 1), (1, 3000)])
def test_fit_pad_shows_a_very_thin_image_as_one_line(shape):
    pixels = resized(Image.new("L", shape, 200), size=8, channels=1, fit="pad")
    assert pixels.shape == (8, 8, 1)
    assert np.sum(pixels == 200) == 8
    assert np.sum(pixels == 0) == 56


def test_images_too_thin_to_crop_are_refused():
    with pytest.raises(UserError, match=r"an image of 30000×1 pixels would become one of 7680000×256"):
        resized(Image.new("RGB", (30000, 1)), size=256)
