"""The literature's names for whole schemes; a scheme is data and adds no code path."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Scheme(NamedTuple):
    """A row of the table: the fields a name stands for, who sends what, who updates when, the paper, where its code differs."""

    fields: Mapping[str, Any]
    sends: str
    order: str
    paper: str
    differs: str = ""

    @property
    def line(self) -> str:
        return f"{self.sends} ({self.paper})"


RELAY = {"schedule": "relay", "hand_over": "reset"}
WHOLE = {"method": "uncut", "cut": "none"}
SPLITFED = {"method": "backprop", "schedule": "parallel"}
LOCAL = {"method": "auxiliary_loss", "schedule": "parallel"}

SCHEMES: dict[str, Scheme] = {
    "centralised": Scheme(
        {**WHOLE, **RELAY, "num_clients": 1}, "nothing: one owner of all data and of the whole network", "batch by batch", "baseline"
    ),
    "local_only": Scheme(
        {**WHOLE, "schedule": "parallel", "sync_every": "never"},
        "nothing: every owner trains the whole network on its own data", "each for itself; mean, min and max are reported", "baseline",
    ),
    "fedavg": Scheme(
        {**WHOLE, "schedule": "parallel"}, "whole networks up and down",
        "every owner a round at home, then the weighted average", "McMahan et al., arXiv 1602.05629",
    ),
    "vanilla": Scheme(
        {"method": "backprop", **RELAY, "tail": None}, "activations and labels up, gradients down",
        "clients take turns; top, then bottom, at every batch; the client model is handed on", "Gupta & Raskar, arXiv 1810.06060",
    ),
    "u_shaped": Scheme(
        {"method": "backprop", **RELAY, "tail": "last"},
        "activations up, features down, their gradient up, gradients down; labels stay home",
        "clients take turns; tail, middle, bottom at every batch; bottom and tail are handed on", "Vepakomma et al., arXiv 1812.00564",
        "SLPerf's Ushaped hands nothing on: every client keeps a bottom and a tail of its own",
    ),
    "splitfed_v1": Scheme(
        {**SPLITFED, "server_copies": True}, "activations and labels up, gradients down; client weights up and down every round",
        "all clients at once, each with a copy of the top; both averaged every round", "Thapa et al., arXiv 2004.12088",
        "the authors' code averages without weights and makes a new Adam for every server batch; SLPerf's loses the last client's weights",
    ),
    "splitfed_v2": Scheme(
        {**SPLITFED, "server_order": "client_major"}, "as splitfed_v1",
        "one top; client after client in an order drawn every round; bottoms averaged every round", "Thapa et al., arXiv 2004.12088",
        "as for splitfed_v1",
    ),
    "splitfed_v3": Scheme(
        {**SPLITFED, "server_copies": True, "private_clients": True},
        "activations and labels up, gradients down; client weights up for evaluation alone",
        "all clients at once, each with a copy of the top; only the copies are averaged", "Gawali et al., arXiv 2012.12591",
    ),
    "psl": Scheme(
        {**SPLITFED, "server_order": "arrival", "private_clients": True},
        "activations and labels up, gradients down; client weights up for evaluation alone",
        "one top, a step for every batch as it comes; bottoms stay private", "parallel split learning; asy_vanilla in SLPerf",
        "SLPerf's key psl is unknown to it and silently runs vanilla",
    ),
    "dsl": Scheme(
        {"method": "auxiliary_loss", "schedule": "relay", "hand_over": "shared"}, "activations and labels up, nothing down",
        "bottom and head on their own loss, the top on what it receives; one shared client model", "arXiv 2601.19261",
        "the authors' code steps the client twice a batch and freezes a layer of the head",
    ),
    "dsl_seq": Scheme(
        {"method": "auxiliary_loss", **RELAY}, "as dsl, and the client model with its head travels from client to client",
        "as dsl, clients take turns", "arXiv 2601.19261, its N clients as the text has them",
    ),
    "dsl_fed": Scheme(
        {**LOCAL, "server_order": "batch_major"},
        "activations and labels up; client weights and heads up and down every round",
        "all clients at once on their own losses, one top; bottoms and heads averaged every round",
        "arXiv 2601.19261 with SplitFed's averages",
    ),
    "locsplitfed": Scheme(
        {**LOCAL, "server_copies": True}, "activations and labels up; client weights and heads up and down every round",
        "all clients at once on their own losses, each with a copy of the top; all averaged every round",
        "Han et al., ICML 2021 workshop on federated learning",
    ),
    "cse_fsl": Scheme(
        {**LOCAL, "server_order": "arrival", "send_every": 5},
        "activations and labels of every 5th batch up; client weights and heads up and down every round",
        "all clients at once on their own losses, one top in order of arrival; bottoms and heads averaged every round",
        "Mu & Shen, arXiv 2507.15816", "in FSL-SAGE's code clients come one after another",
    ),
    "fsl_sage": Scheme(
        {"method": "fsl_sage", "schedule": "parallel", "server_order": "client_major"},
        "activations and labels of every 5th batch up, a head down every 10th round; client weights up and down every round",
        "clients in turn (server_order = arrival: at once) on the gradient of a head of their own; one top; bottoms averaged every round",
        "Nair et al., arXiv 2505.23182",
        "the authors' alignment moves the top's running statistics, and compares means over batches of other sizes",
    ),
    "dni": Scheme(
        {"method": "synthetic_gradient", **RELAY, "true_every": 4},
        "activations and labels up, every 4th gradient down, waited for one step later at the latest",
        "clients take turns; the bottom moves along a guessed gradient at once, and the guess is taught when the true one is there",
        "Jaderberg et al., arXiv 1608.05343", "the paper's guess is taught at every batch",
    ),
    "hosl": Scheme(
        {"method": "zeroth_order", **RELAY},
        "activations of two shifts of the bottom's weights and labels up, two losses down",
        "clients take turns; two losses make a step of the bottom; the top learns at the first shift",
        "arXiv 2601.10940", "in the authors' code the top's gradient is kept and its step taken last; the same weights come out",
    ),
    "heron_sfl": Scheme(
        {"method": "zeroth_order", "probe": "local", "schedule": "parallel", "server_order": "arrival"},
        "activations and labels up; client weights and heads up and down every round",
        "all clients at once, steps from two losses of their own heads; one top in order of arrival; averages every round",
        "arXiv 2601.09076, from its abstract",
    ),
    "async_splitfed": Scheme(
        {"method": "backprop", "schedule": "asynchronous"},
        "activations and labels up, gradients down; client weights up and down after every turn of a client",
        "one top in order of arrival; every client model is mixed in as it comes, and its client goes on at once",
        "FedAsync, arXiv 1903.03934, and FedBuff, arXiv 2106.06639, over SplitFed",
    ),
    "async_loss": Scheme(
        {"method": "loss_threshold", **RELAY, "codec": {"smashed": "float8", "cut_grad": "float8"}},
        "A: activations and labels up, gradients down; B: activations and labels up; C: nothing",
        "the server decides after every round for all clients; in B and C clients stand still, in C the top learns from what it stored",
        "Chen, Li & Chakrabarti, arXiv 2107.09786, after two re-implementations",
        "SLPerf's sends in C too, and trains on one stored test batch; secretflow repeats single batches",
    ),
}  # fmt: skip
BASELINES = ("centralised", "local_only", "fedavg")
