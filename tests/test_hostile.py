"""Strangers at the server's door, over TLS, and what certificates say."""

import pytest
import torch
from conftest import equal
from network import COPIES, Net, until

from cutlayer.certs import Authority, check, demo
from cutlayer.errors import BadInput, RunFailed
from cutlayer.handshake import about
from cutlayer.recipes.recipe import make
from cutlayer.run import run_recipe
from cutlayer.transports.grpc_client import NetworkLine
from cutlayer.transports.grpc_common import Tls
from cutlayer.transports.member import told_to_start
from cutlayer.wire import Message, pack

pytestmark = pytest.mark.usefixtures("no_figures")
NAMES = ("alice", "bob")


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """Certificates of one authority by party, some that are not in order, and those of a foreign authority."""
    folder = tmp_path_factory.mktemp("certs")
    mine, foreign = Authority(folder / "mine"), Authority(folder / "foreign")
    found = {name: mine.issue(name) for name in ("server", *NAMES, "mallory")}
    late = Authority.issue
    found["foreign"] = foreign.issue("alice")._replace(ca=mine.ca)
    expired = folder / "mine" / "old"
    expired.mkdir()
    mine.folder = expired
    found["expired"] = late(mine, "alice", days=-1.0)
    return found


def refused(net, name, tls, recipe=COPIES, patience=2.0):
    """Return what a party is told that must not come in."""
    line = NetworkLine(
        f"127.0.0.1:{net.port}", name, about(make({**recipe.flat(), "transport": "grpc"})), tls=tls, patience=patience
    )
    try:
        with pytest.raises((BadInput, RunFailed)) as caught:
            line.connect()
        assert "\n" not in str(caught.value)
        return str(caught.value)
    finally:
        line.close()


def test_eight_hostile_cases_over_tls_change_nothing(tls, tmp_path):
    whole = run_recipe(COPIES)
    net = Net(COPIES, tmp_path, tls=tls["server"], names=NAMES)
    before = {name: t.clone() for name, t in net.serving.host.server.top.state_dict().items()}
    for wrong in (tls["foreign"], tls["expired"], None):
        assert "is of another authority or has expired, or one end is plain text" in refused(net, "alice", wrong)
    assert "'mallory' is not a client of this run; those are alice, bob" in refused(net, "mallory", tls["mallory"])
    assert "made out to mallory" in refused(net, "alice", tls["mallory"])
    assert "made out to bob, not to 'alice'" in refused(net, "alice", tls["bob"])
    assert "rounds = 2 at the server, 9 at this client" in refused(
        net, "alice", tls["alice"], make({**COPIES.flat(), "rounds": 9})
    )
    net.join("alice", tls=tls["alice"])
    until(lambda: net.said("alice is here"))
    assert "connected already; a second connection" in refused(net, "alice", tls["alice"])
    # one who is let in, and then sends what nobody sends, in another's name
    message = pack(Message("smashed", {"smashed": torch.zeros(1, 4)}, client=0), {})
    bad = NetworkLine(
        f"127.0.0.1:{net.port}", "bob", about(make({**COPIES.flat(), "transport": "grpc"})), tls=tls["bob"], patience=5
    )
    bad.connect()
    bad.session.put(7, [b"no such kind"])
    bad.send(message, 0)
    bad.close()
    assert equal(before, net.serving.host.server.top.state_dict())
    net.join("bob", tls=tls["bob"])
    result = net.wait()
    assert all(equal(whole.modules[name], result.modules[name]) for name in whole.modules)


def test_a_client_refuses_a_server_that_is_not_made_out_to_be_one(tls, tmp_path):
    net = Net(COPIES, tmp_path, tls=tls["mallory"], names=NAMES, start_timeout=4.0)
    assert "TLS handshake failed" in refused(net, "alice", tls["alice"])
    with pytest.raises(RunFailed, match="missing: alice, bob"):
        net.wait()


def test_a_party_in_the_middle_of_a_run_that_sends_nonsense_is_turned_away_and_undone(tmp_path):
    whole, net = run_recipe(COPIES), Net(COPIES, tmp_path)
    net.join("client0")
    line = NetworkLine(f"127.0.0.1:{net.port}", "client1", about(make({**COPIES.flat(), "transport": "grpc"})), tls=None)
    assert line.connect() == 1
    line.hello(lambda: [])
    start = told_to_start(line)
    shapes = {"smashed": torch.zeros(8, 3, 2, 2), "labels": torch.zeros(8, dtype=torch.long)}
    hello = Message("sync", {}, {"done": 0.0, "version": 0.0, "weight": 9.0, "batches": 3.0, "left": 3.0}, client=1)
    for message in (hello, Message("smashed", shapes, client=1)):
        packed = pack(message, {})
        line.send(type(packed)(packed.message, packed.roles, incarnation=start.incarnation), 0)
    until(lambda: net.said("client1 is turned away"))
    with pytest.raises(BadInput, match="refuses: it sent what this server cannot use"):
        [line.receive() for _ in range(9)]
    line.close()
    net.join("client1")
    result = net.wait()
    assert all(equal(whole.modules[name], result.modules[name]) for name in whole.modules)


def test_certificates_say_what_is_wrong_with_them(tls, tmp_path):
    check(tls["alice"], "alice")
    for name, who, why in (
        ("foreign", "alice", "was not issued by the authority"),
        ("alice", "bob", "made out to alice, not to 'bob'"),
        ("expired", "alice", "is valid from"),
    ):
        with pytest.raises(BadInput, match=why):
            check(tls[name], who)
    with pytest.raises(BadInput, match="does not belong to"):
        check(tls["alice"]._replace(key=tls["bob"].key), "alice")
    with pytest.raises(BadInput, match="No such file"):
        check(Tls(tmp_path / "ca", tmp_path / "cert", tmp_path / "key"), "alice")
    names = ["alice", "a.b_c-1", "x" * 64]
    demo(tmp_path / "set", names)
    for name in names:
        check(Tls(*(tmp_path / "set" / file for file in ("ca.pem", f"{name}.pem", f"{name}.key"))), name)
    with pytest.raises(BadInput, match="holds a set of certificates already"):
        demo(tmp_path / "set", ["alice"])
    assert (tmp_path / "set" / "alice.key").stat().st_mode & 0o077 == 0
