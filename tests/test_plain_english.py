"""The lint step for plain English finds each of its patterns, and nothing in a plain sentence."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "plain_english.py"
DIALECT = {
    "Of heun: the step.": "Heun's step.",
    "Read what may change.": "Read the settings that may change.",
    "Its losses and those of the last step.": "Its losses and the losses of the last step.",
    "The run goes on.": "The run resumes.",
    "Start the same command again.": "Rerun.",
    "Mended by hand: mend that.": "Fixed by hand: fix that.",
    "The machine is wanted back.": "Preempted.",
    "There is none to be had.": "It isn't available.",
    "One in place of two.": "One instead of two.",
    "Made if need be.": "Made if necessary.",
    "All but for one.": "All except one.",
    "As square as can be.": "As square as possible.",
    "It is of another run.": "It belongs to another run.",
    "Imported here, for it takes long.": "Imported here because it takes long.",
    "It isn't read, nor is it written.": "It is neither read nor written.",
    "All of it, were it one line.": "All of it, even one line.",
    "The cost grows as the number of images.": "The cost depends on how many images there are.",
    "It fails for want of memory.": "It fails without memory.",
    "A save is made up for later.": "A save is retried later.",
    "The file has none.": "The file has no arrays.",
    "Images of one's own.": "Your own images.",
    "It was faster two hours ago.": "It took 2 to 3 s.",
}
"""By a sentence in dialect, a plain one; in the order of the patterns."""


@pytest.fixture(scope="module")
def lint():
    spec = importlib.util.spec_from_file_location("plain_english", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_plain_english_lint_finds_each_pattern_only_in_its_example(lint, tmp_path, capsys):
    assert len(DIALECT) == len(lint.PATTERNS)
    for advice, (dialect, plain) in zip(lint.PATTERNS.values(), DIALECT.items(), strict=True):
        for name, content in (
            ("docstring.py", f'"""{dialect}"""\n'),
            ("comment.py", f"x = 1  # {dialect}\n"),
            ("message.py", f'raise ValueError(f"{{x}} found. {dialect}")\n'),
            ("page.md", f"# Title\n\n{dialect}\n"),
        ):
            (tmp_path / name).write_text(content)
            assert lint.main([str(tmp_path / name)]) == 1, (name, dialect)
            assert advice in capsys.readouterr().out
            (tmp_path / name).write_text(content.replace(dialect, plain))
            assert lint.main([str(tmp_path / name)]) == 0, (name, plain)


def test_plain_english_lint_skips_code_in_pages_and_doctests(lint, tmp_path):
    (tmp_path / "page.md").write_text("```sh\necho what goes on\n```\nRun `git what`.\n")
    (tmp_path / "module.py").write_text('"""Title.\n\n>>> print("what goes on")\n"""\n')
    assert lint.main([str(tmp_path / "page.md"), str(tmp_path / "module.py")]) == 0
