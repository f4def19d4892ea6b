"""Data: the sets are what they say, damage and absence are told in one line, and augmentation is its naive self."""

import gzip
import io
import shutil
import struct
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

import cutlayer as cl
from cutlayer.data import augment, files, images
from cutlayer.errors import BadInput
from cutlayer.recipes.recipe import make
from cutlayer.streams import stream


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CUTLAYER_OFFLINE", "1")
    monkeypatch.delenv("CUTLAYER_DATA", raising=False)
    return tmp_path / "cache" / "cutlayer"


@pytest.mark.parametrize(("name", "shape", "sizes"), [("digits", (1, 8, 8), (1437, 360)), ("breast_cancer", (30,), (455, 114))])
def test_bundled_sets(name, shape, sizes):
    first, second = cl.data.load(name), cl.data.load(name)
    assert (len(first.train), len(first.test)) == sizes
    assert first.train.input_shape == shape
    assert torch.equal(first.train.x, second.train.x)
    assert first.train.held_out is first.test
    rows = {row.numpy().tobytes() for row in first.train.x}
    assert sum(row.numpy().tobytes() in rows for row in first.test.x) <= 1
    x = first.train.batch(torch.arange(sizes[0]), None).x
    assert abs(float(x.mean())) < 0.05
    assert abs(float(x.std()) - 1) < 0.05
    unit = first.train.to_unit(x)
    assert 0 <= float(unit.min()) <= float(unit.max()) <= 1


def test_cifar_is_decoded_once_known_by_its_hash_and_kept(data_dir, cache, monkeypatch):
    path = data_dir / "cifar10" / "test.parquet"
    x, y, release = files.decoded(path, images.read_parquet)
    assert (x.shape, x.dtype, y.shape) == ((10_000, 3, 32, 32), np.uint8, (10_000,))
    assert np.bincount(y).tolist() == [1000] * 10
    assert release == "CIFAR-10, JPEG quality 95"
    again, _, _ = files.decoded(path, lambda path: pytest.fail("decoded twice"))
    assert np.array_equal(x, again)
    (kept,) = (cache / "decoded").glob("*-x.npy")
    kept.write_bytes(kept.read_bytes()[:1000])  # a damaged cache is made again
    repaired, _, _ = files.decoded(path, images.read_parquet)
    assert np.array_equal(x, repaired)


def test_mnist_is_the_original(data_dir, cache):
    data = cl.data.load("mnist", data_dir=str(data_dir), num_train=100, num_test=50)
    assert (len(data.train), len(data.test), data.train.input_shape) == (100, 50, (1, 28, 28))
    assert data.release == "MNIST, original"
    assert data.train.labels[:5].tolist() == [5, 0, 4, 1, 9]


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion_mnist"])
def test_every_file_of_the_real_data_is_of_a_known_release(name, data_dir):
    paths = [path for path in (data_dir / name).iterdir() if path.suffix in (".parquet", ".gz")]
    if not paths:
        pytest.skip(f"no files of {name}")
    assert len({files.RELEASES.get(files.hashes(path)[0], path.name) for path in paths}) == 1


def test_the_official_cifar_archive_is_read_in_its_order(tmp_path, cache, monkeypatch):
    draw = np.random.default_rng(0)
    blobs = {f"data_batch_{i}.bin": draw.integers(0, 10, (10_000, 1), np.uint8) for i in range(1, 6)}
    blobs["test_batch.bin"] = np.full((10_000, 1), 7, np.uint8)
    path = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name in reversed(blobs):
            raw = np.concatenate([blobs[name], np.zeros((10_000, 3072), np.uint8)], 1).tobytes()
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    x, y, release = files.decoded(path, lambda path: images.read_cifar_archive(path, fine=False))
    assert x.shape == (60_000, 3, 32, 32)
    assert np.array_equal(y[:10_000], blobs["data_batch_1.bin"][:, 0])
    assert (y[50_000:] == 7).all()
    assert release.startswith("unrecognised ")
    data = cl.data.load("cifar10", data_dir=str(tmp_path))
    assert (len(data.train), len(data.test)) == (50_000, 10_000)
    assert data.train.augment is augment.crop_flip
    assert cl.data.load("cifar10", data_dir=str(tmp_path), augment=False).train.augment is None


def test_a_truncated_parquet_is_one_line_that_names_it(data_dir, tmp_path, cache):
    folder = tmp_path / "cifar10"
    folder.mkdir()
    whole = (data_dir / "cifar10" / "test.parquet").read_bytes()
    (folder / "train.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=r"train.parquet is truncated or damaged.*get the file again") as error:
        cl.data.load("cifar10", data_dir=str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("there", "missing"), [("train", "test"), ("test", "train")])
def test_one_parquet_without_the_other_is_told(there, missing, tmp_path, cache):
    (tmp_path / "cifar10").mkdir()
    image = io.BytesIO()
    Image.new("RGB", (32, 32)).save(image, "PNG")
    table = pa.table({"image": [image.getvalue()], "label": [3]})
    parquet.write_table(table, tmp_path / "cifar10" / f"{there}.parquet")
    with pytest.raises(
        BadInput, match=rf"{missing}.parquet is missing, and {there}.parquet is there; put both into one folder"
    ):
        cl.data.load("cifar10", data_dir=str(tmp_path))
    parquet.write_table(table, tmp_path / "cifar10" / f"{missing}.parquet")
    assert len(cl.data.load("cifar10", data_dir=str(tmp_path)).test) == 1


@pytest.mark.parametrize("damage", ["short", "not gzip", "fewer labels"])
def test_a_damaged_idx_file_is_one_line_that_names_it(damage, tmp_path, cache):
    folder = tmp_path / "mnist"
    folder.mkdir()
    pixels = struct.pack(">IIII", 0x00000803, 20, 28, 28) + bytes(20 * 28 * 28)
    labels = struct.pack(">II", 0x00000801, 20) + bytes(20)
    if damage == "short":
        pixels = pixels[:5000]
    if damage == "fewer labels":
        labels = struct.pack(">II", 0x00000801, 10) + bytes(10)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"no gzip" if damage == "not gzip" else gzip.compress(pixels))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    with pytest.raises(BadInput, match=r"train-images.*get the file again"):
        cl.data.load("mnist", data_dir=str(tmp_path))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion_mnist"])
def test_what_is_absent_is_told_with_the_file_and_the_place(name, cache):
    with pytest.raises(BadInput, match=r"put .*\.gz.* into .*--data-dir or CUTLAYER_DATA") as error:
        cl.data.load(name)
    assert "\n" not in str(error.value)


def test_bad_names_numbers_and_folders(cache):
    with pytest.raises(BadInput, match="Did you mean 'cifar10'"):
        cl.data.load("cifar")
    with pytest.raises(BadInput, match="5000 samples are wanted and there are 1437"):
        cl.data.load("digits", num_train=5000)
    with pytest.raises(BadInput, match="'/nowhere' is no folder"):
        cl.data.load("mnist", data_dir="/nowhere")


@pytest.mark.parametrize(("labels", "why"), [([0, -1], "label -1 of sample 1"), ([3, 0], "label 3 of sample 0")])
def test_labels_out_of_range_are_named(labels, why):
    with pytest.raises(BadInput, match=why):
        cl.data.Tensors(torch.zeros(2, 3), torch.tensor(labels), 3)
    with pytest.raises(BadInput, match=why):
        cl.data.MapStyle(TensorDataset(torch.zeros(2, 3), torch.tensor(labels)), 3)


def test_any_map_style_data_set_is_a_source():
    x, y = torch.randn(6, 2), torch.arange(6) % 3
    source = cl.data.MapStyle(TensorDataset(x, y), 3)
    batch = source.batch(torch.tensor([4, 1]), None)
    assert torch.equal(batch.x, x[[4, 1]])
    assert batch.y.tolist() == [1, 1]
    assert batch.ids.tolist() == [4, 1]
    assert (source.input_shape, source.sample_bytes, source.labels.tolist()) == ((2,), 8, y.tolist())
    with pytest.raises(BadInput, match="no samples"):
        cl.data.MapStyle([], 3)
    with pytest.raises(BadInput, match=r"must be pairs \(x, y\)"):
        cl.data.MapStyle([torch.zeros(2)], 3)
    with pytest.raises(BadInput, match="2 inputs and 3 labels"):
        cl.data.Tensors(torch.zeros(2, 1), torch.zeros(3).long(), 2)


def naive_crop_flip(x, generator, pad):
    n, c, h, w = x.shape
    offsets = torch.randint(0, 2 * pad + 1, (2, n, 1), generator=generator)
    flips = torch.rand(n, 1, generator=generator) < 0.5
    out = torch.zeros_like(x)
    for i in range(n):
        padded = torch.zeros(c, h + 2 * pad, w + 2 * pad)
        padded[:, pad : pad + h, pad : pad + w] = x[i]
        top, left = int(offsets[0, i]), int(offsets[1, i])
        image = padded[:, top : top + h, left : left + w]
        out[i] = image.flip(2) if flips[i] else image
    return out


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_crops_and_flips_of_a_batch_are_those_of_a_loop(memory_format):
    x = torch.randn(16, 3, 8, 10).contiguous(memory_format=memory_format)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    mine = augment.crop_flip(x, stream(0, "test"), pad=2)
    assert torch.equal(mine, naive_crop_flip(x, stream(0, "test"), 2))
    assert mine.is_contiguous(memory_format=memory_format)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(mine, augment.crop_flip(x, stream(1, "test"), pad=2))


def test_only_training_batches_are_augmented_and_to_unit_undoes_the_normalisation():
    raw = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    mean, std = images.CIFAR_MEAN_STD["cifar10"]
    source = cl.data.Tensors(raw, torch.zeros(8).long(), 10, mean, std, augment.crop_flip)
    index = torch.arange(8)
    plain = source.batch(index, None).x
    assert torch.allclose(source.to_unit(plain), raw.float() / 255, atol=1e-6)
    assert not torch.equal(source.batch(index, stream(0, "a")).x, plain)
    expected = (raw[3, 1, 5, 7].float() / 255 - mean[1]) / std[1]
    assert torch.isclose(plain[3, 1, 5, 7], expected, atol=1e-6)
    first = source.take(slice(3), None)
    assert len(first) == 3
    assert torch.equal(first.to("cpu").batch(index[:3], None).x, plain[:3])


def test_a_download_goes_to_the_cache_and_is_found_there(cache, monkeypatch, tmp_path):
    source = tmp_path / "file.gz"
    source.write_bytes(b"x")
    monkeypatch.delenv("CUTLAYER_OFFLINE")
    said = []

    def retrieve(url, known_hash, fname, path, downloader):
        path.mkdir(parents=True)
        shutil.copy(source, path / fname)

    monkeypatch.setattr(files.pooch, "retrieve", retrieve)
    assert files.fetch("https://example.org/file.gz", "md5:0", "mnist/file.gz", said.append).read_bytes() == b"x"
    assert said == ["fetching https://example.org/file.gz"]
    assert files.locate(None, "mnist/file.gz") == cache / "data" / "mnist" / "file.gz"


def small_mnist(folder, cut=None, first=0):
    """Two idx pairs of 20 images; `cut` shortens the training labels."""
    (folder / "mnist").mkdir(parents=True, exist_ok=True)
    for part in ("train", "t10k"):
        pixels = struct.pack(">IIII", 0x00000803, 20, 28, 28) + bytes(20 * 28 * 28)
        labels = struct.pack(">II", 0x00000801, 20) + bytes([first]) + bytes(19)
        (folder / "mnist" / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(pixels, mtime=0))
        short = gzip.compress(labels, mtime=0)[: cut if part == "train" else None]
        (folder / "mnist" / f"{part}-labels-idx1-ubyte.gz").write_bytes(short)


def test_damaged_labels_are_named_not_their_images(tmp_path, cache):
    small_mnist(tmp_path, cut=15)
    with pytest.raises(BadInput, match=r"train-labels-idx1-ubyte.gz is truncated or damaged"):
        cl.data.load("mnist", data_dir=str(tmp_path))


def test_other_labels_are_another_release_and_another_cache_entry(tmp_path, cache, monkeypatch):
    small_mnist(tmp_path)
    for part in ("train", "t10k"):
        for file in (f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz"):
            monkeypatch.setitem(files.RELEASES, files.hashes(tmp_path / "mnist" / file)[0], "known")
    before = cl.data.load("mnist", data_dir=str(tmp_path))
    small_mnist(tmp_path, first=3)
    after = cl.data.load("mnist", data_dir=str(tmp_path))
    assert (before.release, int(before.train.labels[0]), int(after.train.labels[0])) == ("known", 0, 3)
    assert after.release.startswith("unrecognised ")


def test_a_cache_that_cannot_be_written_or_holds_anything_else_does_no_harm(tmp_path, cache, monkeypatch):
    small_mnist(tmp_path)
    expected = cl.data.load("mnist", data_dir=str(tmp_path)).train.x
    for kept in (cache / "decoded").glob("*.npy"):
        kept.write_bytes(b"PK\x03\x04 no array")
    assert torch.equal(cl.data.load("mnist", data_dir=str(tmp_path)).train.x, expected)
    assert not [file for file in (cache / "decoded").iterdir() if file.suffix != ".npy"]
    blocked = tmp_path / "a file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert torch.equal(cl.data.load("mnist", data_dir=str(tmp_path)).train.x, expected)


@pytest.mark.parametrize(("name", "width"), [("cifar10", 3073), ("cifar100", 3074)])
def test_unpacked_official_files_are_read_train_then_test(name, width, tmp_path, cache):
    folder, names = images.CIFAR_FOLDERS[name]
    (tmp_path / folder).mkdir()
    for i, file in enumerate(names):
        rows = 10_000 if "test" in file or name == "cifar10" else 50_000
        raw = np.zeros((rows, width), np.uint8)
        raw[:, width - 3073] = i
        raw[:, -1] = 9
        (tmp_path / folder / file).write_bytes(raw.tobytes())
    data = cl.data.load(name, data_dir=str(tmp_path))
    assert (len(data.train), len(data.test), data.train.input_shape) == (50_000, 10_000, (3, 32, 32))
    assert set(data.test.labels.tolist()) == {len(names) - 1}
    assert int(data.train.x[0, 2, 31, 31]) == 9
    (tmp_path / folder / names[0]).unlink()
    with pytest.raises(BadInput, match=rf"{names[0]} is missing; unpack"):
        cl.data.load(name, data_dir=str(tmp_path))


@pytest.mark.parametrize("n", [0, -5])
def test_fewer_than_one_sample_is_refused(n):
    with pytest.raises(BadInput, match=f"num_train = {n}: {n} samples are wanted and there are 1437"):
        cl.data.load("digits", num_train=n)


def test_the_first_samples_keep_what_they_are_evaluated_on():
    data = cl.data.load("digits", num_train=5)
    assert len(data.train) == 5
    assert data.train.held_out is data.test


def test_held_out_samples_are_the_last_of_training_and_not_augmented(data_dir):
    whole, data = (cl.data.load("cifar10", str(data_dir), num_held_out=n) for n in (None, 5000))
    assert (len(data.train), len(data.test)) == (45_000, 5000)
    assert torch.equal(data.test.x, whole.train.x[45_000:])
    assert data.train.held_out is data.test
    assert data.train.augment is not None
    assert data.test.augment is None
    few = cl.data.load("cifar10", str(data_dir), num_train=100, num_held_out=5000)
    assert torch.equal(few.train.x, whole.train.x[:100])
    assert torch.equal(few.test.x, data.test.x)
    with pytest.raises(BadInput, match=r"num_held_out = 50000: 50000 samples are wanted and there are 49999"):
        cl.data.load("cifar10", str(data_dir), num_held_out=50_000)
    with pytest.raises(BadInput, match="the test set is left alone"):
        make({"data": "cifar10", "num_held_out": 10, "num_test": 10})


@pytest.mark.parametrize(
    ("items", "why"),
    [
        ([(torch.zeros(2), 0), (torch.zeros(2), 0, 1)], "item 1 .* 3 values"),
        ([(torch.zeros(2), 0), 5], r"item 1 .* pairs \(x, y\)"),
        ([(torch.zeros(2), "cat")], "'cat' do not stack"),
        ([(torch.zeros(2), torch.zeros(2)), (torch.zeros(2), torch.zeros(3))], "do not stack"),
        ([(object(), 0)], "not tensors; add a transform"),
        (iter([1]), "no map-style data set"),
    ],
)
def test_items_that_do_not_fit_are_one_line(items, why):
    with pytest.raises(BadInput, match=why) as error:
        cl.data.MapStyle(items, 2)
    assert "\n" not in str(error.value)


def test_a_map_style_source_gives_float32_and_is_not_read_again_when_moved():
    class Once(list):
        reads = 0

        def __getitem__(self, i):
            Once.reads += 1
            return super().__getitem__(i)

    source = cl.data.MapStyle(Once([(np.zeros(2), 0), (np.ones(2), 1)]), 2)
    before = Once.reads
    moved = source.to("cpu")
    assert Once.reads == before
    assert moved.batch(torch.tensor([1]), None).x.dtype == torch.float32
    assert torch.equal(moved.labels, source.labels)
