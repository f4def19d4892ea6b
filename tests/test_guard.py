"""What no processor may change, and the comparison of two versions."""

import json
import sys
from pathlib import Path

import pytest
import torch

GUARD = Path(__file__).parent / "guard"
sys.path.append(str(GUARD))

from cases import BASE, CASES
from changes import added, read
from expected import FILE, observe
from outcomes import Outcome, differences

from cutlayer.codecs import CODECS
from cutlayer.recipes.schemes import SCHEMES

EXPECTED = json.loads(FILE.read_text())
IN_PROCESS = [name for name, case in CASES.items() if case.transport == "inprocess"]
RUN = Outcome({"top.w": torch.ones(2)}, [{"round": 0, "train_loss": 1.0}], {"up/smashed": 8}, {"up/smashed": 9}, {"rounds": 1})
HEAD = "| issue item | cases | differs | reason |\n|---|---|---|---|\n"


@pytest.mark.parametrize("name", IN_PROCESS)
def test_bytes_message_order_and_record_names_stay(name, request, monkeypatch):
    case = CASES[name]
    if case.data:
        monkeypatch.setenv("CUTLAYER_DATA", str(request.getfixturevalue("data_dir")))
    assert observe({**BASE, **case.fields}) == EXPECTED[name]


def test_the_cases_use_every_scheme_and_every_codec():
    fields = [case.fields for case in CASES.values()]
    assert {each.get("scheme") for each in fields} >= set(SCHEMES)
    used = {part for each in fields for pair in each.get("codec", "").split(",") for part in pair.partition("=")[2].split("+")}
    families = {name.partition("@")[0] for name in used}
    assert {"float8" if name.startswith("float8") else name for name in CODECS} - families <= {"identity", "uniform2"}


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        ("weights", RUN._replace(weights={"top.w": torch.tensor([1.0, 1.0000001])})),
        ("weights", RUN._replace(weights={"top.w": torch.ones(2, dtype=torch.float64)})),
        ("records", RUN._replace(records=[{"round": 0, "train_loss": 1.0, "new": 0.0}])),
        ("payload", RUN._replace(payload={"up/smashed": 7})),
        ("wire", RUN._replace(wire={})),
        ("summary", RUN._replace(summary={"rounds": 2})),
        ("failure", RUN._replace(failure="exit code 1")),
    ],
)
def test_the_guard_sees_a_difference_of_each_kind(kind, other):
    assert differences(RUN, RUN) == {}
    assert list(differences(RUN, other)) == [kind]


def test_only_a_new_row_allows_a_difference():
    old = HEAD + "| 1/7 A3 | own-drawing | weights | seeded |\n"
    new = old + "| 1/7 A7 | codec-*, text | records, wire | rounded |\n"
    (change,) = added(old, new)
    assert change.allows("codec-noise", "wire")
    assert not change.allows("codec-noise", "weights")
    assert not change.allows("own-drawing", "weights")
    with pytest.raises(ValueError, match="no kind of difference"):
        read(HEAD + "| 1/7 A3 | own | bits | reason |\n")


def test_the_list_of_allowed_differences_can_be_read():
    read((GUARD / "CHANGES.md").read_text())
