"""How messages are packed by role, and taken apart again."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from .errors import BadInput
from .frame import Coded, Packed, dumps, loads
from .message import Collect, Exchange, Message, Reply, family

__all__ = [
    "Codec", "Codecs", "Coded", "Collect", "Exchange", "Message", "Packed", "Reply", "dumps", "family", "loads", "pack", "unpack",
]  # fmt: skip


@runtime_checkable
class Codec(Protocol):
    """Turns a floating tensor into the tensors that are sent, and back; one object per client, end and role."""

    def encode(self, tensor: Tensor) -> tuple[Tensor, ...]: ...
    def decode(self, parts: tuple[Tensor, ...]) -> Tensor: ...
    def state(self) -> dict[str, Tensor]: ...
    def load(self, state: Mapping[str, Tensor]) -> None: ...


Codecs = Mapping[str, Codec]


def pack(message: Message, codecs: Codecs) -> Packed:
    """Encode the floating tensors of every role that has a codec; the others are sent as they are."""
    roles = []
    for role, tensor in message.tensors.items():
        codec = codecs.get(family(role)) if tensor.is_floating_point() else None
        tensor = tensor.detach()
        _begin(codec, message, role)
        roles.append(Coded(role, codec is not None, codec.encode(tensor) if codec else (tensor,)))
    return Packed(message, tuple(roles))


def unpack(packed: Packed, codecs: Codecs) -> Message:
    """Return the message with fresh leaf tensors that alias nothing of the sender, in process too."""
    tensors: dict[str, Tensor] = {}
    m = packed.message
    for role, coded, parts in packed.roles:
        if not parts or (coded and family(role) not in codecs):
            raise BadInput(
                f"role {role!r} came coded, or empty, and this end has no codec for it; both ends need the same recipe"
            )
        if coded:
            tensors[role] = _decoded(codecs[family(role)], m, role, parts)
        else:
            tensors[role] = parts[0] if packed.owned else parts[0].clone()
    return Message(m.kind, tensors, m.numbers, m.client, m.step, m.reply, m.open, packed)


def _decoded(codec: Codec, message: Message, role: str, parts: tuple[Tensor, ...]) -> Tensor:
    try:
        _begin(codec, message, role)
        return codec.decode(parts)
    except Exception as error:  # a stranger's parts may be of any number, dtype and shape
        why = str(error).partition("\n")[0]
        raise BadInput(f"role {role!r} cannot be decoded ({why}); both ends need the same recipe") from error


def _begin(codec: object, message: Message, role: str) -> None:
    """Tell a codec that asks for it what the next tensor belongs to."""
    begin = getattr(codec, "begin", None)
    if begin is not None:
        begin(message, role)
