"""Who is let in: dismissed and revoked clients, and clients that were turned away again and again."""

import datetime
import json
import queue
import threading
import time

import grpc
import pytest
from across import BASE
from conftest import equal
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from network import COPIES, Net, until
from test_liars import ends, with_numbers

from cutlayer import access, offences, readmit, revoked
from cutlayer.certs import Authority
from cutlayer.cli import main
from cutlayer.errors import BadInput, RunFailed
from cutlayer.handshake import about
from cutlayer.offences import Offences
from cutlayer.recipes.recipe import make
from cutlayer.run import run_recipe
from cutlayer.run_folder import alone_in
from cutlayer.transports.grpc_client import NetworkLine
from cutlayer.transports.grpc_common import METHOD
from cutlayer.transports.identity import Identity
from cutlayer.transports.session import RECORD

pytestmark = pytest.mark.usefixtures("no_figures")
NAMES = ("alice", "bob")
ABOUT = about(make({**COPIES.flat(), "transport": "grpc"}))


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certs"))


@pytest.fixture(scope="module")
def tls(authority):
    return {name: authority.issue(name) for name in ("server", *NAMES, "mallory")}


@pytest.fixture
def quick(monkeypatch):
    """Look at requests and revocations at every message, and let clients come back soon."""
    monkeypatch.setattr(access, "EVERY_S", 0.0)
    monkeypatch.setattr(revoked, "EVERY_S", 0.0)
    monkeypatch.setattr(offences, "FIRST_PAUSE_S", 0.05)


def serial_of(tls):
    return x509.load_pem_x509_certificate(tls.cert.read_bytes()).serial_number


def open_silent_streams(port, tls, count):
    """Open streams that never say hello; return their channel, and the calls."""
    ca, cert, key = tls.read()
    credentials = grpc.ssl_channel_credentials(ca, key, cert)
    options = [("grpc.ssl_target_name_override", "server"), ("grpc.use_local_subchannel_pool", 1)]
    channel = grpc.secure_channel(f"127.0.0.1:{port}", credentials, options)
    never = queue.Queue()
    return channel, [channel.stream_stream(METHOD)(iter(never.get, None)) for _ in range(count)]


def code(call):
    try:
        next(call)
    except grpc.RpcError as error:
        return error.code()
    return None


def test_a_dismissed_client_occupies_no_stream(tls, tmp_path):
    net, over = Net(COPIES, tmp_path, tls=tls["server"], names=NAMES), threading.Event()
    codes = []

    def occupy():
        channel, _ = open_silent_streams(net.port, tls["mallory"], 0)
        while not over.is_set():
            calls = [channel.stream_stream(METHOD)(iter(queue.Queue().get, None)) for _ in range(20)]
            codes.extend(map(code, calls))
            time.sleep(0.2)
        channel.close()

    intruder = threading.Thread(target=occupy)
    intruder.start()
    until(lambda: len(codes) > 40, 10)  # none of them waits for its hello
    for name in NAMES:
        net.join(name, tls=tls[name])
    net.wait()
    over.set()
    intruder.join()
    ended = {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}  # with the server
    assert set(codes) - ended <= {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert codes[0] is grpc.StatusCode.PERMISSION_DENIED


def test_a_client_has_one_stream_that_waits_for_its_hello(tls, tmp_path):
    net = Net(COPIES, tmp_path, tls=tls["server"], names=NAMES)
    channel, calls = open_silent_streams(net.port, tls["alice"], 20)
    codes = queue.Queue()
    for call in calls:
        threading.Thread(target=lambda call=call: codes.put(code(call)), daemon=True).start()
    for _ in range(19):
        assert codes.get(timeout=15) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert codes.empty()
    assert sum(net.serving.gate.pending.values()) == 1
    channel.close()
    for name in NAMES:
        net.join(name, tls=tls[name])
    net.wait()


@pytest.mark.parametrize("by", ["name", "serial"])
def test_a_revoked_client_is_cut_off_and_the_others_go_on(by, tls, tmp_path, quick):
    path = tmp_path / "revoked"
    path.write_text("# nobody yet\n")
    net = Net(COPIES, tmp_path, tls=tls["server"], names=NAMES, revoked=path)
    net.join("alice", tls=tls["alice"], slow=0.3)
    net.join("bob", tls=tls["bob"], slow=0.3)
    until(lambda: net.serving.host.begun)
    path.write_text("bob\n" if by == "name" else f"{serial_of(tls['bob']):X}\n")
    net.server.join(60)
    assert net.said("bob was revoked; the others go on without it from mark")
    net.threads[1].join(15)
    assert "revoked" in str(net.failed.pop("bob"))
    net.join("bob", tls=tls["bob"]) if net.server.is_alive() else None
    net.wait()


def test_a_revoked_client_is_refused_at_the_door(tls, tmp_path, quick):
    path = tmp_path / "revoked"
    path.write_text(f"mallory\n{serial_of(tls['bob'])}  # decimal\n")
    net = Net(COPIES, tmp_path, tls=tls["server"], names=NAMES, revoked=path)
    net.join("bob", tls=tls["bob"]).join(15)
    assert "was revoked; ask for a new one" in str(net.failed.pop("bob"))
    path.write_bytes(b"\xff\xfe")
    until(lambda: net.said("the list read before stays in force"))
    time.sleep(0.3)
    assert sum("stays in force" in line for line in net.lines) == 1
    net.join("bob", tls=tls["bob"]).join(15)
    assert "was revoked" in str(net.failed.pop("bob"))
    path.write_text("mallory\n")
    until(lambda: net.said("was read again: 1 entries"))
    for name in NAMES:
        net.join(name, tls=tls[name])
    net.wait()


def crl(authority, serials, key=None, days=1, issuer=None):
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateRevocationListBuilder().issuer_name(issuer or authority.name)
    builder = builder.last_update(now - datetime.timedelta(days=9)).next_update(now + datetime.timedelta(days=days))
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(key or authority.key, hashes.SHA256())


@pytest.mark.parametrize("encoding", [serialization.Encoding.PEM, serialization.Encoding.DER])
def test_a_crl_of_the_authority_revokes_and_any_other_is_one_line(encoding, authority, tls, tmp_path):
    path, ca = tmp_path / "crl", tls["server"].ca
    path.write_bytes(crl(authority, [serial_of(tls["bob"]), 7]).public_bytes(encoding))
    found = revoked.Revoked(path, ca)
    assert found.entries == (frozenset(), {serial_of(tls["bob"]), 7})
    assert found.reason(Identity(frozenset({"bob"}), 7))
    assert found.reason(Identity(frozenset({"bob"}), 8)) is None
    foreign = Authority(tmp_path / "foreign")
    for wrong in (crl(foreign, [7]), crl(foreign, [7], issuer=authority.name)):
        path.write_bytes(wrong.public_bytes(encoding))
        with pytest.raises(BadInput, match="did not sign"):
            revoked.Revoked(path, ca)
    path.write_bytes(crl(authority, [7]).public_bytes(encoding)[:-20])
    with pytest.raises(BadInput, match=r"--revoked .* (damaged|neither)"):
        revoked.Revoked(path, ca)
    path.write_bytes(crl(authority, [7], days=-1).public_bytes(encoding))
    said = []
    assert revoked.Revoked(path, ca, said.append).entries[1] == {7}
    assert "was to be renewed by" in said[0]


def test_a_file_of_revocations_that_cannot_be_read_keeps_the_server_from_starting(tmp_path, capsys):
    words = [
        "serve",
        "demo",
        "--diagnose-every",
        "0",
        "--insecure",
        "--listen",
        "127.0.0.1:0",
        "--out",
        str(tmp_path / "out"),
        "--revoked",
    ]
    (tmp_path / "binary").write_bytes(b"\x00\x01")
    for path in (tmp_path / "missing", tmp_path / "binary"):
        assert main([*words, str(path)]) == 2
        said = capsys.readouterr().err
        assert "--revoked" in said
        assert said.count("\n") == 1


def test_serial_numbers_are_read_as_openssl_prints_them(tmp_path):
    path = tmp_path / "revoked"
    path.write_text("0x1F\n0a:0b\n12\nalice # gone\n\n")
    assert revoked.Revoked(path, None).entries == ({"0x1F", "0a:0b", "12", "alice"}, {0x1F, 0x0A0B, 12, 0x12})


def test_pauses_double_and_the_last_offence_excludes():
    now = [0.0]
    counted = Offences(3, lambda: now[0])
    assert not counted.add("alice")
    assert counted.pause("alice") == 1.0
    now[0] = 1.0
    assert counted.pause("alice") == 0.0
    assert not counted.add("alice")
    assert counted.pause("alice") == 2.0
    assert counted.add("alice")
    assert counted.is_excluded("alice")
    assert not counted.is_excluded("bob")
    assert counted.forgive("alice") == 3
    assert not counted.is_excluded("alice")
    assert counted.pause("alice") == 0.0


def lying(monkeypatch, name="client1"):
    """Let a client end its turns with a lie."""
    send, lie = NetworkLine.send, ends(with_numbers(weight=0.0))
    monkeypatch.setattr(
        NetworkLine, "send", lambda line, packed, label: send(line, lie(packed) if line.name == name else packed, label)
    )


def test_a_repeat_offender_is_excluded_and_the_operator_readmits_it(tmp_path, monkeypatch, quick, capsys):
    recipe = make({**BASE, "scheme": "splitfed_v1", "rounds": 8})
    net, again, failures = Net(recipe, tmp_path, max_offences=3), 0, []
    net.join("client0", slow=0.2)
    with monkeypatch.context() as patched:
        lying(patched)
        while not net.said("client1 is excluded"):
            net.join("client1", patience=5.0).join(30)
            failures.append(str(net.failed.pop("client1")))
            again += 1
        assert again == 3
    assert all("weight 0" in why for why in failures)
    assert net.said("client1 was turned away 3 times; the others go on without it from mark")
    net.join("client1").join(30)
    assert f"the operator lets it in with: cutlayer readmit {tmp_path / 'server'} client1" in str(net.failed.pop("client1"))
    with alone_in(tmp_path / "server"):  # as the command line does
        assert main(["readmit", str(tmp_path / "server"), "carol"]) == 2
        assert "'carol' is not a client of this run; those are client0, client1" in capsys.readouterr().err
        assert main(["readmit", str(tmp_path / "server"), "client1"]) == 0
    assert "client1 may come back; it was turned away 3 times" in capsys.readouterr().out
    net.join("client1")
    net.wait()
    assert net.said("client1 is here; it takes part from the next round on")


def test_who_was_turned_away_waits_before_it_rolls_the_others_back_again(tmp_path, monkeypatch):
    monkeypatch.setattr(offences, "FIRST_PAUSE_S", 3.0)
    whole, net = run_recipe(COPIES), Net(COPIES, tmp_path)
    net.join("client0")
    with monkeypatch.context() as patched:
        lying(patched)
        net.join("client1").join(30)
        net.failed.pop("client1")
    begin = time.monotonic()
    net.join("client1")
    result = net.wait()
    assert net.said("client1 was turned away once; it may come back in")
    assert time.monotonic() - begin > 2.0
    assert all(equal(whole.modules[name], result.modules[name]) for name in whole.modules)


def test_records_that_no_session_sends_are_an_offence(tmp_path):
    net = Net(COPIES, tmp_path, max_offences=1, start_timeout=3.0)
    line = NetworkLine(f"127.0.0.1:{net.port}", "client1", ABOUT, tls=None, patience=5.0)
    line.connect()
    with line.session.changed:
        line.session.last = 1
        line.session.unacked.append((1, [RECORD.pack(7, 1, 0, 100) + b"x"]))
        line.session.changed.notify_all()
    with pytest.raises(BadInput, match="a record of type 7"):
        [line.poll() for _ in range(100)]
    line.close()
    assert net.serving.access.offences.is_excluded("client1")
    with pytest.raises(RunFailed, match="missing: client0, client1"):
        net.wait()


def test_readmit_says_in_one_line_that_no_server_is_there(tmp_path, capsys, monkeypatch):
    assert main(["readmit", str(tmp_path / "nothing"), "alice"]) == 2
    with alone_in(tmp_path):
        pass
    assert main(["readmit", str(tmp_path), "alice"]) == 2
    said = capsys.readouterr().err
    assert said.count("no server is at work in") == said.count("\n") == 2
    monkeypatch.setattr(readmit, "ANSWER_S", 0.2)
    with alone_in(tmp_path), pytest.raises(RunFailed, match="has not answered"):
        readmit.request_readmission(tmp_path, "alice", 0.2)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    (tmp_path / ".readmit-1.request").write_text("{")
    readmit.answer_requests(tmp_path, lambda name: name)
    assert not json.loads((tmp_path / ".readmit-1.answer").read_text())[0]
