"""Text through a cut: the mask crosses, every cut is the uncut model, padding changes nothing."""

from dataclasses import replace

import pytest
import torch
from conftest import equal

import cutlayer as cl
from cutlayer.aligned import Aligned
from cutlayer.building import training
from cutlayer.cut import Smashed, uncut
from cutlayer.data import Data, Tensors
from cutlayer.data.text import PADDING
from cutlayer.errors import BadInput
from cutlayer.methods import METHODS
from cutlayer.methods.fsl_sage import FslSageOptions
from cutlayer.models.heads import build_head
from cutlayer.models.transformer import Transformer
from cutlayer.recipes import load
from cutlayer.recipes.options import method_class, options_of
from cutlayer.recipes.recipe import make
from cutlayer.schedules.base import Plan
from cutlayer.schedules.parallel import Parallel, ParallelOptions
from cutlayer.server import Server
from cutlayer.streams import stream
from cutlayer.task import Batch, Task
from cutlayer.wire import Message

QUICK = {"rounds": 2, "batch_size": 4, "num_threads": 1, "lr": 0.02}
CUTS = ["embedding", "block1", "block2", "block3"]
LENGTH = 7
SHAPES = Task(num_classes=2, cut_shape=(LENGTH, 8))


def tokens(n=16, seed=0, characters=False, held_out=None):
    """Sentences of 1 to 7 words below 20, whose class is whether they hold word 5; characters: the next one."""
    draw = stream(seed, "tokens")
    x = torch.randint(2, 20, (n, LENGTH), generator=draw)
    if characters:
        return Tensors(x, (x + 1) % 20, 20, held_out=held_out, vocabulary=20)
    sizes = torch.randint(1, LENGTH + 1, (n,), generator=draw)
    x[torch.arange(LENGTH)[None] >= sizes[:, None]] = PADDING
    x[::2, 0] = 5
    return Tensors(x, (x == 5).any(1).long(), 2, held_out=held_out, vocabulary=20)


def data(characters=False):
    held_out = tokens(8, 1, characters)
    return Data("tokens", tokens(16, 0, characters, held_out), held_out, held_out.num_classes)


def model(causal=False, seed=0):
    torch.manual_seed(seed)
    return Transformer(20, 20 if causal else 2, LENGTH, width=8, depth=3, heads=2, causal=causal)


def bert(seed=0):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install 'cutlayer[text]'")
    from cutlayer.models.adapters import Bert

    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=20, num_labels=2, max_position_embeddings=LENGTH, hidden_size=8, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=16, pad_token_id=PADDING, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return Bert(transformers.BertForSequenceClassification(config))


NETWORKS = {
    "classifier": (model, CUTS),
    "characters": (lambda: model(causal=True), CUTS),
    "bert": (bert, ["embeddings", "layer1", "layer2", "layer3"]),
}
CELLS = [(name, at) for name, (_, cuts) in NETWORKS.items() for at in cuts]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("name", "at"), CELLS)
def test_every_cut_is_the_uncut_network(name, at, train):
    net = NETWORKS[name][0]().train(train)
    parts = cl.cut(net, at)
    assert parts.bottom.training == parts.top.training == train
    for n in (16, 3, 1):
        x = tokens(n).x
        z = Smashed.of(parts.bottom(x))
        assert torch.equal(z.others["mask"], x != PADDING)
        assert torch.allclose(parts.top(z.main, **z.others), net(x), atol=1e-6 if name == "bert" else 0, rtol=0)


@pytest.mark.parametrize(("name", "at"), CELLS)
def test_split_training_is_training_the_uncut_network(name, at):
    clients = cl.partition.iid(data(name == "characters").train, num_clients=1)
    make = NETWORKS[name][0]
    split = cl.run(cl.cut(make(), at), clients, scheme="vanilla", **QUICK)
    whole = cl.run(uncut(make()), clients, scheme="centralised", **QUICK)
    mine = [p for part in ("bottom", "top") for p in split.modules[part].parameters()]
    for p, q in zip(mine, whole.modules["bottom"].parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6 if name == "bert" else 0, rtol=0)
    assert split.records[-1]["accuracy"] == whole.records[-1]["accuracy"]
    up = split.summary["bytes"]["up"]
    assert up["context"]["payload"] == 2 * 16 * LENGTH  # the mask, a byte a token
    assert up["smashed"]["payload"] == 2 * 16 * LENGTH * 8 * 4


@pytest.mark.parametrize("causal", [False, True])
def test_u_shaped_the_classifier_stays_with_the_labels(causal):
    clients = cl.partition.iid(data(causal).train, num_clients=1)
    split = cl.run(cl.cut(model(causal), "block1"), clients, scheme="vanilla", **QUICK)
    u_shaped = cl.run(cl.cut(model(causal), "block1", "last"), clients, scheme="u_shaped", **QUICK)
    assert equal(split.modules["bottom"], u_shaped.modules["bottom"])
    assert equal(split.modules["top"].classifier, u_shaped.modules["tail"].classifier)
    assert "labels" not in u_shaped.summary["bytes"]["up"]


def test_what_would_change_a_mask_among_features_is_refused():
    clients = cl.partition.iid(data().train, num_clients=1)
    parts = cl.cut(model(), "block1", "last")
    with pytest.raises(BadInput, match=r"features = 'top_k@0\.5': features of a text carry the attention mask"):
        cl.run(parts, clients, scheme="u_shaped", codec={"features": "top_k@0.5"}, **QUICK)
    cl.run(parts, clients, scheme="u_shaped", codec={"features": "float8"}, **QUICK)


def test_ADC_sends_a_fraction_of_samples_and_tokens_and_trains():
    clients = cl.partition.iid(data().train, num_clients=1)
    parts = cl.cut(model(), "block2")
    z = Smashed.of(parts.bottom(tokens(5).x))
    paid = z.local["importance"]()
    assert torch.allclose(paid.sum(1), torch.ones(5), atol=1e-5)
    assert bool((paid[z.others["mask"].logical_not()] == 0).all())
    how = {**QUICK, "rounds": 8, "lr": 0.1}
    plain, adc = (cl.run(parts, clients, codec=codec, **how) for codec in ({}, {"smashed": "batch_merge@0.5:0.4+float8"}))
    up = [run.summary["bytes"]["up"]["smashed"]["payload"] for run in (plain, adc)]
    assert up[1] == 8 * 4 * (2 * 3 * 8 + 4)  # two of four samples, three of seven tokens, a byte each and a scale
    assert adc.summary["bytes"]["down"]["cut_grad"]["payload"] == 8 * 4 * 2 * 3 * 8 * 4
    assert adc.records[-1]["train_loss"] < adc.records[0]["train_loss"]
    text = cl.partition.iid(data(True).train, num_clients=1)
    with pytest.raises(BadInput, match="one class per sample"):
        cl.run(cl.cut(model(True), "block1"), text, codec={"smashed": "batch_merge"}, **QUICK)


def test_padding_changes_nothing_and_the_future_is_not_seen():
    net, x = model().eval(), tokens(8).x
    short = x[1:2, : int((x[1] != PADDING).sum())]
    assert torch.allclose(net(x[1:2]), net(short), atol=1e-6)
    empty = net(torch.zeros(1, LENGTH, dtype=torch.long))
    assert torch.isfinite(empty).all()
    causal, y = model(causal=True).eval(), tokens(4, characters=True).x
    other = y.clone()
    other[:, 4:] = 3
    assert torch.allclose(causal(y)[:, :, :4], causal(other)[:, :, :4], atol=1e-6)


HEADED = {method: "auxiliary" in options_of(method).__dataclass_fields__ for method in METHODS}


@pytest.mark.parametrize("characters", [False, True])
@pytest.mark.parametrize(
    ("method", "head"), [(m, head) for m, has in HEADED.items() for head in (("mlp", "attention") if has else (None,))]
)
def test_every_method_trains_on_text(method, head, characters):
    options = {"auxiliary": head, "auxiliary_width": 8} if head else {}
    cut = {"cut": "none"} if getattr(method_class(method), "uncut", False) else {}
    options |= {"conditioned": False} if method == "synthetic_gradient" and characters else {}
    clients = cl.partition.iid(data(characters).train, num_clients=2)
    how = {"method": method, **options, **cut, **QUICK}
    how |= {"align_epochs": 2} if method == "fsl_sage" else {}
    result = cl.run(cl.cut(model(characters), "block1"), clients, **how)
    assert all(torch.isfinite(t).all() for m in result.modules.values() for t in m.state_dict().values())


def test_a_head_counts_no_padding():
    head = build_head("pool_linear", SHAPES)
    z, mask = torch.randn(3, LENGTH, 8), torch.arange(LENGTH)[None] < torch.tensor([[2], [7], [4]])
    noisy = torch.where(mask[:, :, None], z, torch.randn_like(z) * 100)
    assert torch.allclose(Smashed(z, {"mask": mask}).into(head), Smashed(noisy, {"mask": mask}).into(head), atol=1e-5)
    every = build_head("mlp", Task(num_classes=5, cut_shape=(LENGTH, 8), per_position=True), depth=1, width=8)
    assert Smashed(z, {"mask": mask}).into(every).shape == (3, 5, LENGTH)


@pytest.mark.parametrize("size", [3, 1000])
def test_an_alignment_takes_each_sample_with_its_own_mask(size):
    """What stands where nothing is read may be anything: the head that comes of it is the same, also batch by batch."""
    heads = []
    for noise in (0.0, 100.0):
        part = Aligned(FslSageOptions(auxiliary="attention", align_epochs=2, align_batch=size))
        parts = cl.cut(model(), "block1")
        plan = Parallel(ParallelOptions(), Plan(1, 2))
        server = Server(parts.top, plan, training(make({})), replace(SHAPES, loss=Task().loss))
        z = Smashed.of(parts.bottom(tokens(8).x)).detach()
        torch.manual_seed(1)
        main = z.main + noise * torch.randn_like(z.main) * ~z.others["mask"][:, :, None]
        message = {**Smashed(main, z.others).tensors("smashed"), "labels": tokens(8).labels}
        part.keep(Message("smashed", message))
        heads.append(part.align(server, 0).state_dict())
    assert all(torch.allclose(heads[0][name], heads[1][name], atol=1e-5) for name in heads[0])


def test_multiply_adds_hold_those_of_attention():
    from cutlayer.costs import macs

    parts = cl.cut(model(), "block1")
    found = macs({"bottom": parts.bottom, "top": parts.top}, Batch(tokens(1).x, tokens(1).labels))
    assert found["bottom"] == LENGTH * 12 * 8 * 8 + 2 * LENGTH * LENGTH * 8


def test_a_head_that_attends_counts_no_padding_and_does_not_look_ahead():
    torch.manual_seed(0)
    z, mask = torch.randn(3, LENGTH, 8), torch.ones(3, LENGTH, dtype=torch.bool)
    head = build_head("attention", SHAPES)
    mask[:, 5:] = False
    noisy = torch.where(mask[:, :, None], z, torch.randn_like(z) * 100)
    assert torch.allclose(Smashed(z, {"mask": mask}).into(head), Smashed(noisy, {"mask": mask}).into(head), atol=1e-5)
    every = build_head("attention", Task(num_classes=5, cut_shape=(LENGTH, 8), per_position=True))
    later = torch.cat([z[:, :4], torch.randn(3, LENGTH - 4, 8)], 1)
    assert torch.allclose(every(z)[:, :, :4], every(later)[:, :, :4], atol=1e-6)
    assert not torch.allclose(every(z)[:, :, 4:], every(later)[:, :, 4:], atol=1e-3)


def test_what_is_no_text_is_told():
    with pytest.raises(BadInput, match="tokens are for transformer"):
        cl.models.build_model("mlp", 2, (LENGTH,), vocabulary=20)
    with pytest.raises(BadInput, match="cannot take inputs of shape"):
        cl.models.build_model("transformer", 2, (3, 8, 8))
    with pytest.raises(BadInput, match=r"unknown cut 'block9'.*embedding"):
        cl.cut(model(), "block9")
    fields = {"scheme": "dsl", "reconstruction": "conv2", **QUICK}
    clients = cl.partition.iid(data().train, num_clients=1)
    with pytest.raises(BadInput, match="set reconstruction = none"):
        cl.run(cl.cut(model(), "block1"), clients, **fields)


@pytest.mark.parametrize(("recipe", "least"), [("text", 0.6), ("characters", 0.2)])
def test_real_text_is_learned_across_a_cut(recipe, least, data_dir):
    if not (data_dir / "agnews").is_dir():
        pytest.skip("no agnews/ among the real data")
    result = cl.run_recipe(load(recipe, rounds=3, num_train=2000, num_test=300, data_dir=str(data_dir)))
    assert result.summary["accuracy_final"] > least


def test_a_head_is_aligned_with_masks_and_padding_has_no_part_in_it():
    """What stands where nothing is read changes neither the top's gradient nor the head's, once the mask is there."""
    from cutlayer.aligned import gradient

    class Stub:
        copy_input, task = False, Task(num_classes=2)

    parts = cl.cut(model(), "block1")
    z = Smashed.of(parts.bottom(tokens(8).x)).detach()
    mask = z.others["mask"]
    kept = {"smashed": z.main, "context/mask": mask, "labels": tokens(8).labels}
    noisy = kept | {"smashed": torch.where(mask[:, :, None], z.main, torch.randn_like(z.main))}
    for compute in (lambda z: parts.top(z.main, **z.others), lambda z: z.into(build_head("pool_linear", SHAPES))):
        torch.manual_seed(0)
        first = gradient(Stub, compute, kept)
        torch.manual_seed(0)
        assert torch.allclose(gradient(Stub, compute, noisy)[mask], first[mask], atol=1e-6)
        assert first[mask].abs().max() > 0
