"""The end of a run between organisations: the server offers the final weights until every client that took part has saved them."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .errors import BadInput
from .expected import check_labels
from .integrity import check_trained
from .private import write
from .schema import json_table
from .transports.grpc_server import Event, Gate
from .transports.member import Start
from .transports.session import Session
from .wire import Message, pack

MAX_OFFERS = 8  # to one client whose bytes keep the server waiting; a client that starts anew more often does not


def pending_clients(out: Path, names: Sequence[str]) -> dict[str, int]:
    """Return the clients that have not saved the final weights of a finished run, each with the label of its newest state.

    A folder without a record of them, as `cutlayer run` leaves it, has `names`.
    """
    path = out / "pending_clients.json"
    if not path.exists():
        return dict.fromkeys(names, 0)
    found = json_table(path)
    if not all(type(label) is int and label >= 0 for label in found.values()):
        raise BadInput(f"{path} is damaged; delete it, and the final weights are offered to all clients")
    return found


def stored_weights(folder: Path, k: int) -> dict[str, Tensor]:
    """Return the final weights of client k by <module>.<parameter>; where the folder has none of its own, those of the first client."""
    check_trained(folder.parent)
    files = {path.stem: path for path in folder.glob("*.safetensors") if path.stem.partition("-")[0] != "top"}
    numbers = sorted(int(n) for stem in files if stem.startswith("bottom-") and (n := stem.removeprefix("bottom-")).isdecimal())
    own = f"-{k if k in numbers else numbers[0]}" if numbers else ""
    found: dict[str, Tensor] = {}
    for stem, path in sorted(files.items()):
        if stem.endswith(own):
            try:
                tensors = load_file(path)
            except (OSError, SafetensorError) as error:
                why = str(error).partition("\n")[0]
                raise BadInput(f"{path} cannot be read ({why}); delete {folder.parent}, and run again") from error
            found |= {f"{stem.removesuffix(own)}.{name}": tensor for name, tensor in tensors.items()}
    return found


class FinalOffer:
    """Sends each client the final weights of its modules, and keeps a record of those that have not saved them.

    `weights(k)` are client k's by <module>.<parameter>; `pending` has, by name, the label of the newest state of each client that took
    part. Clients in `excluded`, which may grow, are not waited for.
    """

    def __init__(
        self, gate: Gate, names: Sequence[str], out: Path, weights: Callable[[int], Mapping[str, Tensor]], pending: Mapping[str, int],
        excluded: Set[int], say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.gate, self.names, self.out, self.weights, self.say = gate, names, out, weights, say
        if unknown := pending.keys() - set(names):
            raise BadInput(f"the final weights wait for {', '.join(sorted(unknown))}; --clients names {', '.join(names)} alone")
        self.excluded, self.pending = excluded, {names.index(name): label for name, label in pending.items()}
        self.sessions: dict[int, Session] = {}  # in which a client was sent its weights
        self.count: dict[int, int] = {}
        self.ended: set[Session] = set()  # in which a client heard that training is over
        self._record()

    def send(self, clients: Iterable[int]) -> None:
        """Send some clients their weights, which are no part of the training's bytes."""
        for k in clients:
            tensors = {f"weights/{name}": tensor for name, tensor in self.weights(k).items()}
            self.gate.post(k, pack(Message("final", tensors, client=k), {}))
            self.sessions[k] = self.gate.peers[k].session
            self.count[k] = self.count.get(k, 0) + 1

    def wait(self, patience: float, next_event: Callable[[], Event | None], stopped: Callable[[], bool]) -> None:
        """Serve clients that come until all have saved their weights, or nothing has moved for `patience` seconds; then end them all."""
        last = time.monotonic()
        while self.pending.keys() - self.excluded and not stopped() and time.monotonic() - last <= patience:
            if (event := next_event()) is not None and self._handle(event):
                last = time.monotonic()
            last = max([last, *(self.sessions[k].progressed for k in self.pending if 0 < self.count.get(k, 0) <= MAX_OFFERS)])
        for k in sorted(self.pending):
            self.say(
                f"{self.names[k]} has not saved its final weights; they are in {self.out / 'weights'}, and the same command offers them "
                "again"
            )
        self.gate.tell_all(self.ended, kind="end")

    def _handle(self, event: Event) -> bool:
        """Deal with what a client sent, and return whether it has saved its weights now."""
        k, received, saved = event.client, event.received, False
        if received is None or self.gate.peers[k].session is not event.session:
            return False
        try:
            if received.told.get("kind") == "ready":
                self._begin(k, received.told)
            elif received.told.get("kind") == "saved":
                saved = self.pending.pop(k, None) is not None
                self._record()
                self.ended.add(event.session)
                event.session.tell(kind="end")
        except BadInput as error:
            self.gate.turn_away(k, f"it sent what this server cannot use ({error})")
        event.session.take(received)
        return saved

    def _begin(self, k: int, told: Mapping[str, Any]) -> None:
        """Answer a client whose process is new: it goes back to its newest state, for modules that never leave it, and is done."""
        held, label = check_labels(told.get("held")), self.pending.get(k, 0)
        self.gate.post(k, Start(0, label if label in held else max(held, default=0)))
        self.send([k])

    def _record(self) -> None:
        write(
            self.out / "pending_clients.json", json.dumps({self.names[k]: label for k, label in sorted(self.pending.items())})
        )
