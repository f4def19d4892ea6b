"""cutlayer audit: what an adversary learns from what crosses in a finished run."""

from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from .console import progress_bar, show_audit, show_paths


def audit(
    folder: Positional[Path],
    /,
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    samples: int = 5000,
    epochs: int = 20,
    seed: int = 0,
    client: int = 0,
    data_dir: str | None = None,
) -> int:
    """Attack what a finished run sends, and say what is learned from it, beside what is guessed without.

    Args:
        folder: the folder of a finished run.
        only: an attack (cutlayer list audits); may be given several times. All that the run leaves open if not given.
        samples: of the test set at most so many are the attacker's own, and so many others are attacked.
        epochs: how long the attacker's decoder learns.
        seed: of the attacker.
        client: whose bottom, where clients keep their own.
        data_dir: where the data lie, if not where they lay.
    """
    from .audits import Effort, audit as attack

    with progress_bar() as bar:
        line = bar.add_task("the attacker's decoder learns", total=None, note="", visible=False)

        def tick(done: int, total: int) -> None:
            bar.update(line, completed=done, total=total, visible=True)

        found = attack(folder, only, Effort(samples, epochs, seed), data_dir, client, tick)
    show_audit(found)
    rebuilt = found.get("inversion", {}).get("rebuilt")
    show_paths({"figures": folder / "audit.json"} | ({"what was rebuilt": folder / rebuilt} if rebuilt else {}))
    return 0
