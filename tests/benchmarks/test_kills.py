"""A short form of the benchmark of kills: one kill at each moment."""

import random

import pytest

from benchmarks import kills, processes


@pytest.mark.slow
@pytest.mark.parametrize("topology", kills.TOPOLOGIES)
def test_a_killed_training_run_ends_equal_to_an_uninterrupted_one(topology, tmp_path):
    devices = kills.TOPOLOGIES[topology]
    processes.finish(kills.start(tmp_path / "whole", devices))
    found, workdirs = kills.survive(tmp_path / "killed", 5, random.Random(1), devices)
    assert set(found.values()) == {1}
    for workdir in workdirs:
        assert kills.differences(tmp_path / "whole", workdir) == []


@pytest.mark.slow
def test_comparing_runs_reports_the_differences_between_two_seeds(tmp_path):
    one_process = kills.TOPOLOGIES["one process"]
    for name, seed in (("one", "--config.seed=0"), ("other", "--config.seed=1")):
        processes.finish(kills.start(tmp_path / name, one_process, seed))
    found = kills.differences(tmp_path / "one", tmp_path / "other")
    assert "metrics.jsonl" in found
    assert ".params['Dense_0']['kernel']" in found
    assert "samples/samples.npy" in found
