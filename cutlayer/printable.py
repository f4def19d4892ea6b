"""Text from elsewhere, made safe to show: what could move a cursor, hide or reorder text, or begin a line is written as its code."""

import json
import re
from collections.abc import Mapping
from typing import Any

from .errors import BadInput

LIMIT = 500  # characters of a line that is shown
# control characters, Arabic letter mark, directional marks and overrides, line separators, byte order mark, lone surrogates
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def printable(text: str, limit: int | None = LIMIT) -> str:
    r"""Return a text with unsafe characters written as \x1b or \u202e, cut to at most `limit` characters (None: not cut)."""
    if limit is not None:
        text = text[: limit + 1]
    safe = UNSAFE.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)
    return safe if limit is None or len(safe) <= limit else safe[: limit - 1] + "…"


def printable_values(value: Any) -> Any:
    """Return a value of JSON with every string in it, keys too, made printable at its full length; tuples become lists."""
    if isinstance(value, str):
        return printable(value, None)
    if isinstance(value, dict):
        return {printable(str(key), None): printable_values(item) for key, item in value.items()}
    return [printable_values(item) for item in value] if isinstance(value, list | tuple) else value


def check_text(fields: Mapping[str, Any]) -> None:
    """Raise BadInput if a field of a recipe has text that UTF-8 cannot hold, or is a path with a null character."""
    for name, value in fields.items():
        try:
            json.dumps(value, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError:
            raise BadInput(f"{name} = {value!r}: this is no UTF-8 text; write it in UTF-8") from None
        if name == "data_dir" and "\0" in str(value):
            raise BadInput(f"{name} = {value!r}: a path has no null character; give another")
