import numpy as np
import pytest

from ncsn_jax import geometric_sigmas


def test_levels_descend_with_a_constant_ratio():
    sigmas = np.asarray(geometric_sigmas(20.0, 1.0, 10))
    assert sigmas.dtype == np.float32
    assert sigmas[0] == 20.0
    assert sigmas[-1] == 1.0
    np.testing.assert_allclose(sigmas[:-1] / sigmas[1:], 20 ** (1 / 9), rtol=1e-6)


def test_levels_equal_the_official_ones_bit_for_bit(official):
    np.testing.assert_array_equal(geometric_sigmas(1.0, 0.01, 10), official["sigmas"])


def test_a_single_level_is_the_first():
    np.testing.assert_array_equal(geometric_sigmas(2.0, 1.0, 1), [2.0])


@pytest.mark.parametrize(
    ("begin", "end", "number"),
    [
        (1.0, 1.0, 3),
        (0.01, 1.0, 3),
        (1.0, 0.0, 3),
        (1.0, -1.0, 3),
        (float("inf"), 1.0, 3),
        (1.0, 1e-50, 3),
        (1.0, 1 - 1e-9, 3),
    ],
)
def test_levels_that_do_not_descend_in_single_precision_are_refused(begin, end, number):
    with pytest.raises(ValueError, match=f"found sigma_begin={begin}, sigma_end={end}"):
        geometric_sigmas(begin, end, number)


def test_no_levels_are_refused():
    with pytest.raises(ValueError, match="at least 1, found 0"):
        geometric_sigmas(1.0, 0.01, 0)
