"""The files of an evaluation, its table and its curves."""

import numpy as np
import pytest

from ncsn_jax.evaluation import results
from ncsn_jax.evaluation.results import Measured, Result, Subject, table
from ncsn_jax.runtime.errors import UserError


def subject(step, value, **fields):
    result = Result(value=value, better="lower", standard_error=0.125, real=0.5, **fields)
    measured = Measured(of="x", results={"FD-1k (classifier)": result}, details={"shares": [0.25, 0.75]})
    return Subject(name=f"step_{step:08d}", step=step, metrics={"frechet": measured})


def test_written_results_are_read_back_in_order_of_their_steps(tmp_path):
    for step in (20, 5):
        results.write(tmp_path / f"step_{step:08d}.json", subject(step, 1 / 3))
    results.write(tmp_path / "images_a.json", Subject(name="images_a"))
    found = results.read_all(tmp_path)
    assert [s.name for s in found] == ["step_00000005", "step_00000020", "images_a"]
    assert found[0] == subject(5, 1 / 3)
    assert results.read(tmp_path / "step_00000007.json") is None


def test_reading_results_refuses_files_of_another_format(tmp_path):
    (tmp_path / "step_00000005.json").write_text('{"name": 3}')
    with pytest.raises(UserError, match="is not an evaluation of this program; move it away"):
        results.read_all(tmp_path)


def test_results_table_shows_every_subject_and_marks_the_best():
    subjects = [subject(5, 2.0), subject(10, 1.0), subject(15, 3.0), Subject(name="images_a")]
    lines = table(subjects, columns=2).splitlines()
    assert len(lines) == 4
    assert lines[0].split() == ["step", "5", "step", "10", "real", "test", "data"]
    assert lines[1].split() == ["FD-1k", "(classifier)", "2", "±0.12", "*1", "±0.12", "0.5"]
    assert lines[3].split() == ["FD-1k", "(classifier)", "3", "±0.12", "0.5"]
    assert results.best(subjects, "FD-1k (classifier)") is subjects[1]
    assert results.best(subjects[:1], "FD-1k (classifier)") is None
    assert table([]) == "nothing was measured"


def test_curves_pass_through_the_results_of_two_or_more_steps():
    assert results.curves([subject(5, 2.0)]) is None
    figure = results.curves([subject(5, 2.0), subject(10, 1.0), Subject(name="images_a")])
    assert len(figure.axes) == 1
    curve, *_ = figure.axes[0].lines
    np.testing.assert_array_equal(curve.get_xydata(), [[5, 2.0], [10, 1.0]])
    assert figure.axes[0].lines[-1].get_ydata()[0] == 0.5


@pytest.mark.parametrize(
    ("count", "name"), [(50_000, "50k"), (1000, "1k"), (1500, "1.5k"), (999, "999"), (1024, "1024")]
)
def test_counts_are_abbreviated_only_where_that_is_exact(count, name):
    assert results.count_name(count) == name


def test_result_file_names_replace_spaces_and_slashes():
    assert results.file_name("my samples/../ü 2.npz") == "my_samples_.._ü_2.npz"
