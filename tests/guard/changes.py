"""The table of allowed differences, CHANGES.md."""

from fnmatch import fnmatch
from typing import NamedTuple

from outcomes import KINDS


class Change(NamedTuple):
    """A row: the issue's item, patterns of case names, kinds of differences, and the reason."""

    item: str
    cases: tuple[str, ...]
    kinds: tuple[str, ...]
    reason: str

    def allows(self, case: str, kind: str) -> bool:
        return kind in self.kinds and any(fnmatch(case, pattern) for pattern in self.cases)


def read(text: str) -> list[Change]:
    """Return the rows of CHANGES.md; raises ValueError on a row without an item or reason, or with an unknown kind."""
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [_row(line) for line in lines]


def added(old: str, new: str) -> list[Change]:
    """Return the rows of the new text that the old one does not have: those of an earlier change allow nothing any more."""
    before = read(old)
    return [change for change in read(new) if change not in before]


def _row(line: str) -> Change:
    cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
    if len(cells) != 4 or not all(cells):
        raise ValueError(f"CHANGES.md: {line!r} must have four cells: issue item, cases, differs, reason")
    item, cases, kinds, reason = cells
    change = Change(item, tuple(_names(cases)), tuple(_names(kinds)), reason)
    if unknown := set(change.kinds) - set(KINDS):
        raise ValueError(f"CHANGES.md: {sorted(unknown)[0]!r} is no kind of difference; those are {', '.join(KINDS)}")
    return change


def _names(cell: str) -> list[str]:
    return [name.strip(" `") for name in cell.split(",")]
