"""cutlayer: one neural network trained across a cut between data owners and a server."""

from . import data, models, recipes
from .cut import Parts, Smashed, cut
from .data import partition
from .errors import BadInput, RunFailed
from .outputs import Result
from .run import run, run_recipe
from .task import Batch, Task
from .wire import Message

__version__ = "0.1.0"
__all__ = [
    "BadInput", "Batch", "Message", "Parts", "Result", "RunFailed", "Smashed", "Task",
    "cut", "data", "models", "partition", "recipes", "run", "run_recipe",
]  # fmt: skip
