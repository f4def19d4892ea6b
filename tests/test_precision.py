"""bfloat16 with a codec at the cut: what was decoded is computed in bfloat16 too, and float32 stays float32."""

import pytest
import torch

from cutlayer.codecs import build
from cutlayer.recipes.recipe import make
from cutlayer.run import run_recipe
from cutlayer.steps import as_computed, merge
from cutlayer.wire import Message, pack, unpack

pytestmark = pytest.mark.usefixtures("no_figures")
BASE = {
    "data": "digits", "model": "resnet8", "cut": "stage1.block1", "num_train": 64, "num_test": 16, "batch_size": 32, "rounds": 1,
    "warmup_rounds": 0, "precision": "bfloat16", "num_threads": 1,
}  # fmt: skip
GREEDY = {"scheme": "dsl", "auxiliary": "mlp", "auxiliary_width": 8, "server_cuts": "stage2.block1"}


def costs(**fields):
    summary = run_recipe(make({**BASE, **fields})).summary
    return summary["kept_for_backward_bytes"]["server"], {
        role: sent["payload"] for role, sent in summary["bytes"]["down"].items()
    }


@pytest.mark.parametrize("fields", [{"scheme": "vanilla"}, {"scheme": "u_shaped"}, GREEDY], ids=["relay", "tail", "greedy"])
@pytest.mark.parametrize("codec", ["float8", "float16", "uniform8"])
def test_a_codec_keeps_no_more_for_the_servers_backward_pass_and_costs_the_way_down_no_bytes(fields, codec):
    assert costs(**fields, codec={"smashed": codec}) == costs(**fields)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("codec", ["none", "float8"])
def test_what_no_codec_made_and_what_is_float32_stays_as_it_came(autocast, codec):
    codecs = build({} if codec == "none" else {"smashed": codec})
    sent = Message(
        "smashed",
        {
            "smashed": torch.rand(4, 3),
            "smashed/more": torch.rand(4, 3),
            "context/mask": torch.rand(4, 3),
            "labels": torch.zeros(4).long(),
        },
    )
    came = unpack(pack(sent, codecs), codecs)
    leaves = merge([came], "smashed")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = as_computed(leaves, came)
    computed = torch.bfloat16 if autocast and codec == "float8" else torch.float32
    assert {name: leaf.dtype for name, leaf in found.items()} == {"main": computed, "more": computed, "mask": torch.float32}
    assert all(torch.equal(found[name].float(), leaves[name]) for name in found)  # one byte's values are exact in bfloat16
