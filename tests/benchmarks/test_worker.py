"""The benchmark's worker process and its answers."""

import io
import json
import sys

import pytest

from benchmarks import worker


@pytest.fixture
def answers(monkeypatch, capsys):
    """Answers of a worker to the lines of its stdin; its clock advances by one at every reading."""
    ticks = iter(range(1000))
    monkeypatch.setattr(worker.time, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(sys, "argv", ["worker", '{"work": "step"}'])

    def asked(*questions, prepare):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{question}\n" for question in questions)))
        worker.serve(prepare)
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return asked


def test_benchmark_worker_answers_turn_and_cost_requests(answers):
    runs = []

    def prepare(case):
        return worker.Work(lambda: runs.append(case["work"]), lambda: {"flops": 3.0, "bytes": 4.0})

    first, cost, turn = answers("cost", "turn", prepare=prepare)
    assert first == {"compile": 1.0}
    assert cost == {"flops": 3.0, "bytes": 4.0}
    assert turn["seconds"] == 1.0
    assert turn["memory"] > 0
    assert runs == ["step"] * 3  # the first, and two of the turn


def test_benchmark_worker_without_a_cost_function_reports_no_cost(answers):
    assert answers("cost", prepare=lambda case: worker.Work(lambda: None))[1] == {}
