"""A server and its clients over real connections: what parties that die, come late or come back cost."""

import time
from unittest.mock import Mock

import pytest
from across import BASE
from conftest import equal
from network import COPIES, RELAY, Net, until
from safetensors.torch import load_file

from cutlayer import checkpoint
from cutlayer.data.partition import split
from cutlayer.errors import RunFailed
from cutlayer.recipes.recipe import make
from cutlayer.run import data_of, parts_of, run_recipe, task_of
from cutlayer.serve import Serving
from cutlayer.sides import member
from cutlayer.transports.member import Start
from cutlayer.transports.session import Session

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.mark.parametrize("recipe", [RELAY, COPIES], ids=["relay", "copies"])
@pytest.mark.parametrize("dies_after", [0, 2, 4])
def test_a_client_that_dies_and_returns_changes_no_weight_and_no_byte(recipe, dies_after, tmp_path):
    whole, net = run_recipe(recipe), Net(recipe, tmp_path)
    net.join("client0")
    net.join("client1", dies_after).join()
    net.join("client1")
    result = net.wait()
    assert all(equal(whole.modules[name], result.modules[name]) for name in whole.modules)
    payload = {
        (way, role): cell["payload"]
        for way in ("up", "down")
        for role, cell in result.summary["bytes"][way].items()
        if cell["payload"]
    }
    assert payload == {
        (way, role): cell["payload"]
        for way in ("up", "down")
        for role, cell in whole.summary["bytes"][way].items()
        if cell["payload"]
    }


@pytest.mark.parametrize("recipe", [RELAY, COPIES], ids=["relay", "copies"])
def test_states_of_an_earlier_run_are_in_nobodys_way(recipe, tmp_path):
    for n in range(1, 5):  # of a server that had gone back twice
        checkpoint.save(tmp_path / "client1" / "marks", f"{(3 << 32) + n:020d}", {"round": n}, 4)
    whole, net = run_recipe(recipe), Net(recipe, tmp_path)
    net.join("client0")
    net.join("client1", 4).join()
    assert [int(path.name) >> 32 for path in checkpoint.marks(tmp_path / "client1" / "marks")] == [1]
    net.join("client1")
    result = net.wait()
    assert all(equal(whole.modules[name], result.modules[name]) for name in whole.modules)


def test_no_two_states_of_a_client_have_one_label(tmp_path):
    data, shares = data_of(COPIES), split(data_of(COPIES).train, COPIES).shares
    one, again = (member(COPIES, parts_of(COPIES, data), task_of(COPIES), data.train, shares[0], 0, tmp_path) for _ in range(2))
    one._go_on(Start(1, 0))
    for _ in range(5):
        one._keep()
    again._go_on(Start(1, one.label))  # its process was killed when it had said nothing since the newest mark
    again._keep()
    assert again.label == one.label + 1 == again.held()[-1]
    again._go_on(Start(2, one.label))
    again._keep()
    assert again.held()[-2:] == [one.label, again.label]  # what was given up is gone


def test_what_was_sent_in_vain_is_counted_as_repeated(tmp_path):
    net = Net(COPIES, tmp_path)
    net.join("client0")
    net.join("client1", 2).join()
    net.join("client1")
    result = net.wait()
    assert result.summary["bytes"]["up"]["repeated"]["wire"] > 0
    assert net.said("client1 is back; all go on from mark 0")


def test_relay_passes_the_turn_of_who_left_and_takes_it_back_in_the_next_round(tmp_path):
    recipe = make({**BASE, "scheme": "vanilla", "rounds": 4})
    net = Net(recipe, tmp_path, patience=0.5)
    net.join("client1")
    net.join("client0", 0).join()
    until(lambda: net.said("client0 has been away for 0.5 s; the others go on without it from mark 0"))
    net.join("client0")
    result = net.wait()
    assert len(result.records) == 4
    assert result.summary["samples"] == [22, 22]


def test_quorum_waits_and_says_so(tmp_path):
    net = Net(COPIES, tmp_path, patience=0.3, quorum=2)
    net.join("client0")
    net.join("client1", 1).join()
    until(lambda: net.said("waiting for client1: without it 1 clients are left, and quorum is 2"))
    net.join("client1")
    whole = run_recipe(COPIES)
    assert equal(whole.modules["bottom"], net.wait().modules["bottom"])


def test_the_start_barrier_names_who_is_missing(tmp_path):
    net = Net(COPIES, tmp_path, start_timeout=1.0)
    net.join("client1")
    with pytest.raises(RunFailed, match=r"1 of 2 clients came within 1 s; missing: client0"):
        net.wait()


@pytest.mark.parametrize("late", [True, False])
def test_a_party_never_seen_before_may_join_at_a_round_with_late_join_alone(late, tmp_path):
    recipe = make({**BASE, "scheme": "splitfed_v1", "rounds": 6})
    net = Net(recipe, tmp_path, wait_for=1, late_join=late)
    net.join("client0")
    until(lambda: net.serving.host.begun)
    net.join("client1")
    if late:
        net.wait()
        assert net.said("client1 is here; it takes part from the next round on") or net.serving.host.over
    else:
        with pytest.raises(AssertionError, match="begun without client1, and this server was not started with --late-join"):
            net.wait()


class Gone(Exception):
    """A server's process is gone."""


def check_final_weights(whole, folder):
    """Check that both clients have the trained bottom, and keep no states of a run that is over."""
    for name in ("client0", "client1"):
        assert equal(whole.modules["bottom"], load_file(folder / name / "weights" / "bottom.safetensors"))
        assert not (folder / name / "marks").exists()


@pytest.mark.parametrize("when", ["training", "finishing"])
def test_the_server_is_started_again_and_clients_come_by_themselves(when, tmp_path):
    recipe = make({**BASE, "scheme": "splitfed_v1", "rounds": 4})
    whole = run_recipe(recipe)

    def watch(serving):
        if when == "training" and serving.host.server.schedule.round == 2:
            raise Gone

    net = Net(recipe, tmp_path, watch=watch)
    port = net.port
    if when == "finishing":
        net.serving.side.finish = Mock(side_effect=Gone)
    for name in ("client0", "client1"):
        net.join(name, patience=30.0)
    net.server.join(30)
    assert isinstance(net.error, Gone)
    serving = Serving(recipe, tmp_path / "server", listen=f"127.0.0.1:{port}")
    assert serving.side.newest()[1] >= 2
    result = serving.run()
    for thread in net.threads:
        thread.join(30)
    assert not net.failed
    assert all(equal(whole.modules[name], result.modules[name]) for name in whole.modules)
    check_final_weights(whole, tmp_path)


def test_final_weights_that_take_long_arrive(tmp_path, monkeypatch):
    whole, net = run_recipe(COPIES), Net(COPIES, tmp_path)
    slow = []

    def records(self, connection, _records=Session.records):
        for record in _records(self, connection):
            if slow and self is slow[0]:
                slow.pop()
                time.sleep(6.0)
            yield record

    def hand_out(_hand_out=net.serving._hand_out):
        slow.append(net.serving.gate.peers[0].session)
        _hand_out()

    monkeypatch.setattr(Session, "records", records)
    net.serving._hand_out = hand_out
    for name in ("client0", "client1"):
        net.join(name)
    net.wait()
    check_final_weights(whole, tmp_path)


def test_a_client_whose_final_weights_never_come_fails(tmp_path):
    net = Net(COPIES, tmp_path)
    net.serving._hand_out = Mock(side_effect=Gone)
    for name in ("client0", "client1"):
        net.join(name, patience=1.0)
    net.server.join(30)
    with pytest.raises(Gone):
        net.wait()
    assert all("has been away for 1 s" in str(net.failed[name]) for name in ("client0", "client1"))
    assert not (tmp_path / "client0" / "weights").exists()
