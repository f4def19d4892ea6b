"""Messages that a schedule or a method holds back, as trees for marks."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .wire import Coded, Message, Packed


def message_tree(message: Message) -> list[Any]:
    """Return all of a message, and as it came if it was unpacked."""
    m = message
    roles = None if m.packed is None else roles_tree(m.packed)
    return [m.kind, dict(m.tensors), dict(m.numbers), m.client, m.step, m.reply, m.open, roles]


def message_of(tree: Sequence[Any]) -> Message:
    """Return the message of a tree."""
    *values, roles = tree
    message = Message(*values)
    return message if roles is None else replace(message, packed=packed_of(message, roles))


def roles_tree(packed: Packed) -> list[Any]:
    """Return the coded tensors of a message as it crossed."""
    return [[c.role, c.coded, list(c.parts)] for c in packed.roles]


def packed_of(message: Message, roles: Sequence[Any]) -> Packed:
    """Return a message as it crossed, without its tensors beside it."""
    return Packed(replace(message, tensors={}), tuple(Coded(role, coded, tuple(parts)) for role, coded, parts in roles))
