"""The accelerator's benchmark in its small form, on a CPU."""

import json

import pytest

from benchmarks import accelerator


@pytest.mark.slow
def test_a_case_is_measured_beside_the_peak():
    found = accelerator.measured(accelerator.forward_work("NCSN", accelerator.TINY, "float32"), 0.01)
    assert found["images_per_second"] == pytest.approx(2 / found["seconds"])
    assert found["calls"] >= 3
    assert found["flops_per_second"] > 0
    assert found["memory_bytes"] > 0


@pytest.mark.slow
def test_every_case_is_measured_or_left_out_with_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerator, "TYPES", ("float32",))
    report = accelerator.run(accelerator.TINY, 5.0, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == report
    found = {case["case"]: case for case in report["cases"]}
    kinds = [f"{name} {kind}" for name in ("NCSN", "NCSNv2") for kind in ("step", "forward", "sampling")]
    assert {"matrix product", *kinds} <= set(found)
    for name in kinds:
        assert found[name]["images_per_second"] == pytest.approx(2 / found[name]["seconds"])
        assert found[name]["share_of_peak"] > 0
        assert found[name]["memory_bytes"] > 0
    # A step is at least three forward passes.
    assert found["NCSN step"]["flops_per_second"] * found["NCSN step"]["seconds"] > 2.5 * (
        found["NCSN forward"]["flops_per_second"] * found["NCSN forward"]["seconds"]
    )
    assert all("PyTorch" in reason for reason in report["left_out"])


def test_without_time_cases_are_named_and_not_run(tmp_path):
    report = accelerator.run(accelerator.TINY, 0.0, tmp_path / "out.json")
    assert report["cases"] == []
    assert "NCSNv2 sampling, bfloat16: no time left" in report["left_out"]
