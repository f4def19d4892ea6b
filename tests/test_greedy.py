"""What the authors' code for arXiv 2601.19261 does beyond its text: repeated steps, a frozen layer, a server cut into greedy pieces."""

from unittest.mock import patch

import pytest
import torch
from conftest import equal
from torch import nn

import cutlayer as cl
from cutlayer.data import Tensors
from cutlayer.errors import BadInput
from cutlayer.greedy import freeze_first
from cutlayer.recipes import load
from cutlayer.recipes.recipe import make
from cutlayer.run import Paused, run_recipe
from cutlayer.training import Training

pytestmark = pytest.mark.usefixtures("no_figures")
BASE = {
    "scheme": "dsl", "data": "digits", "model": "resnet8", "cut": "stage1.block1", "auxiliary": "mlp", "num_train": 96,
    "num_test": 32, "batch_size": 16, "rounds": 2, "lr": 0.05, "num_threads": 1, "auxiliary_width": 16,
}  # fmt: skip
TWO_CUTS = "stage2.block1,stage3.block1"


def steps_of(fields):
    """Return how often optimizers were told to step along one batch's gradients, in order, over a run of one batch."""
    seen, plain = [], Training.step

    def step(self, optimizer, anchor=(), times=1):
        seen.append(times)
        plain(self, optimizer, anchor, times)

    with patch.object(Training, "step", step):
        run_recipe(make({**BASE, "num_train": 16, "rounds": 1, **fields}))
    return seen


def test_part_i_of_n_steps_n_minus_i_times():
    assert sorted(steps_of({})) == [1, 1]
    assert sorted(steps_of({"repeat_steps": True})) == [1, 2]
    assert sorted(steps_of({"repeat_steps": True, "server_cuts": "stage2.block1"})) == [1, 2, 3]
    assert sorted(steps_of({"repeat_steps": True, "server_cuts": TWO_CUTS})) == [1, 2, 3, 4]
    assert sorted(steps_of({"server_cuts": TWO_CUTS})) == [1, 1, 1, 1]


def test_a_repeated_step_is_one_gradient_and_two_steps_of_momentum():
    parameter = nn.Parameter(torch.tensor([1.0]))
    training = Training(lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.5))
    optimizer = training.optimizer(nn.ParameterList([parameter]))
    parameter.grad = torch.tensor([2.0])
    training.step(optimizer, times=2)
    assert parameter.item() == pytest.approx(1 - 0.1 * 2 - 0.1 * (0.5 * 2 + 2))
    assert parameter.grad is None


def test_pieces_do_not_learn_from_those_behind_them():
    recipe = make({**BASE, "server_cuts": TWO_CUTS})
    one = run_recipe(recipe)
    with torch.no_grad():
        from cutlayer.data.partition import split
        from cutlayer.run import data_of, parts_of, task_of, train

        data = data_of(recipe)
        parts = parts_of(recipe, data)
        parts.top.classifier.weight.zero_()  # of the last piece
    other = train(recipe, parts, split(data.train, recipe), task_of(recipe))
    mine, theirs = one.modules["top"].state_dict(), other.modules["top"].state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine if name.startswith("stage"))
    assert not torch.equal(mine["classifier.weight"], theirs["classifier.weight"])
    assert not equal(one.modules["top"], run_recipe(make(BASE)).modules["top"])
    assert equal(one.modules["bottom"], run_recipe(make(BASE)).modules["bottom"])  # the client knows nothing of it


def test_a_server_in_pieces_holds_less_than_one_module():
    def held(**fields):
        """Return the bytes that 32 more samples of a batch make the server keep for backward."""
        peaks = [
            run_recipe(make({**BASE, "num_train": n, "batch_size": n // 2, "rounds": 1, **fields})).summary[
                "peak_memory_bytes"
            ]["server"]
            for n in (32, 96)
        ]
        return peaks[1] - peaks[0]

    assert held(server_cuts="stage2.block1") < 0.8 * held()


def test_pieces_of_resnet110_save_more_the_shallower_the_cut():
    """The authors' pieces, batches of 16: live tensors at the server."""

    def held(at, pieces):
        torch.manual_seed(0)
        train = Tensors(torch.randn(16, 3, 32, 32), torch.arange(16) % 10, 10)
        train.held_out = Tensors(torch.randn(4, 3, 32, 32), torch.arange(4), 10)
        how = {"auxiliary": "mlp", "rounds": 1, "batch_size": 16, "lr": 0.001, "num_threads": 1, "server_cuts": pieces}
        result = cl.run(cl.cut(cl.models.resnet110(10), at), cl.partition.iid(train, num_clients=1), scheme="dsl", **how)
        return result.summary["peak_memory_bytes"]["server"]

    shallow = held("shallow", "stage2.block9,stage3.block6") / held("shallow", "")
    middle = held("middle", "stage3.block1") / held("middle", "")
    assert shallow == pytest.approx(0.653, abs=0.01)
    assert middle == pytest.approx(0.81, abs=0.01)


def test_stopping_at_every_mark_gives_the_same_bits(tmp_path):
    recipe = make({**BASE, "server_cuts": "stage2.block1", "checkpoint_every": 2})
    whole = run_recipe(recipe)
    while True:
        try:
            result = run_recipe(recipe, tmp_path, deadline=0.0)
            break
        except Paused:
            pass
    assert equal(whole.modules["top"], result.modules["top"])
    assert whole.records[-1]["piece1_loss"] == result.records[-1]["piece1_loss"]


def test_the_frozen_layer_is_the_authors():
    narrow, broad = nn.Sequential(nn.Linear(64, 4), nn.Linear(4, 2)), nn.Sequential(nn.Linear(128, 4), nn.Linear(4, 2))
    freeze_first(narrow)
    freeze_first(broad)
    assert [p.requires_grad for p in narrow.parameters()] == [True] * 4
    assert [p.requires_grad for p in broad.parameters()] == [False, False, True, True]
    recipe = make({**BASE, "cut": "stage2.block1", "freeze_first": True})  # 32 channels x 2 x 2
    before = run_recipe(make({**recipe.flat(), "lr": 0.0})).modules["auxiliary"].state_dict()
    after = run_recipe(recipe).modules["auxiliary"].state_dict()
    still = [name for name in before if torch.equal(before[name], after[name])]
    # biases in front of a batch norm, whose gradient is 0 but for rounding, and on some processors 0
    rounding = ("5.bias", "8.bias")
    assert [name for name in still if "num_batches" not in name and name not in rounding] == ["2.weight", "2.bias"]


def test_the_logged_recipe_differs_by_the_two_flags():
    code, logged = load("dsl-code-cifar10").flat(), load("dsl-logged-cifar10").flat()
    assert {name for name in code if code[name] != logged[name]} == {"name", "repeat_steps", "freeze_first"}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"lambda_weight": 0.5}, "nothing can be returned through pieces"),
        ({"uplink": 20.0}, "the clock does not know what its heads cost"),
        ({"fedprox": 0.1, "scheme": "dsl_fed", "num_clients": 2}, "fedprox pulls whole parts"),
        ({"tail": "last"}, "labels at the server"),
    ],
)
def test_what_does_not_go_with_pieces_is_refused(fields, why):
    with pytest.raises(BadInput, match=why):
        make({**BASE, "server_cuts": TWO_CUTS, **fields})


def test_a_block_that_is_not_there_is_named():
    with pytest.raises(BadInput, match="server_cuts"):
        run_recipe(make({**BASE, "server_cuts": "stage9.block1"}))
