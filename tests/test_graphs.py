"""T13.*: graphs through a cut: GIN in parts is GIN whole; what crosses where; the TUDataset collection."""

import zipfile

import pytest
import torch
from conftest import equal
from torch import nn

import cutlayer as cl
from cutlayer.cut import Smashed
from cutlayer.data import Data
from cutlayer.data.graphs import COLLECTION, Graphs
from cutlayer.errors import BadInput
from cutlayer.methods import METHODS
from cutlayer.models.gin import GIN, Graph, gin
from cutlayer.recipes.options import method_class, options_of
from cutlayer.recipes.recipe import make
from cutlayer.streams import stream
from cutlayer.task import Task

pytestmark = pytest.mark.usefixtures("no_figures")

CUTS = ["conv1", "conv2", "conv4", "readout"]
QUICK = {"rounds": 2, "batch_size": 4, "num_threads": 1, "lr": 0.02}


def graphs(n=16, seed=0, num_classes=2, held_out=None):
    """Rings whose classes have other node labels, one graph without edges, one of a single node."""
    draw = stream(seed, "graphs")
    x, edges, labels = [], [], []
    for i in range(n):
        size = 1 if i == 1 else int(torch.randint(3, 8, (1,), generator=draw))
        tags = (torch.rand(size, generator=draw) < (0.8 if i % num_classes else 0.2)).long()
        ring = torch.stack([torch.arange(size), (torch.arange(size) + 1) % size], 1)
        x.append(nn.functional.one_hot(tags, 3).float())
        edges.append(torch.cat([ring, ring.flip(1)]) if i > 1 else torch.empty(0, 2, dtype=torch.long))
        labels.append(i % num_classes)
    return Graphs(x, edges, torch.tensor(labels), num_classes, held_out)


def data(n=16):
    held_out = graphs(8, seed=1)
    return Data("rings", graphs(n, held_out=held_out), held_out, 2)


def model(dropout=0.0):
    torch.manual_seed(0)
    return GIN(2, 3, width=8, dropout=dropout)


def whole(model, batch):
    return model(batch.x, **batch.inputs)


@pytest.mark.parametrize("at", CUTS)
@pytest.mark.parametrize("train", [True, False])
def test_T13_1_every_cut_is_the_uncut_network(at, train):
    uncut, source = model(), graphs()
    parts = cl.cut(uncut, at)
    for module in (uncut, parts.bottom, parts.top):
        module.train(train)
    for index in (torch.arange(16), torch.arange(1, 6), torch.tensor([3, 2])):
        batch = source.batch(index, None)
        z = Smashed.through(parts.bottom, batch)
        assert torch.equal(parts.top(z.main, **z.others), whole(uncut, batch))


@pytest.mark.parametrize("at", CUTS)
def test_T13_1_split_training_is_training_the_uncut_network(at):
    clients = cl.partition.iid(data().train, num_clients=1)
    split, uncut = (cl.run(cl.cut(model(), at), clients, scheme=s, **QUICK) for s in ("vanilla", "centralised"))
    names = {}
    for part in ("bottom", "top"):
        names |= {f"{part}.{k}": v for k, v in split.modules[part].state_dict().items()}
    assert equal(names, uncut.modules["bottom"].state_dict())
    assert split.records[-1]["accuracy"] == uncut.records[-1]["accuracy"]


def test_T13_1_u_shaped_the_readout_stays_with_the_labels():
    clients = cl.partition.iid(data().train, num_clients=1)
    split = cl.run(cl.cut(model(), "conv2"), clients, scheme="vanilla", **QUICK)
    u_shaped = cl.run(cl.cut(model(), "conv2", "readout"), clients, scheme="u_shaped", **QUICK)
    assert equal(split.modules["bottom"], u_shaped.modules["bottom"])
    assert equal(split.modules["top"].readout, u_shaped.modules["tail"])
    assert "labels" not in u_shaped.summary["bytes"]["up"]


def moved(batch, generator):
    """The same graphs, their nodes in another order, and the row where each node went."""
    orders, edges = [], []
    firsts = batch.inputs["nodes"].cumsum(0) - batch.inputs["nodes"]
    ends = batch.inputs["edges"].split(batch.inputs["edge_counts"].tolist())
    for first, nodes, mine in zip(firsts.tolist(), batch.inputs["nodes"].tolist(), ends, strict=True):
        order = torch.randperm(nodes, generator=generator)
        orders.append(first + order)
        edges.append(order.argsort()[mine])
    order = torch.cat(orders)
    return batch.x[order], {**batch.inputs, "edges": torch.cat(edges)}, order


def test_T13_2_the_order_of_nodes_changes_nothing():
    net, batch = model().eval(), graphs().batch(torch.arange(16), None)
    x, inputs, order = moved(batch, stream(0, "order"))
    assert not torch.equal(x, batch.x)
    graph = Graph(batch.inputs["nodes"])
    h = torch.randn(len(batch.x), 8, generator=stream(0, "h"))
    assert torch.allclose(graph.pool(h[order]), graph.pool(h), atol=1e-6)
    assert torch.allclose(net(x, **inputs), whole(net, batch), atol=1e-6)


def test_a_graph_is_the_formula_of_the_paper_on_its_adjacency_matrix():
    """h' = ReLU(BN(MLP(h + A h))); the scores of all layers' sums over nodes, added up."""
    net, source = model().eval(), graphs()
    net.double()
    for i in range(16):
        batch = source.batch(torch.tensor([i]), None)
        h = batch.x.double()
        adjacency = torch.zeros(len(h), len(h), dtype=torch.float64)
        adjacency[batch.inputs["edges"][:, 0], batch.inputs["edges"][:, 1]] = 1
        layers = [h.sum(0)]
        for convolution in net.convolutions.values():
            h = torch.relu(convolution.norm(convolution.mlp(h + adjacency @ h)))
            layers.append(h.sum(0))
        scores = sum(linear(layer) for linear, layer in zip(net.readout.linears, layers, strict=True))
        assert torch.allclose(net(batch.x.double(), **batch.inputs)[0], scores, atol=1e-9)


@pytest.mark.parametrize("network", [GIN, gin])
def test_each_score_of_each_layer_is_dropped_by_itself_one_time_in_two(network):
    """Scores of 0.5, 1, 2, 4 and 8 are doubled where they stay: a sum says which layers it came from."""
    readout = network(2, 4).readout
    for i, linear in enumerate(readout.linears):
        nn.init.constant_(linear.weight, 2**i / 2 / linear.in_features)
        nn.init.zeros_(linear.bias)
    pooled = torch.ones(1000, sum(readout.widths))
    torch.manual_seed(0)
    sums = readout.train()(pooled)
    assert sums.unique().tolist() == list(range(32))
    assert not torch.equal(sums[:, 0], sums[:, 1])
    assert readout.eval()(pooled).unique().tolist() == [15.5]


def test_nothing_is_dropped_before_the_scores():
    batch = graphs().batch(torch.arange(16), None)
    bottom = cl.cut(model(0.5), "readout").bottom.train()
    first, again = (bottom(batch.x, **batch.inputs)["main"] for _ in range(2))
    assert torch.equal(first, again)


def test_T13_3_the_loss_of_a_batch_is_the_mean_of_its_graphs():
    net, source, task = model().eval(), graphs(), Task()
    batch = source.batch(torch.arange(16), None)
    single = [source.batch(torch.tensor([i]), None) for i in range(16)]
    mean = torch.stack([task.loss(whole(net, one), one.y) for one in single]).mean()
    assert torch.allclose(task.loss(whole(net, batch), batch.y), mean, atol=1e-6)


@pytest.mark.parametrize(
    ("at", "roles"),
    [
        ("conv1", {"smashed", "context", "labels"}),
        ("conv4", {"smashed", "context", "labels"}),
        ("readout", {"smashed", "labels"}),
    ],
)
def test_T13_4_what_crosses_says_no_more_of_the_structure_than_it_must(at, roles, tmp_path):
    result = cl.run(cl.cut(model(), at), cl.partition.iid(data().train, num_clients=1), out=tmp_path, **QUICK)
    up = {role for role, cell in result.summary["bytes"]["up"].items() if cell["payload"]}
    assert up - {"evaluation", "weights"} == roles
    z = Smashed.through(cl.cut(model(), at).bottom, graphs().batch(torch.arange(16), None))
    structure = {"conv1": {"nodes", "edges", "edge_counts", "pooled"}, "conv4": {"nodes", "pooled"}, "readout": set()}
    assert set(z.others) == structure[at]
    source = data().train
    nodes = sum(len(x) for x in source.x)
    rows = {"conv1": nodes * 8 + 16 * 3, "conv4": nodes * 8 + 16 * (3 + 24), "readout": 16 * (3 + 32)}
    assert result.summary["bytes"]["up"]["smashed"]["payload"] == 2 * 4 * rows[at]


@pytest.mark.parametrize("at", ["conv2", "readout"])
def test_one_server_step_on_the_graphs_of_all_clients_is_a_step_on_one_batch(at):
    train = data().train
    owners = torch.arange(16) % 2
    fields = {**QUICK, "rounds": 1, "batch_size": 8, "momentum": 0.0, "lr": 0.1}
    result = cl.run(
        cl.cut(model(), at), cl.partition.by_column(train, owners), schedule="parallel", server_order="concatenated", **fields
    )
    parts = cl.cut(model(), at)
    zs = []
    for k in range(2):
        twin = cl.cut(model(), at).bottom
        zs.append(Smashed.through(twin, train.batch((owners == k).nonzero().flatten(), None)))
    main = torch.cat([z.main for z in zs])
    others = {name: torch.cat([z.others[name] for z in zs]) for name in zs[0].others}
    y = torch.cat([train.labels[owners == k] for k in range(2)])
    Task().loss(parts.top(main, **others), y).backward()
    for before, after in zip(parts.top.parameters(), result.modules["top"].parameters(), strict=True):
        assert torch.allclose(before - 0.1 * before.grad, after, atol=5e-5)  # the rows are summed in another order


@pytest.mark.parametrize("at", ["conv2", "conv4", "readout"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_on_graphs_or_says_why_not(method, at, tmp_path):
    options = {"auxiliary": "mlp", "auxiliary_width": 8} if "auxiliary" in options_of(method).__dataclass_fields__ else {}
    cut = {"cut": "none"} if getattr(method_class(method), "uncut", False) else {}
    clients = cl.partition.iid(data().train, num_clients=2)
    how = {"method": method, **options, **cut, **QUICK}
    one_tensor = {"fsl_sage": "aligns one tensor", "synthetic_gradient": "guesses one tensor"}
    if at != "readout" and method in one_tensor:
        with pytest.raises(BadInput, match=one_tensor[method]):
            cl.run(cl.cut(model(), at), clients, **how)
        return
    result = cl.run(cl.cut(model(), at), clients, out=tmp_path, **how)
    assert result.records[-1]["accuracy"] > 0
    assert all(torch.isfinite(t).all() for m in result.modules.values() for t in m.state_dict().values())


def test_heads_see_graphs_and_decoders_are_refused():
    for head in ("linear", "pool_linear", "mlp", "block"):
        result = cl.run(
            cl.cut(model(), "conv1"), cl.partition.iid(data().train, num_clients=1), scheme="dsl", auxiliary=head, **QUICK
        )
        assert "auxiliary_accuracy" in result.records[-1]
    for at in ("conv1", "readout"):
        clients = cl.partition.iid(data().train, num_clients=1)
        with pytest.raises(BadInput, match="set reconstruction = none"):
            cl.run(cl.cut(model(), at), clients, scheme="dsl", reconstruction="conv2", **QUICK)


def test_noise_clips_graphs_not_nodes():
    from cutlayer.codecs import build
    from cutlayer.wire import Message, pack

    z = Smashed.through(cl.cut(model(), "conv2").bottom, graphs().batch(torch.arange(16), None))
    message = Message("smashed", z.tensors("smashed"))
    sent = pack(message, build({"smashed": "gaussian_noise@0.0:0.5"})).roles[0].parts[0]
    norms = torch.stack([part.norm() for part in sent.split(z.others["nodes"].tolist())])
    assert torch.allclose(norms, torch.full((16,), 0.5), atol=1e-5)


def test_names_of_cuts_are_told():
    with pytest.raises(BadInput, match=r"unknown cut 'conv9'.*conv1"):
        cl.cut(model(), "conv9")
    with pytest.raises(BadInput, match="unknown tail"):
        cl.cut(model(), "conv1", "conv2")
    with pytest.raises(BadInput, match="gin takes graphs"):
        cl.models.build_model("gin", 10, (3, 32, 32))


FACTS = {
    "mutag": (188, 2, 7),
    "proteins": (1113, 2, 3),
    "nci1": (4110, 2, 37),
    "enzymes": (600, 6, 3),
    "imdb_binary": (1000, 2, None),
}
EDGES = {"mutag": 19.79, "proteins": 72.82, "nci1": 32.30, "enzymes": 62.14, "imdb_binary": 96.53}


@pytest.mark.parametrize("name", COLLECTION)
def test_the_collection_is_what_its_page_says(name, data_dir):
    if not (data_dir / "tudataset").is_dir():
        pytest.skip("no tudataset/ among the real data")
    found = cl.data.load(name, str(data_dir))
    total, classes, features = FACTS[name]
    assert len(found.train) + len(found.test) == total
    assert found.num_classes == classes
    assert features in (None, found.train.input_shape[0])
    edges = sum(len(e) for split in (found.train, found.test) for e in split.edges) / 2
    assert round(edges / total, 2) == pytest.approx(EDGES[name], abs=0.011)
    assert all(int(e.max()) < len(x) for x, e in zip(found.train.x, found.train.edges, strict=True) if len(e))
    assert found.release.startswith("TUDataset")
    shares = [split.labels.bincount(minlength=classes) / len(split) for split in (found.train, found.test)]
    assert float((shares[0] - shares[1]).abs().max()) < 0.025  # 19 of 188


LEAVES = (1, 2, 4, 5, 6)
STAR = sorted([(7, leaf) for leaf in LEAVES] + [(leaf, 7) for leaf in LEAVES]), [0, 1, 1, 0, 1, 1, 1, 5]  # 0 and 3 are alone
PATH = [(0, 1), (1, 0), (1, 2), (2, 1)], [1, 2, 1, 0]


@pytest.mark.parametrize(("name", "labelled"), [("imdb_binary", False), ("mutag", True)])
def test_a_graph_has_the_edges_and_degrees_or_labels_of_its_file(name, labelled, tmp_path):
    """Ten stars and ten paths in turn; IMDB-BINARY lists every pair twice."""
    files = {"A": [], "graph_indicator": [], "graph_labels": []} | ({"node_labels": []} if labelled else {})
    for i in range(20):
        pairs, degrees = (STAR, PATH)[i % 2]
        first = len(files["graph_indicator"]) + 1
        files["A"] += [f"{first + a}, {first + b}" for a, b in pairs] * (1 if labelled else 2)
        files["graph_indicator"] += [i + 1] * len(degrees)
        files["graph_labels"].append((-1, 1)[i % 2])
        if labelled:
            files["node_labels"] += [5 + 2 * (node % 3) for node in range(len(degrees))]
    (tmp_path / "tudataset").mkdir()
    with zipfile.ZipFile(tmp_path / "tudataset" / f"{COLLECTION[name]}.zip", "w") as archive:
        for what, lines in files.items():
            archive.writestr(f"{COLLECTION[name]}/{COLLECTION[name]}_{what}.txt", "".join(f"{line}\n" for line in lines))
    found = cl.data.load(name, str(tmp_path))
    assert found.train.held_out is found.test
    assert found.train.labels.bincount().tolist() == [9, 9]
    assert found.test.labels.bincount().tolist() == [1, 1]
    for split in (found.train, found.test):
        every = split.batch(torch.arange(len(split)), None)
        shown = [(STAR, PATH)[label] for label in split.labels]
        for x, edges, (pairs, degrees) in zip(split.x, split.edges, shown, strict=True):
            hot = [node % 3 if labelled else (0, 1, 2, 5).index(degree) for node, degree in enumerate(degrees)]
            assert torch.equal(x, torch.eye(3 if labelled else 4)[hot])
            assert sorted(map(tuple, edges.tolist())) == pairs
        assert torch.equal(every.x, torch.cat(split.x))
        assert torch.equal(every.inputs["edges"], torch.cat(split.edges))
        assert every.inputs["nodes"].tolist() == [len(degrees) for _, degrees in shown]
        assert every.inputs["edge_counts"].tolist() == [len(pairs) for pairs, _ in shown]


def test_a_missing_collection_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(BadInput, match=r"tudataset/MUTAG.zip is in none of the data folders"):
        cl.data.load("mutag", str(tmp_path))
    (tmp_path / "tudataset").mkdir()
    (tmp_path / "tudataset" / "MUTAG.zip").write_bytes(b"no zip")
    with pytest.raises(BadInput, match="truncated or damaged"):
        cl.data.load("mutag", str(tmp_path))


def test_mutag_is_learned_across_a_cut(data_dir, tmp_path):
    from cutlayer.recipes import load

    recipe = load("graphs", rounds=15, data_dir=str(data_dir))
    result = cl.run_recipe(recipe, tmp_path)
    assert make(recipe.flat()).digest() == recipe.digest()
    assert result.summary["accuracy_peak"] > 0.75


@pytest.mark.parametrize("name", COLLECTION)
def test_T13_1_on_every_set_of_the_collection_split_is_uncut(name, data_dir):
    """One client, cut after the first convolution (G1), after the last (G3), at the readout (G2).

    Without dropout, which every party draws from a stream of its own.
    """
    loaded = cl.data.load(name, str(data_dir), num_train=48, num_test=16)
    clients = cl.partition.iid(loaded.train, num_clients=1)
    how = {"rounds": 2, "batch_size": 16, "lr": 0.01, "optimizer": "adam", "num_threads": 1}

    def network():
        torch.manual_seed(0)
        return GIN(loaded.num_classes, loaded.train.input_shape[0], dropout=0.0)

    uncut = cl.run(cl.cut(network(), "readout"), clients, scheme="centralised", **how)
    whole = {k.partition(".")[2]: v for k, v in uncut.modules["bottom"].state_dict().items()}
    for at in ("conv1", "conv4", "readout"):
        split = cl.run(cl.cut(network(), at), clients, scheme="vanilla", **how)
        parts = {k: v for part in ("bottom", "top") for k, v in split.modules[part].state_dict().items()}
        assert equal(parts, whole)
        assert split.records[-1]["accuracy"] == uncut.records[-1]["accuracy"]


@pytest.mark.parametrize("at", ["conv2", "readout"])
def test_half_a_batch_of_graphs_is_refused_at_every_cut(at):
    """Behind the readout a row is a graph, and in front of the bottom still a node."""
    clients = cl.partition.contiguous(data().train, num_clients=1)
    with pytest.raises(BadInput, match=r"backward_share = 0\.5: a graph's rows are nodes, not samples; take 1"):
        cl.run(cl.cut(model(), at), clients, scheme="dsl", auxiliary="pool_linear", backward_share=0.5, rounds=1, batch_size=8)
