"""The benchmark of collectives: how it reads programs, and its model of rings on a torus."""

import math

import numpy as np
import pytest

from benchmarks.collectives import CHIPS, Chip, all_reduces, torus


def test_all_reduce_parser_ignores_layouts_and_other_operations():
    """TPU layouts and the two halves of an asynchronous all-reduce, written by hand."""
    program = """
  %all-reduce.1 = (bf16[3,3,1,4]{3,2,1,0:T(8,128)}, /*index=1*/f32[]{:T(256)}) all-reduce(%a, %b)
  %all-reduce-start = f32[8]{0} all-reduce-start(%c), replica_groups={{0,1}}, to_apply=%add
  %all-reduce-done = f32[8]{0} all-reduce-done(%all-reduce-start), metadata={op_name="psum"}
  %get-tuple-element = f32[] get-tuple-element(%all-reduce.1), index=1
"""
    assert all_reduces(program) == [[("bf16", 36), ("f32", 1)], [("f32", 8)]]


@pytest.mark.parametrize("num_chips", CHIPS)
def test_all_reduce_time_is_the_sum_over_the_hops_of_its_rings(num_chips):
    """A ring of d takes d − 1 hops of 1/d of the data left by earlier rings, and as many hops back."""
    chip, seconds, left = Chip(bandwidth=50e9, latency=1e-6), 0.0, 1e8
    for side in torus(num_chips):
        seconds += sum(left / side / chip.bandwidth + chip.latency for _ in range(2 * (side - 1)))
        left /= side
    np.testing.assert_allclose(chip.all_reduce_seconds(num_chips, 1e8), seconds, rtol=1e-12)


def test_a_single_chip_spends_no_time_reducing_and_computes_at_its_rate():
    assert Chip().all_reduce_seconds(1, 1e8, 3) == 0
    assert Chip(peak=100.0, utilisation=0.5).compute_seconds(200.0) == 4


def test_torus_sides_are_as_equal_as_possible_and_need_a_power_of_two():
    assert [torus(n) for n in (8, 32, 128, 4096)] == [(2, 2, 2), (2, 4, 4), (4, 4, 8), (16, 16, 16)]
    assert all(math.prod(torus(n)) == n for n in CHIPS)
    with pytest.raises(ValueError, match="power of 2"):
        torus(12)
