"""Programs of a text file: `=== name`, the program, and after `--- tests` its tests, if they are its own."""

from pathlib import Path


def read_programs(name: str) -> dict[str, tuple[str, str]]:
    """Program and tests by name."""
    text = (Path(__file__).parents[1] / "sandbox" / name).read_text(encoding="utf-8")
    found = {}
    for part in text.split("\n=== ")[1:]:
        title, _, body = part.partition("\n")
        program, _, tests = body.partition("--- tests\n")
        found[title] = program, tests
    return found
