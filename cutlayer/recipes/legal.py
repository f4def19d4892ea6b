"""Which fields do not go together, in one place, with the reason."""

from collections.abc import Mapping
from typing import Any

import torch

from .. import codecs
from ..data import DATASETS
from ..data.partition import PARTITIONS
from ..models import MODELS, heads, regressors
from ..named import find
from ..schedules import SCHEDULES
from ..schedules.parallel import period
from ..task import Task
from .options import method_class
from .recipe import Recipe

TABLES: dict[str, Mapping[str, Any]] = {
    "data": DATASETS, "model": MODELS, "partition": PARTITIONS, "schedule": SCHEDULES,
    "task": {"classification": Task},
}  # fmt: skip
ROLES = ("smashed", "cut_grad", "features", "feature_grad", "weights")


def _has(device: str) -> bool:
    try:
        kind = torch.device(device).type
    except RuntimeError:
        return False
    return kind == "cpu" or (kind == "cuda" and torch.cuda.is_available())


def refusal(recipe: Recipe) -> str | None:
    """Return why a recipe's fields do not go together, or None; asked by the command line, `run` and the contract test."""
    for kind, table in TABLES.items():
        name = str(getattr(recipe, kind))
        if name.partition(":")[0] != "own":  # what Python was given as an object
            find(kind, name, table)
    if recipe.data not in DATASETS and (recipe.num_train or recipe.num_test or recipe.num_held_out or not recipe.augment):
        return "num_train, num_test, num_held_out and augment are for data sets of the table; give your own data as they are to be used"
    if recipe.num_held_out and recipe.num_test:
        return f"num_test = {recipe.num_test}: with num_held_out the test set is left alone; drop one of the two"
    method, options = method_class(recipe.method), recipe.method_options()
    returns = method.comes_back(options)
    if getattr(method, "uncut", False) != (recipe.cut == "none"):
        return f"method {recipe.method!r} with cut = {recipe.cut!r}: method uncut and cut none go together, and only they"
    if recipe.cut == "none" and recipe.tail is not None:
        return f"tail = {recipe.tail!r} with cut = none: nothing is cut; drop the tail"
    if recipe.cut == "none" and set(recipe.codec) - {"weights"}:
        return f"codec {', '.join(recipe.codec)}: with cut = none nothing crosses the cut; only weights can be coded"
    for role in recipe.codec:
        if role not in ROLES:
            return f"codec: {role!r} is no role that can be coded; those are {', '.join(ROLES)}"
    built = codecs.build(recipe.codec)
    dialogue = getattr(method, "dialogue", lambda options: False)(options)
    if codecs.reducer(recipe.codec) is not None and (dialogue or hasattr(method, "settle")):
        return f"codec smashed = {recipe.codec['smashed']!r}: method {recipe.method!r} has one row for each sample; drop batch_merge"
    if recipe.compress_eval and "smashed" not in built:
        return "compress_eval: nothing codes the smashed data in evaluation; set codec smashed=..., or drop it"
    if "cut_grad" in recipe.codec and not returns:
        return (
            f"codec cut_grad = {recipe.codec['cut_grad']!r}: with method {recipe.method!r} no gradient returns; drop this codec"
        )
    if recipe.tail is None and {"features", "feature_grad"} & set(recipe.codec):
        return "codec: features and feature_grad cross only where there is a tail; set tail or drop this codec"
    if recipe.tail is not None and method.needs_labels:
        return f"method {recipe.method!r} needs labels at the server, and with a tail they stay home; drop one of the two"
    schedule = recipe.schedule_options()
    if getattr(schedule, "server_order", "") == "concatenated" and (schedule.server_copies or recipe.tail is not None):
        return "server_order = 'concatenated' is one server step on all clients' batches; drop server_copies and the tail"
    if getattr(schedule, "server_order", "") == "concatenated" and dialogue:
        return f"server_order = 'concatenated': method {recipe.method!r} asks several times for one batch; take another order"
    if (why := _timing(recipe, schedule, returns)) is not None:
        return why
    if recipe.fedprox and (why := _receives_nothing(recipe, schedule)):
        return f"fedprox = {recipe.fedprox}: it pulls clients to weights that they received, and {why}; take 0"
    if getattr(method, "decides_for_all", False) and hasattr(schedule, "merge"):
        return f"method {recipe.method!r} decides for all clients at the end of a round, and schedule asynchronous has none in common"
    if recipe.overlap and (why := _serial(recipe, returns or getattr(method, "waits", lambda options: False)(options))):
        return f"overlap = {recipe.overlap}: {why}; set overlap = 0"
    if recipe.transport != "inprocess" and (why := _apart(recipe)):
        return f"transport = {recipe.transport!r}: {why}, or take transport = 'inprocess'"
    if len(recipe.speeds) not in (0, 1, recipe.num_clients):
        return f"speeds: {len(recipe.speeds)} are given for {recipe.num_clients} clients; give one for each, or one for all"
    if not _has(recipe.device):
        return f"device = {recipe.device!r} is not there; use cpu, or cuda on a machine where torch finds it"
    if recipe.nesterov and not (recipe.optimizer == "sgd" and recipe.momentum > 0):
        return "nesterov needs optimizer = 'sgd' and momentum > 0"
    if recipe.warmup_rounds > recipe.rounds:
        return f"warmup_rounds = {recipe.warmup_rounds} never ends in {recipe.rounds} rounds; lower it"
    if recipe.options.get("server_cuts") and (why := _greedy(recipe, returns)):
        return f"server_cuts = {recipe.options['server_cuts']!r}: {why}; drop server_cuts"
    for option, rows in (("auxiliary", heads.HEADS), ("regressor", regressors.REGRESSORS)):
        if isinstance(recipe.options.get(option), str):
            find(option, recipe.options[option], rows)
    share = recipe.options.get("backward_share", 1.0)
    if not 0 < share <= 1:
        return f"backward_share = {share}: must be above 0 and at most 1"
    if share < 1 and returns:
        return f"backward_share = {share}: the server's gradient is of whole batches; take 1, or lambda_weight = 0"
    for name in ("lambda_every", "send_every", "auxiliary_depth", "auxiliary_width"):
        if recipe.options.get(name, 1) < 1:
            return f"{name} = {recipe.options[name]}: must be 1 or more"
    return None


def _timing(recipe: Recipe, o: Any, returns: bool) -> str | None:
    """Return why the options of a schedule do not go together, with each other or with what returns, or None."""
    order = getattr(o, "server_order", "client_major")
    number, unit = period(getattr(o, "sync_every", "never"))
    if order != "client_major" and o.server_copies:
        return f"server_order = {order!r}: with server_copies every client has a top of its own; drop one of the two"
    if unit == "epoch" and number > recipe.local_epochs:
        return (
            f"sync_every = {o.sync_every!r} is longer than a round, of local_epochs = {recipe.local_epochs}; "
            f"write {number // recipe.local_epochs} rounds, or raise local_epochs"
        )
    both = returns and all(recipe.options.get(name, 1) > 1 for name in ("lambda_every", "send_every"))
    uneven = f" and sync_every = {o.sync_every!r}" if unit == "epoch" else ", lambda_every and send_every" if both else ""
    if uneven and recipe.checkpoint_every and order in ("batch_major", "concatenated"):
        return (
            f"checkpoint_every = {recipe.checkpoint_every}: with server_order = {order!r}{uneven} clients that wait for a mark and for "
            f"each other's batches would wait for ever; marks are written at every average, take 0"
        )
    if recipe.method == "loss_threshold" and getattr(o, "participation", 1.0) < 1 and o.server_copies:
        return (
            f"participation = {o.participation}: with method loss_threshold tops of clients that are not drawn train on what is stored, "
            f"and are in no average; take participation = 1, or server_copies = false"
        )
    if getattr(o, "participation", 1.0) < 1 and unit == "round" and number > 1:
        return (
            f"sync_every = {o.sync_every!r} with participation = {o.participation}: who is drawn in one of these rounds alone would "
            f"not be averaged; take 1 round, or participation = 1"
        )
    if getattr(o, "merge", "") == "fedbuff":
        waits, turns = o.restart == "at_merge", recipe.rounds * recipe.num_clients
        if o.buffer_size > (recipe.num_clients if waits else turns):
            who = f"{recipe.num_clients} clients that wait for it" if waits else f"{turns} turns in all"
            return f"buffer_size = {o.buffer_size} is never full with {who}; lower it"
    if getattr(o, "fairness", 0) and not returns:
        return f"fairness = {o.fairness}: clients are held back by their gradients, and with method {recipe.method!r} none returns; take 0"
    if recipe.options.get("align_rounds") and getattr(o, "hand_over", "") == "shared":
        return "hand_over = 'shared' is one head for all, and aligned heads are personal; take reset, or align_rounds = 0"
    if recipe.options.get("probe") == "server" and recipe.options.get("send_every", 1) > 1:
        return f"send_every = {recipe.options['send_every']}: probing the server sends every batch; take 1, or probe = 'local'"
    return None


def _receives_nothing(recipe: Recipe, o: Any) -> str | None:
    """Return why no weights of others ever come to a client, or None."""
    if hasattr(o, "merge"):
        return None
    if recipe.num_clients == 1:
        return "one client receives none"
    if getattr(o, "hand_over", "") == "shared":
        return "one shared model is not handed over"
    if getattr(o, "private_clients", False):
        return "private clients receive none"
    return "with sync_every = 'never' nothing is averaged" if getattr(o, "sync_every", "") == "never" else None


def _greedy(recipe: Recipe, returns: bool) -> str | None:
    """Return why the server's part cannot be cut into pieces that train on heads of their own, or None."""
    if returns:
        return "nothing can be returned through pieces; set lambda_weight = 0"
    if recipe.tail is not None:
        return "the pieces' heads need labels at the server, and with a tail they stay home"
    if getattr(recipe.schedule_options(), "server_copies", False):
        return "the pieces are those of one server part, not of copies"
    if recipe.fedprox:
        return "fedprox pulls whole parts"
    if recipe.simulated():
        return "the clock does not know what its heads cost"
    return None


def _apart(recipe: Recipe) -> str | None:
    """Return what parties in processes of their own cannot do, or None."""
    if getattr(recipe.schedule_options(), "hand_over", "") == "shared":
        return "hand_over = 'shared' is one model in one process; take reset"
    if recipe.simulated():
        return "its seconds are real; drop uplink, downlink, latency and speeds"
    return None


def switched_off(recipe: Recipe) -> list[str]:
    """Return a note for each field that only works in one process and changes no weight: other transports ignore it."""
    if recipe.transport == "inprocess":
        return []
    notes = {
        "diagnose_every": "diagnostics need both sides in one process",
        "overlap": "the server of another process works beside its clients anyway",
    }
    return [
        f"{name} = {value} is switched off over {recipe.transport}: {reason}"
        for name, reason in notes.items()
        if (value := getattr(recipe, name))
    ]


def _serial(recipe: Recipe, returns: bool) -> str | None:
    """Return why the server cannot work while its clients do, or None."""
    if returns:
        return f"with method {recipe.method!r} clients wait for the server"
    if recipe.tail is not None:
        return "with a tail clients wait for features"
    if recipe.cut == "none":
        return "with cut = none the server has nothing to do"
    if recipe.simulated():
        return "simulated seconds have their own clock"
    if recipe.diagnose_every:
        return "diagnose_every looks at the server while it would work"
    return None
