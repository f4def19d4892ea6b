"""cutlayer readmit: what the operator of a running server may ask of it."""

from pathlib import Path

from tyro.conf import Positional

from .console import console


def readmit(folder: Positional[Path], name: Positional[str], /) -> int:
    """Let a client in again that a running server has excluded, or makes wait, because it was turned away.

    Args:
        folder: the --out folder of the server.
        name: the client's name.
    """
    from .readmit import request_readmission

    console.print(request_readmission(folder, name), highlight=False, markup=False)
    return 0
