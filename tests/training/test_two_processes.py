"""That several processes train at all; `test_processes.py` has the long proofs."""

import json

from benchmarks import processes


def test_two_processes_train_as_one(tmp_path):
    settings = {
        "model.num_features": 8,
        "model.num_scales": 3,
        "training.num_steps": 3,
        "training.batch_size": 8,
        "training.schedule": "constant",
        "training.log_every": 1,
        "training.preview_samples": 2,
        "training.eval_examples": 8,
        "sampling.num_samples": 2,
        "sampling.steps_per_scale": 1,
    }
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    config = processes.ROOT / "configs" / "toy.py"
    words = [f"--config={config}:two_moons", f"--workdir={tmp_path}", *flags]
    processes.finish(processes.start(words, processes=2))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    assert (tmp_path / "checkpoints" / "3").is_dir()
    assert (tmp_path / "samples" / "samples.npy").is_file()
