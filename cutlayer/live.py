"""What a server shows while it works: a table on the terminal, and the same figures on a loopback port."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from .errors import BadInput
from .serve import Serving
from .transports import waits

EVERY_S = 0.5
MAX_READERS = 16  # connections to the status page at once
READER_S = 5.0  # a reader that sends no request by then is closed


class Live:
    """Looks at a server between two messages, in its own thread, at most twice a second; `latest` is what it saw."""

    def __init__(self) -> None:
        self.latest: dict[str, Any] = {}
        self.stamp = 0.0
        self.before: dict[int, tuple[float, float, float]] = {}  # by client: when, bytes up, bytes down

    def __call__(self, serving: Serving) -> None:
        now = time.monotonic()
        if now - self.stamp >= EVERY_S:
            self.stamp = now
            self.latest = self.look(serving, now)

    def look(self, serving: Serving, now: float) -> dict[str, Any]:
        """Return the figures: bytes are those on the wire so far, rates in bytes per second since the last look."""
        host, server, names = serving.host, serving.host.server, serving.names
        wire = serving.side.parties.meter.wire_by_client()
        clients = []
        for k, name in enumerate(names):
            up, down = (wire.get((direction, k), 0) for direction in ("up", "down"))
            then, up_then, down_then = self.before.get(k, (now, up, down))
            self.before[k] = now, up, down
            passed = max(now - then, 1e-9)
            rates = {"up_rate": (up - up_then) / passed, "down_rate": (down - down_then) / passed} if now > then else {}
            seen = {"seen_s_ago": round(now - serving.seen[k], 1)} if k in serving.seen else {}
            clients.append(
                {
                    "name": name,
                    "state": state(serving, k),
                    "samples": serving.samples.get(k, 0),
                    "up_bytes": up,
                    "down_bytes": down,
                }
                | {name: max(0.0, value) for name, value in rates.items()}
                | seen
            )
        records = serving.side.outputs.records
        return {
            "round": server.schedule.round, "rounds": server.schedule.plan.rounds, "incarnation": host.incarnation,
            "begun": host.begun, "clients": clients, "record": records[-1] if records else {},
            "waiting_for": {name: round(s, 1) for name, s in serving.waiting_for().items() if s >= waits.NAMED_AFTER_S},
        }  # fmt: skip

    def table(self) -> Any:
        """Return what the terminal shows."""
        seen = self.latest
        if not seen:
            return Text("")
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("client")
        table.add_column("state")
        for name in ("samples", "up", "down", "up/s", "down/s", "last seen"):
            table.add_column(name, justify="right", no_wrap=True)
        for c in seen["clients"]:
            rates = [size(c[name]) if name in c else "" for name in ("up_rate", "down_rate")]
            last = f"{c['seen_s_ago']:.0f} s ago" if "seen_s_ago" in c else "never"
            table.add_row(c["name"], c["state"], str(c["samples"]), size(c["up_bytes"]), size(c["down_bytes"]), *rates, last)
        figures = [f"{name} {seen['record'][name]:.4g}" for name in ("train_loss", "accuracy") if name in seen["record"]]
        head = f"round {min(seen['round'] + 1, seen['rounds'])} of {seen['rounds']}" if seen["begun"] else "waiting for clients"
        return Group(Text(", ".join([head, *figures])), table)


def state(serving: Serving, k: int) -> str:
    """Return in a word or two what a client does."""
    host = serving.host
    if k in host.finished:
        return "finished"
    if k not in host.there:
        return "left" if k in host.server.schedule.absent else "away"
    if k in host.server.schedule.absent:
        return "next round"
    if (silence := host.waits.silence(k)) >= waits.NAMED_AFTER_S:
        return f"silent {silence:.0f} s"
    return "training" if k in host.server.running else "waiting"


def size(nbytes: float) -> str:
    """Return bytes in a unit that reads well."""
    for unit in ("B", "kB", "MB"):
        if nbytes < 999.5:  # what is rounded to 1000 would be written as 1e+03
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} GB" if nbytes < 999.5 else f"{nbytes:.0f} GB"


def metrics(seen: dict[str, Any]) -> str:
    """Return the figures as Prometheus reads them."""
    lines = ["# TYPE cutlayer_round gauge", f"cutlayer_round {seen.get('round', 0)}"]
    lines += ["# TYPE cutlayer_incarnation gauge", f"cutlayer_incarnation {seen.get('incarnation', 0)}"]
    lines += ["# TYPE cutlayer_bytes_total counter"]
    for c in seen.get("clients", []):
        lines += [
            f'cutlayer_bytes_total{{client="{c["name"]}",direction="{way}"}} {c[f"{way}_bytes"]}' for way in ("up", "down")
        ]
    lines += ["# TYPE cutlayer_client_here gauge"]
    for c in seen.get("clients", []):
        lines.append(f'cutlayer_client_here{{client="{c["name"]}"}} {int(c["state"] not in ("away", "left"))}')
    lines += ["# TYPE cutlayer_waiting_seconds gauge"]
    for c in seen.get("clients", []):
        lines.append(f'cutlayer_waiting_seconds{{client="{c["name"]}"}} {seen["waiting_for"].get(c["name"], 0)}')
    return "\n".join(lines) + "\n"


class Pages(ThreadingHTTPServer):
    """An HTTP server with a bounded number of connections, so that silent ones leave descriptors for the run."""

    free = threading.BoundedSemaphore(MAX_READERS)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self.free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.free.release()


def endpoint(live: Live, port: int) -> ThreadingHTTPServer:
    """Serve /status.json and /metrics on this machine alone; raises BadInput if the port is taken or is none."""

    class Handler(BaseHTTPRequestHandler):
        timeout = READER_S

        def do_GET(self) -> None:
            pages = {
                "/status.json": ("application/json", lambda: json.dumps(live.latest)),
                "/metrics": ("text/plain; version=0.0.4", lambda: metrics(live.latest)),
            }
            if self.path not in pages:
                self.send_error(404, "there are /status.json and /metrics")
                return
            kind, page = pages[self.path]
            body = page().encode()
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    if not 0 <= port <= 65535:
        raise BadInput(f"--status-port {port}: a port is from 0, any that is free, to 65535")
    try:
        server = Pages(("127.0.0.1", port), Handler)
    except OSError as error:
        raise BadInput(f"--status-port {port}: {error.strerror}; take another") from error
    threading.Thread(target=server.serve_forever, name="cutlayer-status", daemon=True).start()
    return server
