"""Images of any size in folders by class: read from disk batch by batch, the same crops for the same seed."""

import shutil

import numpy as np
import pytest
import torch
from conftest import equal
from PIL import Image

from cutlayer.compare import cells, compare
from cutlayer.data import load
from cutlayer.data.folder import read
from cutlayer.errors import BadInput
from cutlayer.recipes.recipe import make
from cutlayer.run import Paused, run_recipe


@pytest.fixture
def root(tmp_path):
    """Twelve images of other sizes in two classes, light and dark, and four to evaluate on."""
    for split, n in (("train", 6), ("val", 2)):
        for k, name in enumerate(("dark", "light")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(n):
                noise = np.random.default_rng(i).integers(0, 100, (40 + 5 * i, 60, 3)) + 150 * k
                Image.fromarray(noise.astype(np.uint8)).save(tmp_path / split / name / f"{i}.{'png' if i % 2 else 'jpg'}")
    return tmp_path


def test_a_folder_is_read_in_a_fixed_shuffle_with_its_classes_in_order(root):
    data = load("image_folder", str(root))
    assert (len(data.train), len(data.test), data.num_classes) == (12, 4, 2)
    assert data.train.input_shape == (3, 224, 224)
    assert data.train.sample_bytes == 3 * 224 * 224
    assert all((path.parent.name == "light") == bool(y) for path, y in zip(data.train.paths, data.train.labels, strict=True))
    assert 0 < int(load("image_folder", str(root), num_train=6).train.labels.sum()) < 6
    x, y = data.train.batch(torch.arange(12), None)[:2]
    assert x.shape == (12, 3, 224, 224)
    assert (x.mean((1, 2, 3)) > 0).long().equal(y)  # light is light after normalisation
    assert float((data.train.to_unit(x) * 255).max()) <= 255


@pytest.mark.parametrize("held", ["val", "test"])
def test_training_and_evaluation_have_the_images_of_their_own_folders_normalised(held, tmp_path):
    colours = {"train/a": (0, 128, 255), "train/b": (10, 20, 30), f"{held}/a": (40, 50, 60), f"{held}/b": (70, 80, 90)}
    for folder, colour in colours.items():
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (256, 256), colour).save(tmp_path / folder / "x.png")
    data = load("image_folder", str(tmp_path))
    assert data.train.held_out is data.test
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for split, source in (("train", data.train), (held, data.test)):
        x, y = source.batch(torch.arange(2), torch.Generator().manual_seed(0))[:2]
        assert sorted(y.tolist()) == [0, 1]
        unit = torch.tensor([colours[f"{split}/{'ab'[label]}"] for label in y]) / 255
        assert torch.equal(x, ((unit - mean) / std)[:, :, None, None].expand(2, 3, 224, 224))
        assert torch.allclose(source.to_unit(x), unit[:, :, None, None], atol=1e-6)


def test_crops_are_those_of_the_generator_and_only_in_training(root):
    data = load("image_folder", str(root))
    index = torch.arange(4)
    first, again, other = (data.train.batch(index, torch.Generator().manual_seed(s)).x for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    plain = load("image_folder", str(root), augment=False).train
    assert torch.equal(plain.batch(index, torch.Generator().manual_seed(1)).x, plain.batch(index, None).x)


def test_the_middle_is_what_scaling_to_256_and_taking_224_gives(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (256, 300, 3)).astype(np.uint8))
    image.save(tmp_path / "x.png")
    assert (read(tmp_path / "x.png", None, 224) == np.asarray(image.crop((38, 16, 262, 240)))).all()


def test_a_network_trains_on_a_folder_the_same_with_any_number_of_readers(root, monkeypatch, no_figures):
    recipe = make(
        {"data": "image_folder", "data_dir": str(root), "model": "resnet18_quarter", "scheme": "dsl", "auxiliary": "pool_linear",
         "rounds": 1, "batch_size": 6, "num_threads": 1}
    )  # fmt: skip
    one = run_recipe(recipe)
    monkeypatch.setattr("cutlayer.data.folder.READERS", 1)
    assert equal(one.modules["bottom"], run_recipe(recipe).modules["bottom"])
    assert one.summary["input_bytes"] == 12 * 3 * 224 * 224


def test_what_is_missing_or_damaged_is_named(root, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(BadInput, match="there is no train/ in"):
        load("image_folder", str(empty))
    (empty / "train").mkdir()
    with pytest.raises(BadInput, match="neither val/ nor test/"):
        load("image_folder", str(empty))
    (root / "val" / "grey").mkdir()
    with pytest.raises(BadInput, match="only one of them has grey"):
        load("image_folder", str(root))
    (root / "val" / "grey").rmdir()
    (empty / "val").mkdir()
    with pytest.raises(
        BadInput, match="train/ and val/ have no folders of classes; put images into train/CLASS/ and val/CLASS/"
    ):
        load("image_folder", str(empty))
    (root / "train" / ".cache").mkdir()
    assert load("image_folder", str(root)).num_classes == 2
    (root / "train" / "dark" / "0.jpg").write_bytes(b"no image")
    with pytest.raises(BadInput, match=r"0.jpg cannot be read as an image"):
        load("image_folder", str(root)).train.batch(torch.arange(12), None)
    with pytest.raises(BadInput, match="13 samples are wanted and there are 12"):
        load("image_folder", str(root), num_train=13)


def test_another_folder_is_another_run_and_a_changed_one_is_not_gone_on_with(root, tmp_path_factory, no_figures):
    out = tmp_path_factory.mktemp("out")
    fields = {
        "data": "image_folder", "model": "resnet18_quarter", "cut": "shallow", "batch_size": 6, "rounds": 2, "num_clients": 1,
        "num_threads": 1,
    }  # fmt: skip
    recipe = make({**fields, "data_dir": str(root)})
    with pytest.raises(Paused):
        run_recipe(recipe, out, deadline=0.0)
    run_recipe(recipe, out.parent / "finished")
    (root / "train" / "dark" / "0.jpg").unlink()
    for folder in (out, out.parent / "finished"):
        with pytest.raises(BadInput, match="holds a run on other data"):
            run_recipe(recipe, folder)
    other = out.parent / "other"
    shutil.copytree(root, other)
    compare([recipe], out.parent / "compared")
    compare([make({**fields, "data_dir": str(other)})], out.parent / "compared")  # the same images elsewhere
    shutil.move(root, out.parent / "away")
    compare([make(fields)], out.parent / "compared")  # what is finished needs no data
    shutil.move(out.parent / "away", root)
    (root / "val" / "dark" / "0.jpg").unlink()
    with pytest.raises(BadInput, match="holds a run on other data"):
        compare([recipe], out.parent / "compared")
    with pytest.raises(BadInput, match="data_dir: where data lie is not part of a recipe"):
        list(cells({}, {"data_dir": ["a", "b"]}, [0]))


def test_sixteen_bits_are_scaled_and_whatever_a_decoder_says_names_the_file(tmp_path, monkeypatch):
    Image.fromarray(np.full((300, 300), 32768, np.uint16)).save(tmp_path / "deep.png")
    assert (read(tmp_path / "deep.png", None, 224) == 128).all()

    def broken(path):
        raise SyntaxError("broken PNG file")

    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(BadInput, match=r"deep.png cannot be read as an image \(broken PNG file\)"):
        read(tmp_path / "deep.png", None, 224)
