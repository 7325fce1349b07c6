import os

from ncsn_jax.runtime.files import limit_size


def test_limit_size_deletes_the_least_recently_read_files_first(tmp_path):
    (tmp_path / "directory").mkdir()
    for name, time in [("old", 1), ("read", 4), ("new", 3), ("older", 0)]:
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (time, 0))
    for size, expected in [
        (40, {"old", "read", "new", "older"}),
        (39, {"old", "read", "new"}),
        (20, {"read", "new"}),
        (0, set()),
    ]:
        limit_size(tmp_path, size)
        assert {path.name for path in tmp_path.iterdir()} == {"directory", *expected}
