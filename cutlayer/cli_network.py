"""cutlayer serve | join | predict | certs: parties on machines of their own."""

import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, arg

from .console import console, progress_bar, show_finished, show_paths
from .errors import BadInput
from .flags import Fields, folder_of, given
from .printable import printable
from .recipes import Recipe, load

if TYPE_CHECKING:
    from .transports.grpc_common import Tls


@dataclasses.dataclass(frozen=True)
class Credentials:
    """Who one is: three files in PEM, or plain text on this machine alone."""

    ca: Annotated[Path | None, arg(help="certificate of the authority that all parties trust")] = None
    cert: Annotated[Path | None, arg(help="this party's certificate, made out to its name (a server's to 'server')")] = None
    key: Annotated[Path | None, arg(help="its key")] = None
    insecure: Annotated[bool, arg(help="plain text and no names checked; on loopback only")] = False

    def tls(self, name: str) -> "Tls | None":
        """Return the files, checked; None for plain text. Raises BadInput if some are missing or wrong."""
        from .certs import check
        from .transports.grpc_common import Tls

        if self.insecure:
            if self.ca or self.cert or self.key:
                raise BadInput("--insecure is plain text, and certificates are given too; drop one of the two")
            return None
        if self.ca is None or self.cert is None or self.key is None:
            missing = [f"--{f}" for f in ("ca", "cert", "key") if getattr(self, f) is None]
            raise BadInput(
                f"{', '.join(missing)} missing: cutlayer certs demo DIR makes a set; --insecure is plain text on loopback"
            )
        tls = Tls(self.ca, self.cert, self.key)
        check(tls, name)
        return tls


def say(line: str) -> None:
    """Print one line of what happens."""
    console.print(printable(line), highlight=False, markup=False)


def serve(
    recipe: Positional[str],
    /,
    fields: OmitArgPrefixes[Fields],  # type: ignore[valid-type]
    credentials: OmitArgPrefixes[Credentials],
    listen: str = "127.0.0.1:7000",
    clients: str = "",
    out: Path | None = None,
    wait_for: str = "all",
    start_timeout: float = 600.0,
    patience: float = 120.0,
    turn_timeout: float = 600.0,
    quorum: int = 1,
    late_join: bool = False,
    keepalive: float = 20.0,
    revoked: Path | None = None,
    max_offences: int = 5,
    status_port: int | None = None,
    resume: bool = False,
    predict: bool = False,
) -> int:
    """Be the server: train the top with clients that join over the network, or answer their predictions.

    Args:
        recipe: a named recipe, or a flat TOML file; the same one as the clients have.
        fields: any field of the recipe; --data is what shapes and the evaluation come from.
        credentials: who the server is.
        listen: HOST:PORT; 0.0.0.0:7000 for all of this machine's addresses.
        clients: their names, alice,bob; client0,client1,... if not given. Certificates are made out to them.
        out: where everything is written; runs/<recipe>-<digest>-server if not given. A run that stopped goes on.
        wait_for: so many clients have to be there to begin, or all.
        start_timeout: seconds until then.
        patience: seconds that a client may be away while nobody else has anything to do; then it has left.
        turn_timeout: seconds of silence of a connected client that the server waits for; then it has left.
        quorum: clients without which nobody is left behind: the server waits, and says so.
        late_join: clients that were not there at the start may come later.
        keepalive: seconds of silence after which a connection is tried; half as many more, and it is dead.
        revoked: names or serial numbers, one a line, or a CRL; these clients are not let in. Read again when it changes.
        max_offences: how often a client may be turned away before the run goes on without it (cutlayer readmit lets it in again).
        status_port: serve /status.json and /metrics on 127.0.0.1.
        resume: insist that there is a stopped run to go on with.
        predict: answer predictions with the trained top in --out until interrupted.
    """
    from .final_weights import pending_clients
    from .live import Live, endpoint
    from .run_folder import alone_in, check_folder
    from .serve import Serving
    from .transports.grpc_common import SERVER_NAME, check_party_name

    made = load(recipe, **given(fields))
    tls = credentials.tls(SERVER_NAME)
    folder = out or folder_of(made, "-server")
    names = [name for name in map(str.strip, clients.split(",")) if name]
    for name in names:
        check_party_name("--clients", name)
    if predict:
        given_too = {
            "--wait-for": wait_for != "all", "--quorum": quorum != 1, "--late-join": late_join, "--resume": resume,
            "--status-port": status_port is not None, "--max-offences": max_offences != 5,
        }  # fmt: skip
        if any(given_too.values()):
            named = ", ".join(name for name, is_given in given_too.items() if is_given)
            raise BadInput(f"--predict beside {named}: that is of training; drop one of the two")
        return _answer(made, folder, listen, names, tls, revoked)
    check_folder(made, folder)
    finished = (folder / "summary.json").exists()
    if finished and not pending_clients(folder, names or ["all"]):
        show_finished(folder)
        return 0
    if resume and not finished and not any((folder / "marks").glob("[!.]*")):
        raise BadInput(f"--resume: {folder} holds no mark of a stopped run; drop --resume, or name its --out")
    if wait_for != "all" and not wait_for.isdecimal():
        raise BadInput(f"--wait-for {wait_for!r}: write a number of clients, or all")
    from rich.live import Live as Screen

    live = Live()
    with alone_in(folder):
        pages = endpoint(live, status_port) if status_port is not None else None
        try:
            serving = Serving(
                made, folder, listen=listen, tls=tls, names=names, wait_for=None if wait_for == "all" else int(wait_for),
                start_timeout=start_timeout, patience=patience, turn_timeout=turn_timeout, quorum=quorum, late_join=late_join,
                keepalive_s=keepalive, say=say, revoked=revoked, max_offences=max_offences,
                watch=live,
            )  # fmt: skip
            with (
                Screen(
                    get_renderable=live.table,
                    console=console,
                    refresh_per_second=2,
                    transient=True,
                    auto_refresh=console.is_terminal,
                ),
                stopping_at(serving.stop),
            ):
                waiting = "" if finished else f"; waiting for {', '.join(serving.names)}"
                say(f"listening on {listen}{'' if tls else ', in plain text'}{waiting}")
                serving.run()
        except KeyboardInterrupt:
            say(
                f"stopped; the same command with --resume goes on from the last mark in {folder}, and clients come by themselves"
            )
            raise
        finally:
            if pages is not None:
                pages.shutdown()
    show_finished(folder)
    return 0


@contextmanager
def stopping_at(stop: Callable[[], None]) -> Iterator[None]:
    """Let the first Ctrl-C only ask to stop, because an exception in the middle of anything may be lost; the second one interrupts."""

    def asked(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        stop()

    before = signal.signal(signal.SIGINT, asked)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _answer(made: Recipe, folder: Path, listen: str, names: list[str], tls: "Tls | None", revoked: Path | None) -> int:
    from .predict import Answering
    from .revoked import Revoked

    names = names or [f"client{k}" for k in range(made.num_clients)]
    listed = None if revoked is None else Revoked(revoked, tls.ca if tls else None, say)
    answering = Answering(made, folder / "weights", listen=listen, names=names, tls=tls, revoked=listed)
    stop = threading.Event()
    with stopping_at(stop.set):
        say(f"listening on {listen}{'' if tls else ', in plain text'}; answering {', '.join(names)} until interrupted")
        answering.run(stop.is_set)
    say(f"{answering.answered} samples were answered")
    return 0


def join(
    recipe: Positional[str],
    /,
    fields: OmitArgPrefixes[Fields],  # type: ignore[valid-type]
    credentials: OmitArgPrefixes[Credentials],
    server: str,
    as_: Annotated[str, arg(name="as")],
    out: Path | None = None,
    patience: float = 300.0,
    keepalive: float = 20.0,
) -> int:
    """Be a client: train on data that stay here, with a server elsewhere.

    Args:
        recipe: a named recipe, or a flat TOML file; the same one as the server has.
        fields: any field of the recipe. With --data the whole training set is this client's; else its share under --partition is.
        credentials: who this client is.
        server: HOST:PORT of the server.
        as_: this client's name, as its certificate and the server have it.
        out: where states and trained parts are kept; runs/<recipe>-<digest>-<name> if not given. A run that was killed goes on.
        patience: seconds to try again while the server cannot be reached.
        keepalive: seconds of silence after which the connection is tried; half as many more, and it is opened anew.
    """
    from .join import join as join_run
    from .run_folder import alone_in
    from .transports.grpc_common import check_party_name

    made = load(recipe, **given(fields))
    check_party_name("--as", as_)
    folder = out or folder_of(made, f"-{as_}")
    with alone_in(folder), progress_bar() as bar:
        weights = join_run(
            made, folder, server=server, name=as_, tls=credentials.tls(as_), own_data="data" in given(fields),
            patience=patience, keepalive_s=keepalive, say=say, tick=_counted(bar, as_),
        )  # fmt: skip
    show_paths({"trained parts": weights})
    return 0


def _counted(bar: Any, name: str) -> Callable[[], None]:
    line = bar.add_task(name, total=None, note="")
    return lambda: bar.advance(line)


def predict(
    recipe: Positional[str],
    /,
    fields: OmitArgPrefixes[Fields],  # type: ignore[valid-type]
    credentials: OmitArgPrefixes[Credentials],
    weights: Path,
    server: str | None = None,
    as_: Annotated[str, arg(name="as")] = "client0",
    out: Path = Path("predictions.csv"),
    local: bool = False,
    ensemble: bool = False,
    patience: float = 10.0,
) -> int:
    """Answer a test set: the bottom here, the top at a server that was started with --predict.

    Args:
        recipe: the recipe that was trained.
        fields: any field of the recipe; the test set of --data is what is answered.
        credentials: who this client is.
        weights: the folder with the trained parts that join wrote.
        server: HOST:PORT; without one only --local can answer.
        as_: this client's name.
        out: the answers, one line a sample: in classification the class, and all outputs.
        local: if the server cannot be reached, answer with the auxiliary head, and say so.
        ensemble: add a quarter of the auxiliary head's log-probabilities to the network's.
        patience: seconds to try to reach it.
    """
    from .predict import predict as answers, write

    made = load(recipe, **given(fields))
    if server is None and not local:
        raise BadInput(
            "--server is missing: HOST:PORT of cutlayer serve --predict; or --local for the auxiliary head's answers"
        )
    tls = credentials.tls(as_) if server is not None else None
    outputs, found = answers(
        made, weights, server=server, name=as_, tls=tls, local=local, together=ensemble, patience=patience, say=say
    )
    write(outputs, out)
    say(", ".join(f"{name} {value:.4f}" for name, value in found.items()) + f" on {len(outputs)} samples")
    show_paths({"answers": out})
    return 0


def certs(kind: Positional[str], folder: Positional[Path], /, clients: str = "client0,client1", days: float = 30.0) -> int:
    """Make certificates: `certs demo DIR` writes an authority's, the server's and the clients', for trying on one machine.

    Args:
        kind: demo.
        folder: where the files are written.
        clients: the clients' names, alice,bob.
        days: how long they are valid.
    """
    from .certs import demo

    if kind != "demo":
        raise BadInput(f"certs {kind!r}: there is certs demo DIR; real certificates come from your own authority")
    names = [name for name in clients.split(",") if name]
    for path in demo(folder, names, days):
        show_paths({path.stem: path})
    return 0
