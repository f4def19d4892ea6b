"""serve, join and certs as they are typed: processes, flags, folders, addresses."""

import io
import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from across import BASE, joining, over_grpc
from conftest import ROOT, equal
from network import COPIES, Net, until
from rich.console import Console
from safetensors.torch import load_file

from cutlayer import checkpoint
from cutlayer.cli import main
from cutlayer.errors import BadInput
from cutlayer.handshake import about, refusal, warning
from cutlayer.live import Live, endpoint, size
from cutlayer.recipes.recipe import make
from cutlayer.recipes.toml import read, to_toml
from cutlayer.run import run_recipe
from cutlayer.transports.grpc_common import check_address
from cutlayer.transports.grpc_server import Gate

pytestmark = pytest.mark.usefixtures("no_figures")


def test_three_processes_do_what_the_page_says(tmp_path):
    page = (ROOT / "docs" / "deployment.md").read_text()
    block = next(body for body in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) if "certs demo" in body)
    lines = [shlex.split(line) for line in block.replace("\\\n", " ").splitlines() if line.startswith("cutlayer")]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    less = ["--rounds", "1", "--warmup-rounds", "0", "--num-train", "256", "--model", "resnet8"]
    certs, *parties = [[word.replace(":7000", f":{port}") for word in words[1:]] for words in lines]
    start = [sys.executable, "-m", "cutlayer.cli"]
    how = {"cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    assert subprocess.run([*start, *certs], check=False, **how).returncode == 0
    running = [subprocess.Popen([*start, *words, *less], **how) for words in parties]
    said = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], said
    assert "alice is here with 128 samples" in said[0]
    assert "weights: " in said[0]
    assert all("trained parts: " in words for words in said[1:])
    weights = [sorted(tmp_path.glob(f"runs/*-{who}/weights/bottom.safetensors")) for who in ("server", "alice", "bob")]
    assert weights[0][0].read_bytes() == weights[1][0].read_bytes() == weights[2][0].read_bytes()
    # and the answers of bottom here and top there are those of the whole network
    serve, join_words = parties[0], parties[1]
    answering = subprocess.Popen([*start, *serve, *less, "--predict"], **how)
    try:
        where = join_words.index("--out")  # a client's folder; a prediction's is the file of its answers
        flags = [*join_words[2:where], *join_words[where + 2 :], *less, "--weights", str(weights[1][0].parent)]
        done = subprocess.run([*start, "predict", "demo", *flags], check=False, timeout=120, **how)
    finally:
        answering.send_signal(signal.SIGINT)
        words = answering.communicate(timeout=30)[0]
    assert done.returncode == 0, done.stdout
    assert "360 samples were answered" in words
    assert answering.returncode == 0
    summary = json.loads(weights[0][0].parent.with_name("summary.json").read_text())
    assert f"accuracy {summary['accuracy_final']:.4f}" in done.stdout
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 1 + 360
    # without the server, only what --local says
    flags += ["--patience", "1"]
    alone = subprocess.run([*start, "predict", "demo", *flags], check=False, timeout=120, **how)
    assert alone.returncode == 1
    assert "has been away for 1 s" in alone.stdout
    local = subprocess.run([*start, "predict", "demo", *flags, "--local"], check=False, timeout=120, **how)
    assert local.returncode == 2
    assert "needs an auxiliary head" in local.stdout


def test_a_server_shows_its_clients_and_serves_the_figures(tmp_path):
    live = Live()
    net = Net(COPIES, tmp_path, watch=live)
    pages = endpoint(live, 0)
    where = f"http://127.0.0.1:{pages.server_address[1]}"
    net.join("client0")
    until(lambda: live.latest and live.latest["clients"][0]["state"] == "waiting")
    with urllib.request.urlopen(f"{where}/status.json") as page:
        seen = json.load(page)
    assert seen["clients"][1]["state"] == "away"
    with urllib.request.urlopen(f"{where}/metrics") as page:
        assert 'cutlayer_client_here{client="client0"} 1' in page.read().decode()
    with pytest.raises(urllib.error.HTTPError), urllib.request.urlopen(f"{where}/elsewhere"):
        pass
    net.join("client1")
    net.wait()
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(live.table())
    assert "client1" in console.export_text()
    with pytest.raises(BadInput, match="--status-port"):
        endpoint(live, pages.server_address[1])
    pages.shutdown()


def test_ctrl_c_at_the_server_says_how_to_go_on_and_that_goes_on(tmp_path):
    recipe = make({**BASE, "scheme": "splitfed_v1", "rounds": 40})
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    toml = tmp_path / "recipe.toml"
    toml.write_text(to_toml(recipe.flat()))
    words = [sys.executable, "-m", "cutlayer.cli", "serve", str(toml), "--insecure", f"--listen=127.0.0.1:{port}"]
    words.append(f"--out={tmp_path / 'server'}")
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    server = subprocess.Popen(words, **how)
    threads, failed = joining(recipe, tmp_path, ("client0", "client1"), port, 60.0)
    until(lambda: len(list((tmp_path / "server" / "marks").glob("[!.]*"))) == 2, 60)
    server.send_signal(signal.SIGINT)
    said, _ = server.communicate(timeout=30)
    assert server.returncode == 130, said
    assert "the same command with --resume goes on from the last mark" in " ".join(said.split())
    assert "Traceback" not in said
    done = subprocess.run([*words, "--resume"], timeout=120, check=False, **how)
    for thread in threads:
        thread.join(30)
    assert done.returncode == 0, done.stdout
    assert not failed
    whole = run_recipe(recipe)
    assert equal(whole.modules["top"], load_file(tmp_path / "server" / "weights" / "top.safetensors"))
    assert not list(tmp_path.glob("*/marks"))
    wrong = subprocess.run([*words[:-1], f"--out={tmp_path / 'nothing'}", "--resume"], timeout=60, check=False, **how)
    assert wrong.returncode == 2
    assert "holds no mark of a stopped run" in wrong.stdout


def test_what_decides_bits_is_compared_and_told():
    mine = about(COPIES)
    assert warning(mine, mine) is None
    assert "computes with torch '1.0' (here" in warning(mine, {**mine, "torch": "1.0"})
    why = refusal(mine["recipe"], {**mine["recipe"], "lr": 0.5})
    assert why == "the recipes differ: lr = 0.05 at the server, 0.5 at this client; both ends need the same recipe"
    assert refusal(mine["recipe"], "nonsense") == "this hello has no recipe"


def test_join_leaves_a_folder_of_another_recipe_as_it_is_and_marks_its_own(tmp_path, capsys):
    result, _ = over_grpc(COPIES, tmp_path)
    other = tmp_path / "client0"
    assert make(read(other / "recipe.toml")).digest() == COPIES.digest()
    checkpoint.save(other / "marks", "1", {"a": 1})
    toml = tmp_path / "recipe.toml"
    toml.write_text(to_toml({**COPIES.flat(), "lr": 0.1}))
    words = ["join", str(toml), "--insecure", "--server", "127.0.0.1:1", "--as", "client0", "--patience", "0.1"]
    assert main([*words, "--out", str(other)]) == 2
    assert "holds another recipe" in capsys.readouterr().err
    assert checkpoint.marks(other / "marks")
    assert equal(result.modules["bottom"], load_file(other / "weights" / "bottom.safetensors"))
    assert main([*words, "--out", str(tmp_path / "new")]) == 1  # nobody is there
    assert not (tmp_path / "new" / "recipe.toml").exists()


def test_serve_shows_no_finished_run_of_another_recipe(tmp_path, capsys):
    (tmp_path / "recipe.toml").write_text(to_toml(COPIES.flat()))
    (tmp_path / "summary.json").write_text("{}")
    assert main(["serve", "demo", "--insecure", "--out", str(tmp_path)]) == 2
    assert "holds another recipe" in capsys.readouterr().err


def test_names_of_clients_may_have_a_space_after_the_comma(tmp_path, capsys, monkeypatch):
    def serving(*_, names, **__):
        raise BadInput(f"waiting for {names}")

    monkeypatch.setattr("cutlayer.serve.Serving", serving)
    assert main(["serve", "demo", "--insecure", "--clients", "alice, bob,", "--out", str(tmp_path)]) == 2
    assert "waiting for ['alice', 'bob']" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("nbytes", "said"), [(0, "0 B"), (999, "999 B"), (999.6, "1 kB"), (1234, "1.23 kB"), (999_600, "1 MB"), (2.5e12, "2500 GB")]
)
def test_bytes_are_shown_in_a_unit_that_reads_well(nbytes, said):
    assert size(nbytes) == said


@pytest.mark.parametrize(
    ("words", "why"),
    [
        *((["--clients", clients], "give another") for clients in
          ("ca,bob", "server", "Server", "alice,alice", "Bob,bob", "../esc", ".hidden", "a/b", "ü", "a b", "x" * 65, "bob\n")),
        *((["--days", days], "more than 0 and at most 3650 days") for days in ("-1", "0", "nan", "inf", "1e9")),
    ],
    ids=str,
)  # fmt: skip
def test_a_set_of_certificates_that_would_be_broken_is_not_begun(words, why, tmp_path, capsys):
    assert main(["certs", "demo", str(tmp_path / "set"), *words]) == 2
    assert why in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("nowhere", "write HOST:PORT"),
        ("127.0.0.1:²", "write HOST:PORT"),
        ("0.0.0.0:7000", "plain text is for this machine alone"),
        ("127.example.com:7000", "plain text is for this machine alone"),
        ("127.1:7000", "plain text is for this machine alone"),
        ("localhost.example.com:7000", "plain text is for this machine alone"),
    ],
)
def test_addresses_are_checked(address, why):
    with pytest.raises(BadInput, match=why):
        check_address(address, True, "--listen")


def test_loopback_may_be_written_in_three_ways():
    for address in ("127.0.0.1:7000", "127.8.9.10:7000", "[::1]:7000", "localhost:7000"):
        check_address(address, True, "--listen")


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--status-port", "99999"), ("--wait-for", "²"), ("--wait-for", "0"), ("--keepalive", "nan"), ("--keepalive", "inf"),
        ("--keepalive", "0"), ("--patience", "nan"), ("--start-timeout", "-1"),
    ],
)  # fmt: skip
def test_a_flag_of_serve_that_is_no_number_of_its_kind_is_one_line(flag, value, tmp_path, capsys):
    toml = tmp_path / "recipe.toml"
    toml.write_text(to_toml(COPIES.flat()))
    words = ["serve", str(toml), "--insecure", "--listen", "127.0.0.1:0", "--out", str(tmp_path / "out"), f"{flag}={value}"]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"cutlayer: {flag} ")
    assert told.count("\n") == 1


def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(BadInput, match="cannot be had"):
        Gate(f"127.0.0.1:{taken.getsockname()[1]}", ["a"], lambda name, hello: None, tls=None)
