"""Clients that never go backward: losses under random shifts of the weights (HOSL, arXiv 2601.10940; HERON-SFL, 2601.09076)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from ..auxiliary import HeadOptions, auxiliary_loss, head_of
from ..client import Client, Record
from ..probes import Probes
from ..program import Method, Sends
from ..shifts import Shift, zeros
from ..task import Batch
from ..wire import Exchange

Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class ZerothOrderOptions(HeadOptions):
    """Whose loss is probed, and how."""

    probe: Annotated[Literal["server", "local"], "whose loss: the server's (HOSL), or the client's own head's (HERON-SFL)"] = (
        "server"
    )
    epsilon: Annotated[Annotated[float, Field(gt=0)], "length of a shift along a random direction"] = 1e-3
    queries: Annotated[Count, "random directions of a step"] = 1
    center: Annotated[
        bool, "all directions from the same weights, where the server learns too; else one move each, as in HOSL's code"
    ] = False
    exact_restore: Annotated[bool, "weights are put back from a copy, not by shifting back, which may round"] = False
    send_every: Annotated[Count, "activations are sent on every h-th step of a round (probe local)"] = 1


class ZerothOrder(Method):
    """Two losses for each direction u, (L+ - L-) / 2 epsilon times u for a gradient; the client keeps no activations.

    Both see the same dropout masks and leave running statistics alone; one more pass, at the weights themselves, moves those.
    The server learns from the first shifted activations, as in HOSL's code, unless `center` is set.
    """

    Options: ClassVar[type] = ZerothOrderOptions
    needs_labels: ClassVar[bool] = True
    record_names: ClassVar[tuple[str, ...]] = ("probed_loss",)

    def __init__(self, options: ZerothOrderOptions, client: Client) -> None:
        self.options = options
        if options.probe == "local":
            client.add("auxiliary", head_of(options, client.task), auxiliary_loss)
        self.has_statistics = any(getattr(m, "track_running_stats", False) for m in client.modules.modules())

    @staticmethod
    def comes_back(options: ZerothOrderOptions) -> bool:
        return False

    @staticmethod
    def waits(options: ZerothOrderOptions) -> bool:
        return options.probe == "server"

    dialogue = waits  # a batch takes several messages

    @staticmethod
    def sends(options: ZerothOrderOptions, round: int, step: int, seen: int) -> Sends:
        """Return whether a step sends activations, and whether it is answered: probes of the server's loss always are."""
        return Sends(options.probe == "server" or step % options.send_every == 0, options.probe == "server")

    @staticmethod
    def server_part(options: ZerothOrderOptions) -> Probes | None:
        return Probes() if options.probe == "server" else None

    def step(self, client: Client, batch: Batch) -> Exchange[Record]:
        o = self.options
        local, terms, moves = o.probe == "local", list[Tensor](), zeros(client)
        for q in range(o.queries):
            shift = Shift(client, q, o.epsilon, o.exact_restore)
            for sign in (1, -1):
                shift.to(sign)
                z = client.forward(batch, graph=False, statistics=False)
                if local:
                    loss = client.loss("auxiliary", z, batch, graph=False, statistics=False)
                else:
                    more = o.center or sign > 0 or q < o.queries - 1
                    loss = yield from client.probe(z, batch, learn=not o.center and sign > 0 and q == 0, more=more)
                terms.append(loss)
            shift.to(0)
            shift.add(moves, float(terms[-2].double() - terms[-1].double()) / (2 * o.epsilon * o.queries))
            if not o.center and q < o.queries - 1:
                client.update_along(moves)
                moves = zeros(client)
        sends = (client.step % o.send_every == 0) if local else o.center
        if sends or self.has_statistics:
            z = client.forward(batch, graph=False)
            if local:
                client.loss("auxiliary", z, batch, graph=False)
            if sends:
                yield from client.uplink(z, batch, gradient=False)
        client.update_along(moves)
        return {"probed_loss": sum(terms, terms[0].new_zeros(())) / len(terms)}
