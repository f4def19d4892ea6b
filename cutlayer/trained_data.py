"""The description of the data that a folder's run was trained on, so that other data are refused when the run goes on or predicts."""

import json
from pathlib import Path

from .data.comparison import Sides, differences
from .data.description import DataDescription, parse, to_json
from .errors import BadInput
from .private import write
from .schema import json_table

FILE = "data.json"
SIDES = Sides("in the run", "now")


def check_trained_data(folder: Path, description: DataDescription) -> None:
    """Raise BadInput if the run in a folder was trained on data of other classes, shapes, columns or scales; earlier runs say nothing."""
    path = folder / FILE
    if not path.exists():
        return
    found = differences(parse(json_table(path)), description, SIDES)
    if found:
        raise BadInput(
            f"{folder} holds a run on other data: {'; '.join(found)}; give the data of the run, or choose another folder"
        )


def keep_description(folder: Path, description: DataDescription) -> None:
    """Write what a run's data are, for later checks; raises BadInput if the folder's run has other data."""
    check_trained_data(folder, description)
    write(folder / FILE, json.dumps(to_json(description), indent=1))
