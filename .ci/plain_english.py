"""Find the words that plain English does without, in everything that people read.

    python .ci/plain_english.py [FILE ...]

Reads docstrings, comments and strings of Python files, and Markdown outside of code. Prints one line per
finding, and exits with 1 if there are any. CONTRIBUTING.md says how to write instead.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

PATTERNS = {
    r"(?:^|[.;:!?] +)Of\b": "a sentence opens with 'Of': name the thing first",
    r"\b[Ww]hat\b(?! to\b|\?|:| if\b)": "a clause with 'what': use a noun",
    r"\bth(?:at|ose) of\b": "'that of', 'those of': repeat the noun",
    r"\b(?:goes|go|went|going|gone) on\b": "'go on': resume, continue",
    r"\bthe same command\b": "'the same command': rerun",
    r"\bmend(?:s|ed|ing)?\b": "'mend': fix",
    r"\bwanted back\b": "'wanted back': preempted",
    r"\bto be had\b": "'to be had': available",
    r"\bin place of\b": "'in place of': instead of",
    r"\bif need be\b": "'if need be': if necessary",
    r"\bbut for\b": "'but for': except",
    r"\bas can be\b": "'as can be': as possible",
    r"\b(?:is|are|was|were) of (?:another|other|such)\b": "'is of another': belongs to another",
    r"[,;] for (?:it|they|its|their|there|this|these|those|else)\b": "'for' as a conjunction: because",
    r"\b(?:nor|neither) (?:is|are|do|does|did|has|have) (?:it|they|there)\b": "inverted: turn it around",
    r"\bwere (?:it|they|there)\b": "'were it': if it were",
    r"\bas the number of\b": "'as the number of': depends on",
    r"\bfor want of\b": "'for want of': without",
    r"\bmade up for\b": "'made up for': retried",
    r"\b(?:has|have|had) none\b": "'has none': name the thing",
    r"\bof one's own\b": "'of one's own': your own",
    r"\bhours? ago\b|\bin (?:slow|noisy) hours\b": "a story about the machine: give a range",
}
"""Regular expressions, and the advice for a sentence that matches one."""

EXCEPTIONS = {
    ".ci/plain_english.py": "the patterns themselves",
    "docs/notes/": "logs, kept as they were written",
    "tests/": "they quote messages, which are read where they are raised",
}
"""Files, or directories, that are not read, and why."""


def sentences(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that people read, with their numbers."""
    text = path.read_text()
    if path.suffix == ".md":
        yield from prose(text)
        return
    tree = ast.parse(text)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and not re.match(r"#\s*(?:pyright|ruff|noqa|type):", token.string):
            yield token.start[0], token.string.lstrip("# ")
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            words = "".join(
                part.value if isinstance(part, ast.Constant) else "X"
                for part in node.values  # pyright: ignore
            )
            yield node.lineno, words
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            for offset, paragraph in paragraphs(node.value):
                yield node.lineno + offset, paragraph


def paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """Blocks of a docstring, joined to one line each; a doctest is left out."""
    number = 0
    for block in re.split(r"\n[ \t]*\n", text):
        kept = " ".join(line.strip() for line in block.splitlines() if ">>>" not in line)
        yield number, kept.strip()
        number += block.count("\n") + 2


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Lines of Markdown outside of fenced code."""
    fenced = False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield number, re.sub(r"`[^`]*`", "`code`", line)


def main(names: list[str]) -> int:
    """Print what is found in the named files, or in all tracked ones; return the exit status."""
    if not names:
        listed = subprocess.run(
            ["git", "ls-files", "*.py", "*.md"], capture_output=True, text=True, check=True
        )
        names = [name for name in listed.stdout.splitlines() if not name.startswith(tuple(EXCEPTIONS))]
    found = 0
    for name in names:
        for number, sentence in sentences(Path(name)):
            for pattern, advice in PATTERNS.items():
                for match in re.finditer(pattern, sentence):
                    near = sentence[max(0, match.start() - 40) : match.end() + 40].strip()
                    print(f"{name}:{number}: {advice}: … {near} …")
                    found += 1
    if found:
        print(f"{found} findings; CONTRIBUTING.md, 'Plain English', says how to write instead")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
