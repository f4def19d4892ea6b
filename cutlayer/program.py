"""A client's life as a generator: sync, turn, sync, ...; what a method is."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from .client import Batches, Client, Record
from .memory import tensors_in
from .task import Batch
from .wire import Exchange, Message


class Sends(NamedTuple):
    """Whether a step sends activations, and whether its last message is answered."""

    up: bool
    down: bool


class Method(Protocol):
    """Where the client's gradient comes from; one file and one row in METHODS.

    `sends(options, round, step, seen)`, a static method, declares what a step sends (`Sends`), for an exact estimate before a run;
    `seen` counts the client's steps in all rounds. Without it every step is taken to send the same.

    `record_names`, a class attribute, lists the names of all figures in the records of its steps: a server elsewhere accepts no others.
    Without it a client may record up to 32 names that the server does not write itself.

    One that asks for replies that it collects later has `settle(client)`, which collects them before a turn ends and at marks.
    One that names it as its base has nothing of its own to keep.
    """

    def step(self, client: Client, batch: Batch) -> Exchange[Record]: ...

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        return


def nothing(client: Client) -> Exchange[None]:
    """Collect nothing."""
    yield from ()


def program(client: Client, method: Method, batches: Batches, checkpoint_every: int = 0) -> Exchange[None]:
    """Run one client to the end of training: sync, turn, sync, ...; starts at (client.round, client.step).

    Every `checkpoint_every` steps a mark is asked for.
    """
    settle = getattr(method, "settle", nothing)
    owned = lambda: [*client.owned(), *tensors_in(method.state())]  # noqa: E731
    go = yield client.sync(False, batches)
    while go is not None and not go.numbers["stop"]:
        client.receive(go)
        if client.orders.get("rest"):
            client.step = batches.per_round
        for batch in batches(client.round, client.step):
            with client.meter.step("client", client.id, client.step == client.sample_step, owned):
                client.note((yield from client.meter.attend("client", client.id, method.step(client, batch))))
            client.step += 1
            if client.turn and client.step % client.turn == 0:  # what ends a turn is a mark itself
                break
            if checkpoint_every and client.step % checkpoint_every == 0:
                yield from settle(client)
                yield Message("mark", {}, {}, client.id, client.step)
        yield from settle(client)
        go = yield client.sync(True, batches)
