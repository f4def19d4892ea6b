"""What is public, frozen: adding is a decision, removing a breach."""

import subprocess
import sys

import cutlayer as cl
from cutlayer.recipes import FIELDS
from cutlayer.recipes.options import options_of, schedule_class

PUBLIC = {
    "BadInput", "Batch", "Message", "Parts", "Result", "RunFailed", "Smashed", "Task",
    "cut", "data", "models", "partition", "recipes", "run", "run_recipe",
}  # fmt: skip
RECIPE_FIELDS = {
    "scheme", "name", "data", "data_dir", "num_train", "num_test", "num_held_out", "augment", "model", "cut", "tail", "task", "method",
    "schedule", "num_clients", "partition", "alpha", "partition_version", "classes_per_client", "rounds", "local_epochs",
    "batch_size", "drop_last",
    "optimizer", "lr", "client_lr", "momentum", "nesterov", "weight_decay", "lr_schedule", "warmup_rounds", "clip", "fedprox",
    "codec", "precision", "memory_format", "num_threads", "device", "seed", "transport", "uplink", "downlink", "latency",
    "speeds", "server_speed", "evaluate_every", "compress_eval", "overlap", "diagnose_every", "checkpoint_every", "tap",
}  # fmt: skip
AUXILIARY_FIELDS = {
    "auxiliary", "auxiliary_depth", "auxiliary_width", "aux_weight", "reconstruction", "reconstruction_weight",
    "lambda_weight", "lambda_every", "lambda_compensate", "send_every", "backward_share", "server_cuts", "repeat_steps",
    "freeze_first",
}  # fmt: skip
RELAY_FIELDS = {"hand_over"}
PARALLEL_FIELDS = {
    "hand_over", "server_copies", "server_order", "private_clients", "sync_every", "participation", "weighting", "batch_norm",
}  # fmt: skip
ASYNCHRONOUS_FIELDS = {
    "hand_over", "server_copies", "merge", "mixing", "buffer_size", "buffer_rate", "buffer_norm", "restart", "staleness",
    "staleness_a", "staleness_b", "max_staleness", "server_rate", "fairness",
}  # fmt: skip
THRESHOLD_FIELDS = {
    "threshold", "threshold_rule", "threshold_of", "threshold_relative", "max_rest", "first_full", "last_full",
}  # fmt: skip


def test_public_names_and_recipe_fields_are_frozen():
    assert set(cl.__all__) == PUBLIC
    assert all(hasattr(cl, name) for name in PUBLIC)
    assert set(FIELDS) == RECIPE_FIELDS
    assert set(options_of("auxiliary_loss").__dataclass_fields__) == AUXILIARY_FIELDS
    assert not options_of("backprop").__dataclass_fields__
    assert not options_of("uncut").__dataclass_fields__
    assert set(options_of("loss_threshold").__dataclass_fields__) == THRESHOLD_FIELDS
    assert set(schedule_class("relay").Options.__dataclass_fields__) == RELAY_FIELDS
    assert set(schedule_class("parallel").Options.__dataclass_fields__) == PARALLEL_FIELDS
    assert set(schedule_class("asynchronous").Options.__dataclass_fields__) == ASYNCHRONOUS_FIELDS


def test_importing_needs_no_extra_and_asks_no_network():
    code = "import sys, cutlayer; print([m for m in ('mpi4py', 'grpc', 'torch_geometric', 'tensorboard', 'tyro') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
