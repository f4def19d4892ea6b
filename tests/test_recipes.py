"""The numbers of the papers, the learning rate by round, and how fields are overridden."""

import hashlib
import math

import pytest

from cutlayer.building import left_out, lr_factor, order
from cutlayer.errors import BadInput
from cutlayer.private import write
from cutlayer.recipes import RECIPES, fields_of, load, override
from cutlayer.recipes.recipe import make
from cutlayer.recipes.schemes import SCHEMES
from cutlayer.recipes.toml import to_toml


def test_the_strong_schedule_is_the_one_that_was_measured():
    recipe = load("strong-cifar10")
    for e in range(42):
        expected = 0.1 * (e + 1) / 3 if e < 3 else 0.05 * (1 + math.cos(math.pi * (e - 3) / 39))
        assert recipe.lr * lr_factor(recipe)(e) == pytest.approx(expected, abs=1e-12)
    assert len(order(recipe, 50_000, 0, 0)) == 390
    assert (recipe.batch_size, recipe.weight_decay, recipe.momentum, recipe.nesterov) == (128, 5e-4, 0.9, False)


def test_the_papers_text_and_its_code_differ_where_they_do():
    text, code = load("dsl-cifar10"), load("dsl-code-cifar10")
    assert (text.lr, text.momentum, text.batch_size, text.rounds, text.weight_decay) == (0.001, 0.9, 128, 50, 0.0)
    differing = {name for name, value in text.flat().items() if code.flat()[name] != value} - {"name"}
    assert differing == {"auxiliary", "weight_decay", "augment", "partition"}
    # what N does to the batches of the authors' loop
    assert [n * len(order(code, 50_000 // n, 0, 0)) for n in (1, 5, 10)] == [391, 395, 400]


def test_steps_and_constant_schedules():
    recipe = make({"lr_schedule": "steps", "rounds": 200})
    assert [lr_factor(recipe)(r) for r in (0, 59, 60, 119, 120, 160)] == pytest.approx([1, 1, 0.2, 0.2, 0.04, 0.008])
    assert lr_factor(make({"rounds": 5}))(4) == 1.0


def test_a_last_batch_of_one_sample_is_left_out_and_nothing_else():
    recipe = make({"batch_size": 8})
    assert [len(b) for b in order(recipe, 17, 0, 0)] == [8, 8]
    assert [len(b) for b in order(recipe, 18, 0, 0)] == [8, 8, 2]
    assert [len(b) for b in order(recipe, 1, 0, 0)] == [1]
    assert [len(b) for b in order(make({"batch_size": 8, "drop_last": True}), 18, 0, 0)] == [8, 8]
    for how in ({}, {"drop_last": True}, {"local_epochs": 2}):
        recipe = make({"batch_size": 8, **how})
        for n in (1, 7, 8, 9, 16, 17, 18):
            in_batches = sum(len(b) for b in order(recipe, n, 0, 0)) // recipe.local_epochs
            assert n - in_batches == left_out(recipe, n)
    twice = order(make({"batch_size": 8, "local_epochs": 2}), 16, 0, 0)
    assert len(twice) == 4
    assert sorted(int(i) for b in twice[:2] for i in b) == list(range(16))


def test_a_scheme_among_the_changes_replaces_what_it_decides():
    decoupled = load("demo")
    assert (decoupled.method, decoupled.options["hand_over"]) == ("auxiliary_loss", "reset")
    plain = load("demo", scheme="vanilla")
    assert plain.method == "backprop"
    assert plain.options == {"hand_over": "reset"}
    assert load("demo", scheme="dsl").options["hand_over"] == "shared"
    assert load("demo", scheme="dsl", hand_over="carry").options["hand_over"] == "carry"
    with pytest.raises(BadInput, match="sync_every is an option of schedule parallel"):
        load("demo", sync_every="2 rounds")
    # a schedule among the changes takes its own options, also from a scheme that would hand over otherwise
    parallel = override(load("demo", scheme="dsl").flat(), {"schedule": "parallel"})
    assert (parallel.method, parallel.options["hand_over"]) == ("auxiliary_loss", "local")
    assert make({"scheme": "dsl", "schedule": "parallel"}).options["hand_over"] == "local"
    assert override(fields_of("demo"), {"method": "backprop"}).lr == decoupled.lr
    with pytest.raises(BadInput, match="aux_weight is an option of method auxiliary_loss"):
        load("demo", scheme="vanilla", aux_weight=1.0)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_scheme_is_data(name):
    assert make({"scheme": name}).flat() == {**make({}).flat(), **make({"scheme": name}).flat()}
    for field, value in SCHEMES[name].fields.items():
        assert make({"scheme": name}).flat()[field] == value


@pytest.mark.parametrize("name", RECIPES)
def test_every_named_recipe_is_legal_and_has_its_own_digest(name):
    recipe = load(name)
    assert recipe.digest() == load(name).digest()
    assert load(name, seed=1).digest() != recipe.digest()
    assert load(name, data_dir="/tmp").digest() == recipe.digest()
    assert sum(load(other).digest() == recipe.digest() for other in RECIPES) == 1


def test_every_character_of_a_name_is_read_back(tmp_path):
    name = "".join(map(chr, [*range(0x250), 0xFEFF, 0xFFFF, 0x1F52C, 0x10FFFF]))
    recipe = load("demo", name=name, data_dir='C:\\data\n"here"', codec={"smashed": "float8"})
    write(tmp_path / "recipe.toml", to_toml(recipe.flat()))
    assert load(str(tmp_path / "recipe.toml")) == recipe


@pytest.mark.parametrize(("scheme", "option"), [("dsl", "auxiliary"), ("fsl_sage", "auxiliary"), ("dni", "regressor")])
def test_an_unknown_network_at_the_cut_is_an_error_of_the_recipe(scheme, option):
    with pytest.raises(BadInput, match=f"unknown {option} 'linaer'. Did you mean 'linear'"):
        load("demo", scheme=scheme, **{option: "linaer"})


def test_text_is_read_as_flags_give_it():
    recipe = make({"lr": "0.5", "nesterov": "true", "codec": "smashed=float8,cut_grad=float16", "num_train": "7"})
    assert (recipe.lr, recipe.nesterov, recipe.num_train) == (0.5, True, 7)
    assert recipe.codec == {"smashed": "float8", "cut_grad": "float16"}
    # the same recipe, however its numbers were written
    assert make({"lr": 1}).digest() == make({"lr": "1.0"}).digest()


def test_a_digest_leaves_out_fields_at_their_default():
    recipe = make({"scheme": "dsl", "lr": 0.2})
    said = {name: value for name, value in recipe.flat().items() if name in ("lr", "method", "hand_over")}
    assert make(said).digest() == recipe.digest()
    assert make({}).digest() == hashlib.sha256(b"{}").hexdigest()


@pytest.mark.parametrize(
    ("fields", "scheme"),
    [
        ({"scheme": "dsl_seq"}, "dsl_seq"),
        ({"scheme": "dsl_seq", "method": "backprop"}, "vanilla"),
        ({"scheme": "dsl_seq", "method": "synthetic_gradient"}, "custom"),
        ({"scheme": "splitfed_v1", "server_copies": False, "server_order": "batch_major"}, "custom"),
        ({"scheme": "cse_fsl", "send_every": 7}, "custom"),
        ({"scheme": "u_shaped", "tail": "stage3.block1"}, "u_shaped"),  # a tail, wherever it begins
        ({"scheme": "vanilla", "tail": "last"}, "u_shaped"),
    ],
    ids=str,
)
def test_a_scheme_is_named_only_if_all_its_fields_match(fields, scheme, tmp_path):
    recipe = make(fields)
    assert recipe.scheme == scheme
    write(tmp_path / "recipe.toml", to_toml(recipe.flat()))
    assert load(str(tmp_path / "recipe.toml")) == recipe


def test_custom_is_no_scheme_to_ask_for():
    with pytest.raises(BadInput, match="scheme = 'custom' stands for no fields"):
        load("demo", scheme="custom")
