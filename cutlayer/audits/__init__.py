"""What an adversary learns from what crosses: attacks on a finished run, each beside what the same guess is worth without it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import BadInput, unknown
from ..predict import Owner, weights_of
from ..private import write
from ..recipes import load
from . import distance_correlation, inversion, labels
from .seen import Closed, Effort, Seen, Tick, seen_of

__all__ = ["AUDITS", "Effort", "Seen", "audit"]

FILE, PICTURES, EFFORT = "audit.json", "rebuilt.png", Effort()


class Entry(NamedTuple):
    """A row of the table: the attack (owner, what it sees, effort, tick) to figures by name, and one line about it."""

    attack: Callable[[Owner, Seen, Effort, Tick], dict[str, Any]]
    line: str


AUDITS: dict[str, Entry] = {
    "inversion": Entry(inversion.attack, "a decoder that learned on images of the server's own rebuilds the owner's"),
    "distance_correlation": Entry(
        distance_correlation.attack, "how far distances of activations follow those of inputs, 0 to 1"
    ),
    "labels": Entry(labels.attack, "labels that stay home, guessed from the gradients that the tail sends up"),
}


def audit(
    folder: Path, only: Sequence[str] = (), effort: Effort = EFFORT, data_dir: str | None = None,
    client: int = 0, tick: Tick = lambda done, total: None,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Attack the trained parts of a finished run and write FOLDER/audit.json and, of images, FOLDER/rebuilt.png; return the figures.

    Where clients keep bottoms of their own it is `client`'s. Without `only` all are tried, and one that this run leaves no way for
    says so, as {"closed": why}.
    Raises BadInput for a folder that holds no finished run, an unknown name, and one of `only` that the run leaves no way for.
    """
    for name in (name for name in only if name not in AUDITS):
        raise unknown("audit", name, AUDITS)
    if not (folder / "summary.json").exists():
        several = ", ".join(path.parent.name for path in sorted(folder.glob("*/summary.json")))
        raise BadInput(
            f"{folder} holds {'several runs; name one of them: ' + several if several else 'no finished run; name the folder of one'}"
        )
    recipe = load(str(folder / "recipe.toml"), **({"data_dir": data_dir} if data_dir is not None else {}))
    if recipe.cut == "none":
        raise BadInput(
            f"scheme = {recipe.scheme}: nothing is cut in {folder}, so no activation crosses; audit a run of another"
        )
    if not 0 <= client < recipe.num_clients:
        raise BadInput(f"client = {client}: there are {recipe.num_clients}, the first is 0")
    owner = Owner(recipe, folder / "weights", client)
    seen = seen_of(owner, recipe, weights_of(folder / "weights", "top", client), effort)
    found: dict[str, dict[str, Any]] = {}
    for name in only or AUDITS:
        try:
            found[name] = AUDITS[name].attack(owner, seen, effort, tick)
        except Closed as error:
            if only:
                raise
            found[name] = {"closed": str(error)}
    pictures = found.get("inversion", {}).pop("pictures", None)
    if pictures is not None:
        inversion.draw(pictures, folder / PICTURES)
        found["inversion"]["rebuilt"] = PICTURES
    write(
        folder / FILE,
        json.dumps({"effort": {**effort._asdict(), "samples": len(seen.theirs.y)}, "found": found}, indent=2) + "\n",
    )
    return found
