"""Checks what a reviewer should not have to: line length, tabs, blanks at line ends."""

import pathlib
import sys

LONGEST = 120


def complaints(path):
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if len(line) > LONGEST:
            yield f"{path}:{number}: longer than {LONGEST} characters"
        if "\t" in line:
            yield f"{path}:{number}: tab"
        if line != line.rstrip():
            yield f"{path}:{number}: blanks at the end"


def main(folders):
    found = [c for folder in folders for path in sorted(pathlib.Path(folder).rglob("*.py")) for c in complaints(path)]
    print("\n".join(found) or "lint: nothing to complain about")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
