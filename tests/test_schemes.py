"""Every scheme by its name: it runs, it says what it is, and it sends the bytes of golden/bytes.json."""

import json

import pytest
from conftest import ROOT, small_data, small_model

import cutlayer as cl
from cutlayer.recipes.recipe import make
from cutlayer.recipes.schemes import SCHEMES

GOLDEN = ROOT / "tests" / "golden" / "bytes.json"
ROUNDS = 2


def payload(scheme):
    """Return payload bytes of 2 rounds by direction and role; 2 clients (1 if central) with 12 samples, 3 batches of 4 each."""
    clients = cl.partition.iid(small_data(n=24).train, num_clients=1 if scheme == "centralised" else 2)
    parts = cl.cut(small_model(), "stem", "hidden" if scheme == "u_shaped" else None)
    options = {"auxiliary": "mlp", "auxiliary_width": 8} if "auxiliary" in make({"scheme": scheme}).options else {}
    result = cl.run(parts, clients, scheme=scheme, rounds=ROUNDS, batch_size=4, num_threads=1, lr=0.05, **options)
    assert result.summary["recipe"]["scheme"] == scheme
    table = result.summary["bytes"]
    return {way: {role: cell["payload"] for role, cell in table[way].items() if cell["payload"]} for way in ("up", "down")}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scheme_sends_its_golden_bytes(scheme):
    golden = json.loads(GOLDEN.read_text())
    assert set(golden) == set(SCHEMES), "golden/bytes.json: one entry for every scheme"
    assert payload(scheme) == golden[scheme]


def test_golden_bytes_are_what_the_schemes_say():
    golden = json.loads(GOLDEN.read_text())
    samples, z = 24 * ROUNDS, 4 * 6 * 6 * 4
    whole, bottom, tail = (
        sum(t.nbytes for t in part.state_dict().values())
        for part in (small_model(), cl.cut(small_model(), "stem").bottom, cl.cut(small_model(), "stem", "hidden").tail)
    )
    for scheme in ("vanilla", "splitfed_v1", "splitfed_v2", "splitfed_v3", "psl", "async_splitfed"):
        assert golden[scheme]["up"]["smashed"] == golden[scheme]["down"]["cut_grad"] == samples * z
        assert golden[scheme]["up"]["labels"] == samples * 8
    assert golden["u_shaped"]["down"]["features"] == golden["u_shaped"]["up"]["feature_grad"] == samples * 8 * 4
    assert "labels" not in golden["u_shaped"]["up"]
    for scheme, nbytes in (("vanilla", bottom), ("u_shaped", bottom + tail), ("splitfed_v1", bottom), ("splitfed_v2", bottom)):
        assert golden[scheme]["up"]["weights"] == 2 * ROUNDS * nbytes
    assert golden["fedavg"]["up"]["weights"] == 2 * ROUNDS * whole
    assert golden["fedavg"]["down"]["weights"] == 2 * (ROUNDS - 1) * whole
    steps = 2 * 3 * ROUNDS  # of both clients
    assert golden["dni"]["down"]["cut_grad"] == 2 * 2 * 4 * z  # every 4th of 6 steps of each
    assert golden["hosl"]["up"]["smashed"] == 2 * samples * z
    assert golden["hosl"]["down"]["loss"] == 8 * steps
    for scheme in ("dsl", "dsl_seq", "dsl_fed", "locsplitfed", "cse_fsl", "fsl_sage", "heron_sfl"):
        assert "cut_grad" not in golden[scheme]["down"]
    assert golden["dsl"]["down"] == golden["centralised"]["down"] == golden["local_only"]["down"] == {}
    assert set(golden["centralised"]["up"]) == set(golden["local_only"]["up"]) == {"evaluation"}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_row_says_who_sends_what_in_which_order_and_where_it_is_from(scheme):
    row = SCHEMES[scheme]
    assert row.sends
    assert row.order
    assert row.paper
