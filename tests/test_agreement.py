"""Sites whose data differ are refused before the first batch: over gRPC, over MPI and for predictions."""

import json

import pytest
import sites
import torch
from network import Net
from PIL import Image
from torch.utils.data import Subset, TensorDataset

import cutlayer as cl
from cutlayer.data.comparison import differences, remarks
from cutlayer.data.description import describe, parse, to_json
from cutlayer.data.metadata import read_class_names
from cutlayer.data.tables import INCOMES
from cutlayer.errors import BadInput
from cutlayer.handshake import about, disagreement
from cutlayer.predict import Answering, predict
from cutlayer.recipes.recipe import make
from cutlayer.run import run_recipe
from cutlayer.transports.session import MAX_CONTROL, control

pytestmark = pytest.mark.usefixtures("no_figures")
FIELDS = {
    "model": "sites:net", "cut": "0", "scheme": "vanilla", "num_clients": 2, "rounds": 1, "batch_size": 8, "num_threads": 1,
}  # fmt: skip


def site(data):
    """Return the recipe of a site with data of its own."""
    return make({**FIELDS, "data": f"sites:{data}"})


def compared(server, client):
    """Return the differences between two data sets as they are read from a greeting."""
    here, there = (parse(json.loads(json.dumps(to_json(describe(data))))) for data in (server, client))
    return differences(here, there, "bob")


DIFFERENT = {
    "dog_cat": ["class 0 is 'cat' at the server and 'dog' at client1", "class 1 is 'dog' at the server and 'cat' at client1"],
    "dog_fox": ["class 0 is 'cat' at the server and 'dog' at client1", "class 1 is 'dog' at the server and 'fox' at client1"],
    "misspelt": ["class 0 is 'cat' at the server and 'Dog' at client1"],
    "cat_only": ["class 1 is 'dog' at the server and missing at client1"],
    "cat_dog_fox": ["class 2 is missing at the server and 'fox' at client1", "the number of classes is 2 at the server and 3"],
    "larger": ["the input shape is (3, 6, 6) at the server and (3, 8, 8) at client1"],
    "grey": ["the input shape is (3, 6, 6) at the server and (1, 6, 6) at client1"],
    "bytes_as_floats": ["the value range is about 0.0", "at client1; scales may differ by a factor of at most 20"],
    "regression": ["the target dtype is int64 at the server and float64 at client1"],
    "label_2": ["labels are class numbers 0..1 at the server and 0..2 at client1"],
    "label_negative": ["labels are class numbers 0..1 at the server and -1..0 at client1"],
}


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    """A server that waits for clients with cats and dogs; at the end two such clients train with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cutlayer.figures.draw", lambda groups, metric: [])
        net = Net(site("cat_dog"), tmp_path_factory.mktemp("sites"))
        yield net
        net.failed.clear()
        for name in ("client0", "client1"):
            net.join(name, own_data=True)
        result = net.wait()
    assert result.summary["samples"] == [16, 16]


@pytest.mark.parametrize("data", DIFFERENT)
def test_a_site_with_other_data_is_refused_before_its_first_batch_and_both_sides_are_named(data, serving):
    serving.join("client1", recipe=site(data), own_data=True, patience=5.0).join()
    error = serving.failed["client1"]
    assert isinstance(error, BadInput)
    assert "\n" not in str(error)
    for words in DIFFERENT[data]:
        assert words in str(error)
    assert serving.said(f"client1 is refused: {str(error).partition('refuses: ')[2]}")
    assert not serving.said("client1 is here")


def test_two_sites_that_agree_with_each_other_and_not_with_the_server_are_both_refused(serving):
    for name in ("client0", "client1"):
        serving.join(name, recipe=site("dog_cat"), own_data=True, patience=5.0).join()
        assert f"'dog' at {name}" in str(serving.failed[name])


def test_unknown_properties_are_not_compared_and_the_server_names_them(tmp_path):
    net = Net(site("cat_dog"), tmp_path)
    net.join("client0", recipe=site("unnamed"), own_data=True)
    net.join("client1", recipe=site("without_extras"), own_data=True)
    net.wait()
    for name in ("client0", "client1"):
        assert net.said(f"{name}: class names, normalisation could not be compared, because one side does not state them")


def test_honest_sites_of_other_brightness_train_together_and_a_doubtful_normalisation_is_named(tmp_path):
    net = Net(site("cat_dog"), tmp_path)
    net.join("client0", recipe=site("darker"), own_data=True)
    net.join("client1", recipe=site("centred"), own_data=True)
    net.wait()
    assert not net.said("client0: values are")
    assert net.said("client1: normalisation could not be compared, because one side does not state them; values are 0.00")
    assert net.said("there; check that both normalise alike")


def test_a_run_does_not_go_on_with_other_classes(tmp_path):
    run_recipe(cat_dog := make({**site("cat_dog").flat(), "transport": "inprocess"}), tmp_path)
    other = make({**cat_dog.flat(), "data": site("dog_cat").data})
    (tmp_path / "recipe.toml").write_text((tmp_path / "recipe.toml").read_text().replace(cat_dog.data, other.data))
    with pytest.raises(BadInput, match="holds a run on other data: class 0 is 'cat' in the run and 'dog' now"):
        run_recipe(other, tmp_path)


def test_a_prediction_for_other_classes_is_refused(tmp_path):
    net = Net(site("cat_dog"), tmp_path)
    for name in ("client0", "client1"):
        net.join(name, own_data=True)
    net.wait()
    answering = Answering(site("cat_dog"), tmp_path / "server" / "weights", listen="127.0.0.1:0", names=["client0"], tls=None)
    try:
        other = site("dog_cat")
        with pytest.raises(BadInput, match="holds a run on other data: class 0 is 'cat' in the run and 'dog' now"):
            predict(other, tmp_path / "client0" / "weights", server=None, name="client0", local=True)
        with pytest.raises(BadInput, match="holds a run on other data"):
            Answering(other, tmp_path / "server" / "weights", listen="127.0.0.1:0", names=["client0"], tls=None)
        (tmp_path / "client0" / "data.json").unlink()
        with pytest.raises(BadInput, match="class 0 is 'cat' at the server and 'dog' at client0"):
            predict(
                site("dog_cat"), tmp_path / "client0" / "weights", server=f"127.0.0.1:{answering.gate.port}", name="client0"
            )
    finally:
        answering.gate.close(0.1)


def test_clients_whose_shares_could_overlap_are_refused_and_own_data_are_not():
    server, client = (make({"num_clients": 2, "partition": partition}) for partition in ("iid", "contiguous"))
    words = disagreement(about(server), about(client), "b")
    assert "partition = 'iid' at the server, 'contiguous' at this client" in words
    assert disagreement(about(server), about(client, dealt=False), "b") is None


def test_versions_are_compared_before_anything_else():
    mine = about(site("cat_dog"))
    assert disagreement(mine, mine, "bob") is None
    other = {**mine, "versions": {**mine["versions"], "cutlayer": "9.9.9", "partition": "0"}}
    assert disagreement(mine, {**other, "recipe": {}}, "bob") == (
        f"the versions differ: cutlayer {mine['versions']['cutlayer']} at the server and '9.9.9' at bob, "
        f"partition {mine['versions']['partition']} at the server and '0' at bob; install the same version of cutlayer at both ends"
    )
    without = {name: value for name, value in mine.items() if name != "versions"}
    assert "and 'unknown' at bob" in disagreement(mine, without, "bob")
    assert "no description of its data" in disagreement(mine, {**mine, "data": None}, "bob")


OTHER = [
    (sites.text(), sites.text("abce"), "the vocabulary's hash is "),
    (sites.text(), sites.text(tokenizer="letters, version 2"), "the tokenizer's hash is "),
    (sites.table(), sites.table(("weight", "age")), "column 0 is 'age' at the server and 'weight' at bob"),
    (sites.constants(0.5, 0.5), sites.constants(0.3, 0.5), "normalisation of channel 0 is mean 0.5 and std 0.5 at the server"),
    (sites.constants(0.5, 0.5), sites.constants(0.5, 0.2), "mean 0.5 and std 0.2 at bob"),
    (sites.table(age=(40.0, 13.0)), sites.table(age=(480.0, 300.0)), "column 'age' is mean 40 and deviation 13 at the server"),
    (
        sites.tensors(torch.zeros(16, 4)),
        sites.tensors(torch.zeros(16, 4, dtype=torch.long), vocabulary=3),
        "input dtype is float32",
    ),
]


@pytest.mark.parametrize(("server", "client", "said"), OTHER, ids=[said.partition(" is ")[0] for _, _, said in OTHER])
def test_vocabularies_tokenizers_columns_and_normalisations_are_compared(server, client, said):
    assert compared(server, server) == compared(client, client) == []
    assert any(said in line for line in compared(server, client))


SAME = [
    (sites.constants(0.4914, 0.2023), sites.constants(0.49139968, 0.20230)),  # rounded constants
    (sites.table(age=(40.0, 13.0)), sites.table(age=(44.0, 11.0))),  # statistics of a site's own rows
    (sites.table(gain=(0.0, 0.0)), sites.table(gain=(1077.0, 7452.0))),  # a small site whose column is constant
    (sites.images(scale=1.0), sites.images(scale=0.1)),
    (sites.images(), sites.images(None)),
    (sites.tensors(torch.rand(16, 3, 4, 4)), sites.tensors((torch.rand(16, 3, 4, 4) * 255).byte())),  # stored as bytes
    (sites.images(("caf\u00e9", "b")), sites.images(("cafe\u0301", "b"))),  # the same name on another file system
    (sites.minimal(torch.rand(16)), sites.minimal(torch.rand(16).double())),
]


@pytest.mark.parametrize(("server", "client"), SAME)
def test_honest_differences_are_accepted(server, client):
    assert compared(server, client) == compared(client, server) == []


def test_columns_that_each_site_standardises_by_itself_are_remarked():
    here, there = describe(sites.table(age=(40.0, 13.0))), describe(sites.table(age=(44.0, 11.0)))
    assert remarks(here, here) == []
    assert remarks(here, there) == ["each side standardises its columns with statistics of its own rows, and these differ"]


def test_single_extreme_values_change_no_scale():
    x = torch.rand(64, 3, 4, 4)
    spiked = x.clone()
    spiked[::5, 0, 0, 0] = 1e6
    spiked[1::5, 0, 0, 0] = float("nan")
    assert compared(sites.tensors(x), sites.tensors(spiked)) == []


def test_a_greeting_with_ten_thousand_classes_and_columns_is_small_and_a_late_difference_is_found():
    names = ["\U0001f600" * 70 + str(i) for i in range(10_000)]
    y = torch.arange(16)
    data = [
        cl.data.from_datasets(*[TensorDataset(torch.rand(16, 4), y)] * 2, 10_000, metadata=cl.data.Metadata(each, each))
        for each in (names, [*names[:-1], "other"])
    ]
    mine, theirs = (about(site("cat_dog"), each) for each in data)
    assert len(control(kind="hello", **mine)) < MAX_CONTROL
    why = disagreement(mine, theirs, "bob")
    assert "the list of class names after the first 256 is 10000 with hash " in why
    assert len(why) <= 500


def wrong(**fields):
    return {**to_json(describe(sites.images())), **fields}


@pytest.mark.parametrize(
    "told",
    [
        None, 7, [], {}, wrong(num_classes="\x1b[31m"), wrong(num_classes=-1), wrong(num_classes=10**400), wrong(input_shape=[3.5]),
        wrong(input_shape=[1] * 100), wrong(value_range=[float("nan"), 1]), wrong(value_range=[1]), wrong(more=1),
        wrong(**{"\x1b[2J\nserver stopped": 1}), wrong(class_names={"count": 1, "first": ["x" * 100], "digest": "0" * 16}),
        wrong(class_names={"count": 300, "first": ["x"] * 300, "digest": "0" * 16}), wrong(class_names=["cat"]),
        wrong(tokenizer="abc\n"), wrong(statistics={str(i): [0, 1] for i in range(300)}), wrong(input_dtype="f" * 99),
    ],
)  # fmt: skip
def test_a_description_of_another_form_or_size_is_one_safe_line(told):
    with pytest.raises(BadInput) as caught:
        parse(told)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_names_that_a_stranger_chose_are_safe_to_show():
    (line,) = compared(sites.images(("cat", "dog")), sites.images(("cat", "\x1b[2J\ndone: accuracy 1.0\u202e")))
    assert line.isprintable()


def test_a_users_source_with_what_the_protocol_asks_for_is_described():
    found = describe(sites.without_extras())
    assert (found.num_classes, found.input_shape, found.input_dtype, found.label_range) == (2, (3, 6, 6), "float32", (0, 1))
    assert found.class_names is found.normalisation is found.vocabulary is None
    several = describe(sites.minimal(torch.tensor([[0, 1, -100], [1, -100, -100]])))  # -100: a position without a target
    assert several.label_range == (0, 1)
    assert several.target_shape == (3,)


QUICK = ("digits", "breast_cancer", "mnist", "mutag")
SETS = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.long) for name in cl.data.DATASETS if name != "image_folder"
]


@pytest.mark.parametrize("name", SETS)
def test_every_built_in_set_states_all_that_is_compared(name, data_dir):
    found = describe(cl.data.load(name, str(data_dir)))
    assert found.class_names.count == found.num_classes
    assert remarks(found, found) == []


def test_a_folder_of_images_states_its_classes(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / name / "0.png")
    found = describe(cl.data.load("image_folder", str(tmp_path)))
    assert found.class_names.first == ("cat", "dog")
    assert remarks(found, found) == []


def test_adult_states_the_columns_of_its_own_rows_and_their_statistics(tmp_path):
    def adult(folder, job, years):
        rows = [
            f"{age}, {job}, 1, b, 2, m, o, r, w, s, 0, 0, 40, x, {income}" for age, income in zip(years, INCOMES, strict=True)
        ]
        (tmp_path / folder / "adult").mkdir(parents=True)
        for part in ("data", "test"):
            (tmp_path / folder / "adult" / f"adult.{part}").write_text("\n".join(rows) + "\n")
        return cl.data.load("adult", str(tmp_path / folder))

    server, older = adult("server", "State-gov", (20, 40)), adult("older", "State-gov", (30, 60))
    assert describe(server).column_names.first[:3] == ("age", "workclass=State-gov", "fnlwgt")
    assert compared(server, older) == []
    assert remarks(describe(server), describe(older)) == [
        "each side standardises its columns with statistics of its own rows, and these differ"
    ]
    (line,) = compared(server, adult("another", "Private", (20, 40)))
    assert line == "column 1 is 'workclass=State-gov' at the server and 'workclass=Private' at bob"
    (line,) = compared(server, adult("months", "State-gov", (2400, 4800)))
    assert line.startswith("column 'age' is mean 30 and deviation 10 at the server and mean 3600")


def test_class_names_come_from_attributes_of_torchvision_and_fit_the_number_of_classes():
    rows = TensorDataset(torch.rand(4, 2), torch.tensor([0, 1, 0, 1]))
    rows.classes = ["cat", "dog"]
    assert read_class_names(Subset(Subset(rows, [0, 1]), [0]), 2) == ["cat", "dog"]
    rows.class_to_idx = {"dog": 0, "cat": 1}
    assert read_class_names(rows, 2) == ["dog", "cat"]
    assert read_class_names(rows, 3) is None  # a target transform may join classes
    other = TensorDataset(*rows.tensors)
    other.classes = ["cat", "dog"]
    with pytest.raises(BadInput, match="class 0 is 'dog' in the training data and 'cat' in the test data"):
        cl.data.from_datasets(rows, other, 2)
    with pytest.raises(BadInput, match="3 class names for 2 classes"):
        cl.data.from_datasets(rows, rows, 2, metadata=cl.data.Metadata(class_names=["a", "b", "c"]))
    with pytest.raises(BadInput, match="class_names: 'a' appears twice"):
        cl.data.Metadata(class_names=["a", "b", "a"])
