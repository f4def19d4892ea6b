"""Texts and tables that are read from files: what they hold, and what is said of one that is missing or damaged."""

import gzip
import random
import string

import pytest
import torch

import cutlayer as cl
from cutlayer.data import files
from cutlayer.data.text import FILES, PADDING, UNKNOWN, words
from cutlayer.errors import BadInput


def test_words_are_what_the_page_says():
    assert words("It's  GOOD, isn't it? 3-D!") == ["it's", "good", ",", "isn't", "it", "?", "3", "-", "d", "!"]


COUNTS = {
    "sst2": (60_614, 872, 2),
    "agnews": (10_001, 7_600, 4),
    "shakespeare": (15_685, 1_742, 66),
    "adult": (32_561, 16_281, 2),
}


@pytest.mark.parametrize("name", COUNTS)
def test_the_sets_are_what_their_pages_say(name, data_dir):
    if not (data_dir / name).is_dir():
        pytest.skip(f"no {name}/ among the real data")
    found = cl.data.load(name, str(data_dir))
    assert (len(found.train), len(found.test), found.num_classes) == COUNTS[name]
    if name == "adult":
        assert found.train.input_shape == (108,)
        assert float(found.train.labels.float().mean()) == pytest.approx(7841 / 32561)
        assert float(found.train.x[:, 0].mean()) == pytest.approx(0, abs=1e-3)
        return
    x = found.train.x
    assert x.shape[1] == 64
    assert int(x.max()) < found.train.vocabulary
    if name == "shakespeare":
        assert int(x.min()) == 1
        assert torch.equal(x[0, 1:], found.train.labels[0, :-1])
    else:
        assert float((x == UNKNOWN).sum() / (x != PADDING).sum()) < 0.1
    assert len(cl.data.load(name, str(data_dir), num_train=100, num_test=50).train) == 100


def write(path, lines):
    path.parent.mkdir(exist_ok=True)
    text = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)


@pytest.mark.parametrize(
    ("name", "train", "head", "classes"),
    [("sst2", "train", ["sentence\tlabel"], ["0", "1"]), ("agnews", "train_10k", [], ["World", "Sports"])],
)
def test_words_are_numbered_by_the_training_texts_and_the_first_64_are_kept(name, train, head, classes, tmp_path):
    bad, good = classes
    write(tmp_path / name / f"{train}.tsv.gz", [*head, f"film good good\t{good}", f"bad film bad\t{bad}", f"good\t{good}"])
    long = " ".join(["film"] * 60 + ["bad"] * 10)
    write(tmp_path / name / "test.tsv.gz", [*head, f"a bad, bad good a\t{bad}", f"{long}\t{good}"])
    found = cl.data.load(name, str(tmp_path))
    assert found.train.held_out is found.test
    for split, rows, labels in (
        (found.train, [[4, 2, 2], [3, 4, 3], [2]], [1, 0, 1]),
        (found.test, [[1, 3, 1, 3, 2, 1], [4] * 60 + [3] * 4], [0, 1]),
    ):
        assert split.x.tolist() == [row + [PADDING] * (64 - len(row)) for row in rows]
        assert split.labels.tolist() == labels


def test_shakespeare_is_tested_on_the_last_tenth_and_trained_on_what_is_before_it(tmp_path):
    text = "".join(random.Random(0).choices(string.ascii_lowercase, k=1400))
    (tmp_path / "shakespeare").mkdir()
    (tmp_path / "shakespeare" / "input.txt").write_text(text)
    found = cl.data.load("shakespeare", str(tmp_path))
    assert found.train.held_out is found.test
    assert found.num_classes == found.train.vocabulary == 27
    numbers = torch.tensor([ord(character) - ord("a") + 1 for character in text])
    for split, first, pieces in ((found.train, 0, 19), (found.test, 1260, 2)):
        end = first + 64 * pieces
        assert torch.equal(split.x, numbers[first:end].view(pieces, 64))
        assert torch.equal(split.labels, numbers[first + 1 : end + 1].view(pieces, 64))


def test_adult_is_scaled_by_the_training_part_and_knows_its_categories_alone(tmp_path):
    numeric = [i in (0, 2, 4, 10, 11, 12) for i in range(14)]

    def person(number, letter, income):
        """Numbers that differ from column to column by a factor, so that each has a mean and a deviation of its own, but for one."""
        numbers = {i: 7 if i == 11 else number * (i + 1) for i in range(14) if numeric[i]}
        return ", ".join([str(numbers.get(i, letter)) for i in range(14)] + [income])

    write(tmp_path / "adult" / "adult.data", [person(10, "b", "<=50K"), person(30, "a", ">50K")])
    tests = [person(50, "a", ">50K."), person(20, "?", "<=50K."), person(0, "b", "<=50K."), ""]
    write(tmp_path / "adult" / "adult.test", ["|1x3 Cross validator", *tests])
    found = cl.data.load("adult", str(tmp_path))
    assert found.train.held_out is found.test
    for split, rows, labels in (
        (found.train, [(-1, [0, 1]), (1, [1, 0])], [0, 1]),
        (found.test, [(3, [1, 0]), (0, [0, 0]), (-2, [0, 1])], [1, 0, 0]),
    ):
        assert split.x.tolist() == [[v for i in range(14) for v in ([z * (i != 11)] if numeric[i] else hot)] for z, hot in rows]
        assert split.labels.tolist() == labels


RELEASE = {"sst2": "SST-2, tab-separated", "agnews": "AG News, first 10,000, tab-separated", "adult": "UCI Adult"}


@pytest.mark.parametrize("name", RELEASE)
def test_the_release_is_of_both_files(name, data_dir, tmp_path):
    if not (data_dir / name).is_dir():
        pytest.skip(f"no {name}/ among the real data")
    found = ("adult/adult.data", "adult/adult.test") if name == "adult" else FILES[name]
    assert files.release_of(*(data_dir / file for file in found)) == RELEASE[name]
    assert cl.data.load(name, str(data_dir)).release == RELEASE[name]


@pytest.mark.parametrize(
    ("train", "test", "rows"),
    [("adult/adult.data", "adult/adult.test", 2 * [", ".join(["1"] * 14 + ["<=50K"])]), (*FILES["sst2"], ["", "a\t0", "b\t1"])],
    ids=["adult", "sst2"],
)
def test_other_data_in_either_file_are_another_release(train, test, rows, tmp_path, monkeypatch):
    def release(*lines):
        for file, more in zip((train, test), lines, strict=True):
            write(tmp_path / file, rows + more)
        return cl.data.load(train.partition("/")[0], str(tmp_path)).release

    whole = release([], [])
    for file in (train, test):
        monkeypatch.setitem(files.RELEASES, files.hashes(tmp_path / file)[0], "known")
    assert (whole.startswith("unrecognised "), release([], [])) == (True, "known")
    assert "unrecognised " in release(rows[-1:], [])
    assert "unrecognised " in release([], rows[-1:])


@pytest.mark.parametrize("name", COUNTS)
def test_a_missing_set_is_told(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(BadInput, match="is in none of the data folders"):
        cl.data.load(name, str(tmp_path))


ROW = "39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, Male, 2174, 0, 40, United-States"


@pytest.mark.parametrize(
    ("name", "file", "lines", "said"),
    [
        ("adult", "adult/adult.data", [f"{ROW}, <=50K", f"{ROW}, maybe"], "line 2 is not 14 attributes and one of <=50K, >50K"),
        ("adult", "adult/adult.data", [f"{ROW}, 1, <=50K"], "line 1 is not 14"),
        ("adult", "adult/adult.data", [f"{ROW.replace('39', '?')}, >50K"], r"line 1: '\?' is no number"),
        ("sst2", "sst2/train.tsv.gz", ["sentence\tlabel", "good\t1", "bad"], "line 3 is not a text, a tab and one of 0, 1"),
        ("agnews", "agnews/train_10k.tsv.gz", ["good\tWeather"], "line 1 is not a text, a tab and one of World"),
        ("adult", "adult/adult.data", [], "adult.data has no line of data; get the file again"),
        ("adult", "adult/adult.data", ["|1x3 Cross validator"], "adult.data has no line of data; get the file again"),
        ("adult", "adult/adult.data", [f"{ROW.replace('39', '--5')}, >50K"], "line 1: '--5' is no number; get the file again"),
        ("adult", "adult/adult.data", [f"{ROW}, <=50K", f"{ROW.replace('39', '²')}, >50K"], "line 2: '²' is no number"),
        ("shakespeare", "shakespeare/input.txt", ["to be or not"], "has 13 characters, and training and test need 650"),
    ],
)
def test_a_damaged_set_is_told_by_its_line(name, file, lines, said, tmp_path):
    write(tmp_path / file, lines)
    with pytest.raises(BadInput, match=said):
        cl.data.load(name, str(tmp_path))
