"""What a client or a server sends is shown without what could take over a terminal, and names in frames are plain."""

import json
import struct

import pytest
import torch
from network import COPIES, Net

from cutlayer.errors import BadInput
from cutlayer.handshake import plain, refusal
from cutlayer.printable import UNSAFE, printable, printable_values
from cutlayer.transports.grpc_client import NetworkLine
from cutlayer.transports.session import control, read_control
from cutlayer.wire import Message, dumps, loads, pack

ESCAPES = "\x1b]0;title\x07 \x1b[2J\r\n\u202e\u2066\u2028\x9b1m\ud800"


def test_what_could_take_over_a_terminal_is_written_as_its_code():
    assert printable("plain, ü, 漢字, 🔬 [x]") == "plain, ü, 漢字, 🔬 [x]"
    assert printable("a\x1b[2Jb\nc\ud800\u202e") == r"a\x1b[2Jb\nc\ud800\u202e"
    assert not UNSAFE.search(printable(ESCAPES, None))
    printable(ESCAPES).encode()
    assert len(printable("\x1b" * 9999)) == 500
    assert printable_values({"\x1b": ["\n", {"x": "\r"}, 5, None]}) == {r"\x1b": [r"\n", {"x": r"\r"}, 5, None]}


def test_every_string_of_a_control_record_is_made_printable_where_it_is_read():
    found = read_control(control(kind="hello", name=ESCAPES, recipe={ESCAPES: [ESCAPES]}))
    assert not UNSAFE.search(found["name"])
    ((key, (value,)),) = found["recipe"].items()
    assert not UNSAFE.search(key + value)


def test_a_recipe_whose_text_has_escapes_is_still_the_same_recipe_at_both_ends():
    mine = {"note": plain(ESCAPES), "sizes": plain((1, 2))}  # as `about` says an option of a method from outside
    assert refusal(mine, read_control(control(kind="hello", recipe={"note": ESCAPES, "sizes": (1, 2)}))["recipe"]) is None


@pytest.mark.parametrize("name", ["record/\x1b[2J", "a\nb", "\x7f", "a\x00b"])
def test_a_frame_with_a_name_that_is_no_printable_ascii_is_refused(name):
    with pytest.raises(BadInput, match="cannot be a name in a message"):
        dumps(pack(Message("sync", {}, {name: 1.0}), {}))
    plain = "x" * len(name)
    packed = pack(Message("sync", {"smashed": torch.zeros(2)}, {plain: 1.0}), {})
    data = packed.header.replace(struct.pack("<H", len(name)) + plain.encode(), struct.pack("<H", len(name)) + name.encode())
    with pytest.raises(BadInput, match="a name that is not of printable ASCII"):
        loads(data + bytes(8), checked=False)


def test_no_escape_of_a_client_reaches_what_a_server_says_or_shows(tmp_path, monkeypatch):
    net = Net(COPIES, tmp_path, start_timeout=1.0)
    lie = {"seconds": {}, "peak": {}, "kept": {}, "left": {}, "held": {}, "steps": {}, "samples": {ESCAPES: -1}}
    monkeypatch.setattr(NetworkLine, "_ready", lambda line: line.session.tell(kind="bye", figures=lie))
    net.join("client0").join(30)
    assert "is no figure of a meter" in str(net.failed.pop("client0"))
    with pytest.raises(Exception, match="missing"):
        net.wait()
    assert net.said("client0 is turned away")
    assert not any(UNSAFE.search(line) for line in net.lines)


def test_no_escape_of_a_server_reaches_what_a_client_says():
    told = read_control(control(kind="refused", why=ESCAPES, busy=False))
    assert json.dumps(told["why"]).isascii()
    assert not UNSAFE.search(told["why"])
