"""Compressed data files: what they may inflate to is checked before and while they are inflated."""

import gzip
import io
import struct
import tarfile
import tracemalloc
import zipfile
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

import cutlayer as cl
from cutlayer.data import graphs, images, text
from cutlayer.data.archives import read_gzip, read_member, read_tar_gzip
from cutlayer.errors import BadInput

GRAPHS = {
    "A": "1, 2\n2, 1\n3, 4\n4, 3\n",
    "graph_indicator": "1\n1\n2\n2\n",
    "graph_labels": "0\n1\n",
    "node_labels": "0\n1\n0\n1\n",
}
MB = 1_000_000


@contextmanager
def allocating_at_most(nbytes):
    """Assert that no more than so many bytes are allocated at once."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < nbytes
    finally:
        tracemalloc.stop()


def tu_zip(folder, method=zipfile.ZIP_DEFLATED, **parts):
    path = folder / "MUTAG.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        for what, content in {**GRAPHS, **parts}.items():
            archive.writestr(f"MUTAG/MUTAG_{what}.txt", content)
    return path


def test_a_zip_that_inflates_to_200_mb_is_refused_before_it_is_inflated(tmp_path):
    path = tu_zip(tmp_path, A=bytes(200 * MB))
    said = rf"MUTAG.zip: MUTAG/MUTAG_A.txt inflates to more than {graphs.MOST_BYTES:,} bytes.*get the file again"
    with allocating_at_most(MB), pytest.raises(BadInput, match=said):
        graphs.read(path, "MUTAG")
    assert path.stat().st_size < MB
    with pytest.raises(BadInput, match=said):
        cl.data.load("mutag", str(tmp_path))


def test_a_zip_whose_directory_understates_a_size_does_not_inflate_further(tmp_path):
    path = tu_zip(tmp_path, A=b"1, 2\n" * (4 * MB))
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 20 * MB), struct.pack("<I", 10)))
    with allocating_at_most(2 * MB), pytest.raises(zipfile.BadZipFile):
        graphs.read(path, "MUTAG")
    with pytest.raises(BadInput, match=r"MUTAG.zip is truncated or damaged"):
        cl.data.load("mutag", str(tmp_path))


def test_a_zip_with_a_method_that_inflates_without_a_bound_is_refused(tmp_path):
    tu_zip(tmp_path, zipfile.ZIP_BZIP2)
    with pytest.raises(BadInput, match="compressed with method 12; compress the archive again with deflate"):
        cl.data.load("mutag", str(tmp_path))


@pytest.mark.parametrize("declared", [40 * MB, 8])
def test_a_gzip_file_is_inflated_to_its_limit_at_most_whatever_its_trailer_says(tmp_path, declared):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(bytes(40 * MB), 1)[:-4] + struct.pack("<I", declared))
    with allocating_at_most(10 * MB), pytest.raises(BadInput, match=r"x.gz inflates to more than 4,000,000 bytes"):
        read_gzip(path, 4 * MB)


def test_gzip_files_of_several_members_and_empty_ones_are_read(tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"one") + gzip.compress(b"two"))
    assert read_gzip(path, 6) == b"onetwo"
    with pytest.raises(BadInput, match="more than 5 bytes"):
        read_gzip(path, 5)
    path.write_bytes(b"")
    assert read_gzip(path, 5) == b""


def test_every_gzip_data_set_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "IDX_MOST_BYTES", 1000)
    monkeypatch.setattr(text, "MOST_BYTES", 1000)
    bomb = gzip.compress(bytes(2000))
    for name in ("mnist/train-images-idx3-ubyte", "mnist/train-labels-idx1-ubyte", "sst2/train.tsv", "sst2/test.tsv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.gz").write_bytes(bomb)
    for name in ("mnist", "sst2"):
        with pytest.raises(BadInput, match="inflates to more than 1,000 bytes"):
            cl.data.load(name, str(tmp_path))


def tar_gzip(path, **files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{name}.bin")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("files", [{"a": bytes(3 * MB)}, {name: bytes(MB // 2) for name in "abcde"}], ids=["one", "many"])
def test_a_tar_archive_is_inflated_to_its_limit_at_most(tmp_path, files):
    path = tmp_path / "x.tar.gz"
    tar_gzip(path, **files)
    with pytest.raises(BadInput, match=r"x.tar.gz.* inflates to more than 2,000,000 bytes"):
        read_tar_gzip(path, ".bin", 2 * MB)
    assert {name: len(blob) for name, blob in read_tar_gzip(path, ".bin", 4 * MB).items()} == {
        f"{name}.bin": len(content) for name, content in files.items()
    }


def png(side):
    file = io.BytesIO()
    Image.fromarray(np.zeros((side, side), np.uint8)).save(file, "png")
    return file.getvalue()


def test_a_parquet_file_that_holds_one_large_value_many_times_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "PARQUET_MOST_BYTES", 10 * MB)
    path = tmp_path / "x.parquet"
    table = pa.table({"image": [png(4) + bytes(MB)] * 100, "label": [0] * 100})
    parquet.write_table(table, path)
    assert path.stat().st_size < MB
    monkeypatch.setattr(images, "ROWS", 2)
    with pytest.raises(BadInput, match=r"x.parquet inflates to more than 10,000,000 bytes"):
        images.read_parquet(path)


def test_images_that_decode_to_too_much_are_refused_before_they_are_decoded(tmp_path):
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table({"image": [png(3000)] * 50, "label": [0] * 50}), path)
    with pytest.raises(BadInput, match=r"x.parquet inflates to more than"):
        images.read_parquet(path)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"A": "1, 2\n2, 1\n2, 3\n"}, r"MUTAG_A.txt, line 3: the edge joins nodes of two graphs"),
        ({"A": "1, 2\n2, 5\n"}, r"MUTAG_A.txt, line 2: no such node; they are 1 to 4"),
        ({"A": "0, 2\n"}, r"MUTAG_A.txt, line 1: no such node"),
        ({"A": "1\n2\n"}, r"MUTAG_A.txt has lines that are no pairs"),
        ({"graph_indicator": "1\n1\n2\n3\n"}, r"graph_indicator.txt, line 4: no such graph; they are 1 to 2"),
        ({"graph_indicator": "1\n2\n1\n2\n"}, r"graph_indicator.txt, line 3: nodes must be in the order of their graphs"),
        ({"node_labels": "1\n2\n1\n"}, r"node_labels.txt has 3 lines for 4 nodes"),
    ],
)
def test_a_graph_file_that_contradicts_itself_is_refused_with_its_line(tmp_path, parts, why):
    with pytest.raises(BadInput, match=why) as error:
        graphs.read(tu_zip(tmp_path, **parts), "MUTAG")
    assert "\n" not in str(error.value)


def test_a_graph_file_that_is_sound_is_read(tmp_path):
    path = tu_zip(tmp_path)
    x, edges, classes, names = graphs.read(path, "MUTAG")
    assert names.class_names == ["0", "1"]
    assert [len(each) for each in x] == [2, 2]
    assert [each.tolist() for each in edges] == [[[0, 1], [1, 0]]] * 2
    assert classes.tolist() == [0, 1]
    with zipfile.ZipFile(path) as archive:
        assert read_member(archive, "MUTAG/MUTAG_A.txt", 100) == GRAPHS["A"].encode()


def test_node_labels_that_are_all_different_do_not_fill_the_memory(tmp_path):
    n = 20_000
    parts = {"graph_indicator": "1\n" * (n - 1) + "2\n", "node_labels": "".join(f"{i}\n" for i in range(n)), "A": "1, 2\n"}
    with pytest.raises(BadInput, match="20000 nodes with 20000 different labels"):
        graphs.read(tu_zip(tmp_path, **parts), "MUTAG")


def test_images_of_a_parquet_file_lie_in_memory_as_their_shape_says(tmp_path):
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table({"image": [png(4)] * 3, "label": [0, 1, 2]}), path)
    x, y = images.read_parquet(path)
    assert (x.shape, x.dtype, y.tolist(), y.dtype) == ((3, 3, 4, 4), np.uint8, [0, 1, 2], np.int64)
    assert x.flags.c_contiguous
