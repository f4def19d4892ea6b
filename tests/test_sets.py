"""Texts and tables that are read from files: what they hold, and what is said of one that is missing or damaged."""

import gzip

import pytest
import torch

import cutlayer as cl
from cutlayer.data.text import PADDING, UNKNOWN, words
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
        ("shakespeare", "shakespeare/input.txt", ["to be or not"], "has 13 characters, and training and test need 650"),
    ],
)
def test_a_damaged_set_is_told_by_its_line(name, file, lines, said, tmp_path):
    path = tmp_path / file
    path.parent.mkdir()
    text = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(text) if file.endswith(".gz") else text)
    with pytest.raises(BadInput, match=said):
        cl.data.load(name, str(tmp_path))
