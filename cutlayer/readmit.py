"""Requests of an operator to a running server, as files in the server's folder."""

import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import BadInput, RunFailed
from .private import write

ANSWER_S = 60.0  # a server answers between two messages; an evaluation may take long
ASKED, ANSWERED = ".readmit-{}.request", ".readmit-{}.answer"


def request_readmission(out: Path, name: str, timeout: float = ANSWER_S) -> str:
    """Ask the server at work in a folder to let a client in again, and return its answer in one line.

    Raises BadInput if no process works there or the server does not know the name, RunFailed if nobody answers within `timeout` seconds.
    """
    _check_at_work(out)
    token = secrets.token_hex(8)
    asked, answered = out / ASKED.format(token), out / ANSWERED.format(token)
    try:
        write(asked, json.dumps(name))
        end = time.monotonic() + timeout
        while not answered.exists():
            if time.monotonic() > end:
                raise RunFailed(f"the process at work in {out} has not answered for {timeout:g} s; is it cutlayer serve?")
            time.sleep(0.1)
        known, line = json.loads(answered.read_text())
    except OSError as error:
        raise BadInput(
            f"{out}: the request cannot be written ({error.strerror}); run this as the user of the server"
        ) from error
    finally:
        for path in (asked, answered):
            path.unlink(missing_ok=True)
    if not known:
        raise BadInput(line)
    return str(line)


def answer_requests(out: Path, readmit: Callable[[str], str]) -> None:
    """Answer the requests that lie in a server's folder; `readmit` raises BadInput for a name that it does not know."""
    for asked in out.glob(ASKED.format("*")):
        try:
            known, line = True, readmit(str(json.loads(asked.read_text())))
        except BadInput as error:
            known, line = False, str(error)
        except (OSError, ValueError) as error:  # withdrawn, or no request
            known, line = False, f"the request cannot be read ({error})"
        token = asked.name.removeprefix(".readmit-").removesuffix(".request")
        write(out / ANSWERED.format(token), json.dumps([known, line]))
        asked.unlink(missing_ok=True)


def _check_at_work(out: Path) -> None:
    lock = out / ".lock"
    try:
        if lock.exists():
            with FileLock(lock, timeout=0):
                pass
    except Timeout:
        return
    except OSError as error:
        raise BadInput(f"{out} cannot be read ({error.strerror}); run this as the user of the server") from error
    raise BadInput(f"no server is at work in {out}; name the --out folder of a running cutlayer serve")
