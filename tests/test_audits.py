"""What an adversary learns: each attack finds what is there, and nothing where there is nothing."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import cutlayer as cl
from cutlayer.audits import AUDITS, Effort, audit, inversion, labels
from cutlayer.audits.distance_correlation import distance_correlation
from cutlayer.audits.seen import Closed, Half, Seen, seen_of
from cutlayer.cli import main
from cutlayer.errors import BadInput
from cutlayer.predict import Owner, load_into
from cutlayer.recipes import load
from cutlayer.run import data_of, parts_of, run_recipe
from cutlayer.task import Task

OWNER = SimpleNamespace(autocast=nullcontext, place=lambda x: x, modules={}, task=Task(num_classes=2))
RUN = {"model": "resnet8", "rounds": 1, "warmup_rounds": 0, "num_train": 128, "num_test": 64, "augment": False}
pytestmark = pytest.mark.usefixtures("no_figures")


def pictures(n, seed):
    """Return smooth images (n, 1, 16, 16)."""
    coarse = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(16, 16), mode="bilinear")


def seen(z_of, n=256):
    halves = [(x := pictures(n, seed), z_of(x, seed)) for seed in (1, 2)]
    return Seen(*(Half(x, z, torch.zeros(n, dtype=torch.long), None) for x, z in halves))


def finished(folder, **fields):
    run_recipe(load("demo", **{**RUN, **fields}), folder)
    return folder


def test_T12_1_what_is_sent_as_it_is_is_rebuilt():
    found = inversion.attack(OWNER, seen(lambda x, seed: x), Effort(epochs=30), print)
    assert found["psnr"] > 30 > found["psnr_without"] + 10
    assert found["ssim"] > 0.9 > found["ssim_without"] + 0.3
    assert found["psnr_of_another"] < found["psnr_without"]  # a wrong picture is worse than the mean one


def test_T12_1_of_what_has_nothing_to_do_with_it_no_more_than_the_mean_is_rebuilt():
    def noise(x, seed):
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(9 + seed))

    found = inversion.attack(OWNER, seen(noise, 2048), Effort(epochs=2), print)
    assert found["ssim"] == pytest.approx(found["ssim_without"], abs=0.02)
    assert found["psnr"] < found["psnr_without"] + 0.1


@pytest.mark.parametrize(
    ("cut", "shape"),
    [((16, 8, 8), (3, 8, 8)), ((32, 7, 7), (1, 28, 28)), ((4, 2, 2), (3, 9, 9)), ((64,), (30,)), ((64,), (3, 8, 8))],
)
def test_a_decoder_gives_inputs_of_any_shape_in_the_unit_range(cut, shape):
    made = inversion.decoder_of(cut, shape)(10 * torch.randn(2, *cut))
    assert made.shape == (2, *shape)
    assert 0 <= made.min() <= made.max() <= 1


def test_similarity_is_one_of_the_same_and_that_of_the_formula_where_images_are_flat():
    x = pictures(3, 0)
    assert inversion.ssim(x, x) == pytest.approx(1)
    a, b, c1 = 0.2, 0.7, 0.01**2
    flat = inversion.ssim(torch.full((2, 3, 12, 11), a), torch.full((2, 3, 12, 11), b))
    assert flat == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), rel=1e-3)
    assert inversion.psnr(x, x + 0.1) == pytest.approx(20, abs=1e-3)


def test_distance_correlation_is_one_of_a_scaled_copy_zero_of_a_constant_and_blind_to_rotations_and_order():
    x, z = (torch.randn(60, 10, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert distance_correlation(x, -3 * x + 2) == pytest.approx(1)
    assert distance_correlation(x, torch.ones(60, 4)) == 0
    turned = torch.linalg.qr(torch.randn(10, 10, generator=torch.Generator().manual_seed(3)))[0]
    mixed = torch.randperm(60)
    own = distance_correlation(x, z)
    assert distance_correlation(x @ turned, z) == pytest.approx(own, rel=1e-5)
    assert distance_correlation(x[mixed], z[mixed]) == pytest.approx(own)


@pytest.mark.parametrize(("n", "known"), [(16, 0.84), (64, 0.62), (512, 0.26)])
def test_distance_correlation_of_few_independent_rows_is_high(n, known):
    found = [
        distance_correlation(
            *(torch.randn(n, 10, generator=torch.Generator().manual_seed(seed)) for seed in (2 * i, 2 * i + 1))
        )
        for i in range(10)
    ]
    assert sum(found) / 10 == pytest.approx(known, abs=0.02)


def test_T12_6_norms_of_gradients_tell_a_rare_class_and_no_more_in_much_noise():
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(4000, generator=generator) < 0.1).long()
    score = torch.randn(4000, generator=generator) + 2 * y - 3
    gradients = ((score.sigmoid() - y)[:, None] * torch.randn(8, generator=generator)).double()
    assert labels.leak_auc(gradients.norm(dim=1), y) > 0.8
    noise = torch.randn(gradients.shape, generator=generator)
    assert labels.leak_auc((gradients + 100 * noise).norm(dim=1), y) < 0.55


def test_T12_7_without_a_tail_there_is_no_gradient_channel(tmp_path):
    finished(tmp_path, scheme="dsl")
    with pytest.raises(Closed, match="no gradient channel"):
        audit(tmp_path, ["labels"])
    found = audit(tmp_path, effort=Effort(epochs=1))
    assert "no gradient channel" in found["labels"]["closed"]
    assert found["inversion"]["psnr"] > 0


def test_labels_that_stay_home_are_read_off_the_gradients_of_the_tail(tmp_path):
    finished(tmp_path, scheme="u_shaped", rounds=3, num_train=256)
    found = audit(tmp_path, ["labels"])["labels"]
    assert found["label_accuracy"] > 0.9 > found["label_accuracy_without"] + 0.5


def test_gradients_are_those_of_each_sample_alone():
    tail = nn.Linear(5, 2)
    owner = SimpleNamespace(**{**vars(OWNER), "modules": {"tail": tail}})
    features, y = torch.randn(6, 5), torch.tensor([0, 1, 0, 1, 1, 0])
    found = labels.gradients(owner, Half(None, features, y, features), lambda role, g: g, 4)
    for i in range(6):
        one = features[i : i + 1].clone().requires_grad_()
        F.cross_entropy(tail(one), y[i : i + 1]).backward()
        torch.testing.assert_close(found[i], one.grad[0])


def test_gradients_are_attacked_as_they_arrive(tmp_path):
    finished(tmp_path, scheme="u_shaped", rounds=3, num_train=256, codec={"feature_grad": "gaussian_noise@10:1"})
    found = audit(tmp_path, ["labels"])["labels"]
    assert found["label_accuracy"] < 0.4


def test_of_two_classes_norms_are_set_beside_norms_in_another_order():
    y = (torch.arange(2000) % 10 == 0).long()
    features = torch.cat(
        [y[:, None] * 4.0 - 3 + torch.randn(2000, 1, generator=torch.Generator().manual_seed(0)) for _ in range(2)], 1
    )
    tail = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        tail.weight.copy_(torch.tensor([[-0.5, -0.5], [0.5, 0.5]]))
    owner = SimpleNamespace(**{**vars(OWNER), "modules": {"tail": tail}})
    half = Half(None, features, y, features)
    found = labels.attack(owner, Seen(half, half), Effort(), print)
    assert found["label_accuracy_without"] == pytest.approx(0.9)
    assert found["norm_auc"] > 0.8 > 0.55 > found["norm_auc_without"]


def test_what_is_seen_are_two_halves_through_the_trained_parts_and_the_codecs(tmp_path):
    codec = {"smashed": "uniform4@nearest", "features": "uniform2@nearest"}
    finished(tmp_path, scheme="u_shaped", rounds=2, codec=codec)
    recipe = load(str(tmp_path / "recipe.toml"))
    owner = Owner(recipe, tmp_path / "weights")
    found = seen_of(owner, recipe, tmp_path / "weights" / "top.safetensors", Effort(samples=32))
    test = owner.data.test
    x = test.to_unit(test.batch(torch.arange(64), None).x)
    which = [torch.cdist(half.x.flatten(1), x.flatten(1)).argmin(1).tolist() for half in (found.own, found.theirs)]
    assert sorted(which[0] + which[1]) == list(range(64))
    assert all(len(each.unique()) <= levels for half in found[:2] for each, levels in ((half.z, 16), (half.features, 4)))
    top = load_into(parts_of(recipe, owner.data).top, tmp_path / "weights" / "top.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(found.coded("features", top(found.own.z)), found.own.features)
    assert torch.equal(found.own.y, test.labels[which[0]])


def test_inputs_of_a_data_set_of_ones_own_are_scaled_by_what_the_attacker_has(tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images = 7 + 3 * torch.rand(96, 4, 8, 8, generator=generator)
    own = cl.data.from_datasets(
        *(TensorDataset(part, torch.zeros(len(part), dtype=torch.long)) for part in images.split(64)), num_classes=2
    )
    parts = cl.cut(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(256, 2)), at="0")
    recipe = load("demo", rounds=1)
    owner = SimpleNamespace(
        **{
            **vars(OWNER),
            "data": own,
            "modules": {"bottom": parts.bottom},
            "task": Task(cut_shape=(4, 8, 8), input_shape=(4, 8, 8)),
        }
    )
    found = seen_of(owner, recipe, tmp_path, Effort())
    assert (float(found.own.x.min()), float(found.own.x.max())) == (0, 1)
    assert "pictures" not in inversion.attack(owner, found, Effort(epochs=1), print)  # four channels are no colours

    class Two(nn.Module):
        def forward(self, x):
            return {"main": parts.bottom(x), "skip": x}

    class Diverged(nn.Module):
        def forward(self, x):
            return x * torch.nan

    for bottom, why in ((Two(), "skip crosses too"), (Diverged(), "hold NaN")):
        owner.modules["bottom"] = bottom
        with pytest.raises(BadInput, match=why):
            seen_of(owner, recipe, tmp_path, Effort())


def test_a_last_batch_of_one_is_left_out_where_a_batch_norm_would_learn_from_it():
    halves = (Half(torch.rand(65, 1, 2, 2), torch.rand(65, 4, 1, 1), torch.zeros(65, dtype=torch.long), None) for _ in range(2))
    found = inversion.attack(OWNER, Seen(*halves), Effort(epochs=1), print)
    assert 0 < found["psnr"] < 30


def test_an_audit_is_a_table_a_file_and_pictures_and_the_same_the_second_time(tmp_path, capsys):
    finished(tmp_path / "run", scheme="vanilla")
    words = ["audit", str(tmp_path / "run"), "--samples", "20", "--epochs", "2"]
    assert main(words) == 0
    first = json.loads((tmp_path / "run" / "audit.json").read_text())
    assert (tmp_path / "run" / "rebuilt.png").read_bytes().startswith(b"\x89PNG")
    assert "distance_correlation" in capsys.readouterr().out
    assert first["effort"] == {"samples": 20, "epochs": 2, "seed": 0}
    assert main(words) == 0
    assert json.loads((tmp_path / "run" / "audit.json").read_text()) == first
    assert first["found"].keys() == AUDITS.keys()


def test_where_clients_keep_their_own_bottoms_it_is_one_of_them(tmp_path, capsys):
    finished(tmp_path, scheme="psl", num_clients=2)
    words = ["audit", str(tmp_path), "--only", "distance_correlation"]
    found = []
    for client in (0, 1, 0):
        assert main([*words, "--client", str(client)]) == 0
        found.append(json.loads((tmp_path / "audit.json").read_text())["found"])
    assert found[0] == found[2] != found[1]
    assert main([*words, "--client", "2"]) == 2
    assert "client = 2: there are 2, the first is 0" in capsys.readouterr().err


def test_noise_at_the_cut_is_what_the_attacker_sees(tmp_path):
    clear, noisy = (
        audit(finished(tmp_path / name, codec=codec), ["distance_correlation"])["distance_correlation"]
        for name, codec in (("clear", {}), ("noisy", {"smashed": "gaussian_noise@10:1"}))
    )
    assert noisy["distance_correlation"] < clear["distance_correlation"]
    assert noisy["distance_correlation"] == pytest.approx(noisy["distance_correlation_without"], abs=0.1)


def test_what_cannot_be_audited_is_told_in_one_line(tmp_path, capsys, monkeypatch):
    assert main(["audit", str(tmp_path)]) == 2
    assert "holds no finished run" in capsys.readouterr().err
    finished(tmp_path / "run")
    assert main(["audit", str(tmp_path)]) == 2
    assert "holds several runs; name one of them: run" in capsys.readouterr().err
    for words, why in (
        (["--only", "inversions"], "'inversions'"),
        (["--samples", "0"], "samples = 0: at least 1"),
        (["--epochs", "0"], "epochs = 0: at least 1"),
    ):
        assert main(["audit", str(tmp_path / "run"), *words]) == 2
        assert why in capsys.readouterr().err
    monkeypatch.setattr("cutlayer.audits.seen.MOST_BYTES", 8 * (16 * 8 * 8 + 8 * 8) * 30)
    assert main(["audit", str(tmp_path / "run")]) == 2
    assert "give at most 30" in capsys.readouterr().err
    finished(tmp_path / "uncut", scheme="fedavg", num_clients=2)
    assert main(["audit", str(tmp_path / "uncut")]) == 2
    assert "scheme = fedavg: nothing is cut" in capsys.readouterr().err
    finished(tmp_path / "merged", codec={"smashed": "batch_merge"})
    with pytest.raises(BadInput, match="means of samples"):
        audit(tmp_path / "merged")
    assert not (tmp_path / "merged" / "audit.json").exists()


def test_a_bottom_of_vectors_is_inverted_too(tmp_path):
    finished(tmp_path, data="breast_cancer", model="mlp", num_train=None, num_test=None)
    found = audit(tmp_path, ["inversion"], Effort(epochs=20))["inversion"]
    assert found["psnr"] > found["psnr_without"] + 3
    assert not (tmp_path / "rebuilt.png").exists()


def test_weights_after_one_step_on_one_sample_hold_the_sample():
    """The change of a first layer's row over its bias's is the input, also in the average of two, of a unit that one alone uses."""
    recipe = load(
        "demo", data="breast_cancer", model="mlp", scheme="splitfed_v1", num_clients=2, num_train=2, batch_size=1, rounds=1,
        warmup_rounds=0, lr=0.5, lr_schedule="constant", momentum=0.0, nesterov=False, weight_decay=0.0,
    )  # fmt: skip
    data = data_of(recipe)
    before = parts_of(recipe, data).bottom.layer1.linear
    after = run_recipe(recipe).parts.bottom.layer1.linear
    with torch.no_grad():
        bias = after.bias - before.bias
        rows = (after.weight - before.weight)[bias != 0] / bias[bias != 0, None]
    x = data.train.batch(torch.arange(2), None).x
    errors = torch.cdist(rows, x).min(0).values / x.norm(dim=1)
    assert errors.max() < 1e-3
