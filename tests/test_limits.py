"""A server whose file descriptors strangers want to use up."""

import errno
import resource
import socket
import subprocess
import sys
import urllib.request
import warnings
from contextlib import ExitStack

import pytest
from across import BASE, joining
from conftest import equal
from network import COPIES, Net, until
from safetensors import SafetensorError
from safetensors.torch import load_file

from cutlayer import checkpoint, descriptors
from cutlayer.descriptors import is_exhausted, wait_for_descriptors
from cutlayer.errors import Advice, BadInput
from cutlayer.handshake import about
from cutlayer.live import MAX_READERS, Live, endpoint
from cutlayer.recipes.recipe import make
from cutlayer.recipes.toml import to_toml
from cutlayer.run import run_recipe
from cutlayer.transports import limits
from cutlayer.transports.grpc_client import NetworkLine

pytestmark = pytest.mark.usefixtures("no_figures")
FULL = OSError(errno.EMFILE, "Too many open files")


@pytest.mark.long
def test_a_run_survives_300_silent_sockets_with_256_descriptors_and_the_refused_read_why(tmp_path):
    recipe = make({**BASE, "scheme": "splitfed_v1", "rounds": 3})
    (tmp_path / "recipe.toml").write_text(to_toml(recipe.flat()))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "cutlayer.cli", "serve", str(tmp_path / "recipe.toml"), "--insecure"]
    server = subprocess.Popen(
        [*words, f"--listen=127.0.0.1:{port}", f"--out={tmp_path / 'server'}"], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (200, 256)),
    )  # fmt: skip
    with ExitStack() as opened:
        opened.callback(server.kill)
        first, failed = joining(recipe, tmp_path, ["client0"], port, 60.0)
        until(lambda: (tmp_path / "client0" / "recipe.toml").exists(), 60)
        for _ in range(300):
            opened.enter_context(socket.create_connection(("127.0.0.1", port)))
        said = []
        line = NetworkLine(f"127.0.0.1:{port}", "client1", about(recipe), tls=None, say=said.append)
        opened.callback(line.close)
        until(lambda: said, 30)
        assert "it accepts no more connections for now" in said[0]
        line.close()
        second, failed_too = joining(recipe, tmp_path, ["client1"], port, 60.0)
        out, _ = server.communicate(timeout=60)
        for thread in (*first, *second):
            thread.join(30)
    assert server.returncode == 0, out
    assert not failed + failed_too
    assert equal(run_recipe(recipe).modules["top"], load_file(tmp_path / "server" / "weights" / "top.safetensors"))


def test_silent_connections_are_ended_and_the_refused_read_why(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "HANDSHAKE_S", 1.0)
    monkeypatch.setattr(limits, "max_connections", lambda num_clients: 4)
    net = Net(COPIES, tmp_path)
    with ExitStack() as opened:
        silent = [opened.enter_context(socket.create_connection(("127.0.0.1", net.port), timeout=20)) for _ in range(5)]
        assert silent[-1].recv(1) == b""  # one too many
        for name in ("client0", "client1"):
            net.join(name)
        net.wait()
    assert net.said("it accepts no more connections for now")


def test_too_many_open_files_is_waited_out_and_told_once(tmp_path, monkeypatch):
    monkeypatch.setattr(descriptors, "PAUSE_S", 0.01)
    failures = [SafetensorError("I/O error: Too many open files (os error 24)"), FULL, FULL]
    save_file = checkpoint.save_file

    def save(*args):
        if failures:
            raise failures.pop(0)
        save_file(*args)

    whole = run_recipe(COPIES)
    monkeypatch.setattr(checkpoint, "save_file", save)
    with warnings.catch_warnings(record=True) as told:
        net = Net(COPIES, tmp_path)
        for name in ("client0", "client1"):
            net.join(name)
        result = net.wait()
    assert not failures
    assert len([each for each in told if issubclass(each.category, Advice)]) == 1
    assert all(equal(whole.modules[name], result.modules[name]) for name in whole.modules)


def test_files_that_stay_exhausted_end_the_wait(monkeypatch):
    monkeypatch.setattr(descriptors, "PATIENCE_S", 0.05)
    monkeypatch.setattr(descriptors, "PAUSE_S", 0.01)

    @wait_for_descriptors
    def fail(error):
        raise error

    with pytest.warns(Advice, match="too many open files"), pytest.raises(OSError, match="Too many"):
        fail(FULL)
    with pytest.raises(FileNotFoundError):
        fail(FileNotFoundError(errno.ENOENT, "not there"))
    assert not is_exhausted(SafetensorError("I/O error: No space left on device (os error 28)"))


def test_a_limit_too_low_for_the_clients_is_one_line(monkeypatch):
    monkeypatch.setattr(limits, "raise_descriptor_limit", lambda: 128)
    with pytest.raises(BadInput, match="the limit of open files is 128, and 50 clients need at least") as caught:
        limits.max_connections(50)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(limits, "raise_descriptor_limit", lambda: 1 << 20)
    assert limits.max_connections(50) == 100 + limits.MAX_STRANGERS


def test_silent_readers_of_the_status_page_are_bounded(monkeypatch):
    monkeypatch.setattr("cutlayer.live.READER_S", 0.3)
    pages = endpoint(Live(), 0)
    where = ("127.0.0.1", pages.server_address[1])
    with ExitStack() as opened:
        silent = [opened.enter_context(socket.create_connection(where, timeout=10)) for _ in range(MAX_READERS + 1)]
        assert silent[-1].recv(1) == b""  # one too many
        assert silent[0].recv(1) == b""  # silent for too long
        with urllib.request.urlopen(f"http://127.0.0.1:{where[1]}/status.json") as page:
            assert page.read() == b"{}"
    pages.shutdown()
