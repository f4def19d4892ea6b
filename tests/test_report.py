"""The report: what is read, the table's numbers, the findings on made-up records, and that the page stands alone."""

import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cutlayer.console import show_runs
from cutlayer.errors import BadInput
from cutlayer.figures import draw
from cutlayer.findings import against, baseline, comparable, paired
from cutlayer.report import Run, findings, labels, read, rows, write
from cutlayer.runs import groups_of, human

VOID = {"meta", "br", "img", "link", "hr", "input", "col", "use", "path", "rect"}
SMASHED = 8_192_000
PHASES = ("client_forward", "client_backward", "server_forward", "server_backward", "codec", "wait")


def made(method: str = "backprop", seed: int = 0, rounds: int = 10, label: str = "", peak: float = 0.9, **fields: Any) -> Run:
    """Return a run as outputs.py would leave it: two clients, ten classes, evaluated every second round and the last five."""
    decoupled = method == "auxiliary_loss"
    smashed = SMASHED // 4 if fields.get("codec") else SMASHED
    records: list[dict[str, Any]] = []
    for k in range(rounds):
        grown = 1 - math.exp(-(k + 1) / 3)
        accuracy = 0.1 + (peak - 0.1) * grown + 0.008 * math.sin(7 * k + 3 * seed + len(method))
        loss = 2.3 * (1 - grown) + (0.3 if decoupled else 0.2) + 0.02 * math.sin(5 * k + seed)
        norm = (30 if decoupled else 24) + 3 * grown + 0.2 * seed
        record: dict[str, Any] = {"round": k, "train_loss": loss, "activation_norm": norm}
        if k % 2 or k >= rounds - 5:
            record["accuracy"] = accuracy
        if decoupled:
            record |= {
                "gradient_cosine": 0.3 - 0.1 * grown + 0.02 * math.sin(k + seed),
                "effective_rank": 40 + 20 * grown + seed,
            }
            if "accuracy" in record:
                record["auxiliary_accuracy"] = accuracy - 0.1
        up = {"smashed": smashed * (k + 1), "labels": 4_000 * (k + 1), "weights": 20_000 * (k + 1)}
        down = {"weights": 20_000 * (k + 1), "evaluation": 10_000} | ({} if decoupled else {"cut_grad": smashed * (k + 1)})
        seconds = dict(zip(PHASES, (0.4, 0.8 + 0.2 * decoupled, 1.0, 2.1, 0.05, 0.0), strict=True))
        record |= {"bytes": {"up": up, "down": down}, "seconds": {n: s * (k + 1) for n, s in seconds.items()}}
        record["seconds_total"] = (5.0 + 0.1 * seed) * (k + 1)
        records.append(record)
    last = records[-1]
    curve = [r["accuracy"] for r in records if "accuracy" in r]
    recipe = {
        "scheme": "dsl" if decoupled else "vanilla", "name": "", "data": "cifar10", "data_dir": None, "num_train": None,
        "model": "resnet20", "cut": "shallow", "method": method, "num_clients": 2, "partition": "dirichlet", "rounds": rounds,
        "batch_size": 128, "lr": 0.1, "codec": {}, "seed": seed,
        **({"auxiliary": "mlp", "lambda_weight": 0.0} if decoupled else {}), **fields,
    }  # fmt: skip
    table: dict[str, Any] = {}
    for way in ("up", "down"):
        table[way] = {role: {"payload": n, "wire": n + 640} for role, n in last["bytes"][way].items()}
    return Run(
        {
            "metric": "accuracy", "accuracy_final": curve[-1], "accuracy_last5": sum(curve[-5:]) / 5,
            "accuracy_peak": max(curve), "rounds": rounds,
            "bytes": {**table, "client": {"client0": 1, "client1": 2}, "peer_hand_over": 200_000},
            "seconds": last["seconds"], "seconds_total": last["seconds_total"],
            "peak_memory_bytes": {"client": 21_500_000 + 4_000_000 * (not decoupled), "server": 61_000_000},
            "macs_per_sample": {"bottom": 12_000_000, "top": 28_900_000, **({"auxiliary": 90_000} if decoupled else {})},
            "parameters": {"bottom": 14_000, "top": 258_000}, "num_clients": 2, "samples": [2_600, 2_400],
            "class_counts": [[260 + 20 * c for c in range(10)], [240 - 20 * c for c in range(10)]],
            "seed": seed, "release": "cifar-10 sha256 6d958be0", "recipe": recipe, "digest": "ab" * 32,
            "commit": "0123456789ab", "versions": {"cutlayer": "0.1.0", "torch": "2.9.0"},
            "machine": {"processor": "a <fast> one", "threads": 2, "gpu": None},
        },
        records, label,
    )  # fmt: skip


PAIR = [made(), made("auxiliary_loss", peak=0.88)]
CODED = {"codec": {"smashed": "float8"}, "peak": 0.86}
NINE = [
    *(made(seed=s) for s in range(3)),
    *(made("auxiliary_loss", s, peak=0.88) for s in range(3)),
    *(made("auxiliary_loss", s, **CODED) for s in range(3)),
]


class Balanced(HTMLParser):
    """Keeps the open elements and everything that a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.look(attrs)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.look(attrs)

    def look(self, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def folder(tmp_path: Path, run: Run, summary: bool = True) -> Path:
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in run.records))
    (tmp_path / "recipe.toml").write_text('method = "backprop"\nnum_clients = 2\n')
    if summary:
        (tmp_path / "summary.json").write_text(json.dumps(run.summary))
    return tmp_path


@pytest.mark.parametrize("runs", [PAIR[:1], PAIR, NINE], ids=["one", "pair", "nine"])
def test_the_page_stands_alone_and_is_whole(tmp_path: Path, runs: list[Run]) -> None:
    text = write(runs, tmp_path / "deep" / "report.html", "A <title>").read_text()
    parser = Balanced()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    assert all(load.startswith(("#", "data:")) for load in parser.loads)
    assert not re.search(r"https?://|@import|<script|url\((?!#)", text)
    assert len(set(parser.ids)) == len(parser.ids)
    assert all(reference in parser.ids for reference in re.findall(r"url\(#([^)]*)\)", text))
    assert "A &lt;title&gt;" in text
    assert "a &lt;fast&gt; one" in text
    assert all(label in text for label in labels(runs))
    assert f"{10 * (SMASHED + 4_000 + 20_000):,} bytes" in text
    assert len(text) < 600_000


def test_the_same_runs_give_the_same_page(tmp_path: Path) -> None:
    assert write(PAIR, tmp_path / "a.html").read_text() == write(PAIR, tmp_path / "b.html").read_text()


def test_nothing_to_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no runs"):
        write([], tmp_path / "report.html")
    with pytest.raises(BadInput, match="no runs"):
        rows([])


def test_labels_name_what_differs_and_seeds_share_one() -> None:
    assert labels(PAIR) == ["scheme=vanilla", "scheme=dsl"]
    assert labels(NINE)[::3] == [
        "scheme=vanilla, codec=none",
        "scheme=dsl, codec=none",
        "scheme=dsl, codec=smashed float8",
    ]
    assert len(set(labels(NINE))) == 3
    assert labels([made(seed=0), made(seed=1)]) == ["vanilla", "vanilla"]
    assert labels([made(), made()]) == ["vanilla", "vanilla (2)"]  # the same seed twice is no second seed
    assert labels([made(label="mine"), made("auxiliary_loss")]) == ["mine", "scheme=dsl"]
    # under one scheme the method is what differs; what follows from the scheme is not said
    assert labels([made(scheme="x"), made("auxiliary_loss", scheme="x")]) == ["method=backprop", "method=auxiliary_loss"]
    assert labels([made(), made("uncut", scheme="fedavg", cut="none")]) == ["scheme=vanilla", "scheme=fedavg"]
    assert labels([made(name="one"), made("auxiliary_loss", name="two")]) == ["one", "two"]


def test_names_join_no_configurations_and_keep_no_seeds_apart() -> None:
    three = [made(name="n1"), made(name="n2", seed=1, lr=0.001), made(name="n3", seed=2)]
    assert labels(three) == ["lr=0.1", "lr=0.001", "lr=0.1"]
    assert labels([made(name="n1"), made(name="n2", lr=0.001)]) == ["n1", "n2"]
    assert labels([made(name="n1"), made(name="n1", seed=1, lr=0.001), made(name="n2")]) == ["lr=0.1", "lr=0.001", "lr=0.1 (2)"]
    two = [made(name=name, lr=lr, model=model) for name, model in (("a", "mlp"), ("b", "resnet8")) for lr in (0.1, 0.03)]
    assert labels(two) == ["model=mlp, lr=0.1", "model=mlp, lr=0.03", "model=resnet8, lr=0.1", "model=resnet8, lr=0.03"]
    assert len(rows(two)[1]) == 4
    assert labels([made(name="again"), made(name="again")]) == ["again", "again (2)"]
    assert labels([made(name="once"), made(name="more")]) == ["once", "more"]
    assert labels([made(label="mine"), made(label="mine", seed=1, lr=0.001)]) == ["mine, lr=0.1", "mine, lr=0.001"]


def test_rows_of_single_runs_are_the_numbers() -> None:
    header, table = rows(PAIR)
    first, second = (dict(zip(header, row, strict=True)) for row in table)
    assert first["accuracy final %"] == f"{100 * PAIR[0].summary['accuracy_final']:.2f}"
    assert (first["bytes up"], first["bytes down"], second["bytes down"]) == ("82.2 MB", "82.1 MB", "200 kB")  # no evaluation
    assert (first["client peak memory"], second["client peak memory"]) == ("25.5 MB", "21.5 MB")
    assert (first["client multiply-adds / sample"], second["client multiply-adds / sample"]) == ("12.0 M", "12.1 M")
    assert first["seconds"] == "50.0"


def test_waiting_is_a_phase_only_where_nobody_works_meanwhile() -> None:
    for transport, total in (("inprocess", 45.5), ("mpi", 75.5)):
        run = made("auxiliary_loss", transport=transport)
        run.summary["seconds"] = {**run.summary["seconds"], "wait": 30.0}
        (svg,) = (drawn.svg for drawn in draw(groups_of([run]), "accuracy") if drawn.title == "Time by phase")
        assert f">{total} s<" in svg
        assert (">wait<" in svg) == (transport == "mpi")


def test_seeds_give_the_mean_and_a_student_interval() -> None:
    runs = [made(seed=s) for s in range(3)]
    for run, accuracy in zip(runs, (0.90, 0.91, 0.92), strict=True):
        run.summary["accuracy_final"] = accuracy
    header, table = rows(runs)
    row = dict(zip(header, table[0], strict=True))
    assert len(table) == 1
    assert row["seeds"] == "3"
    assert row["accuracy final %"] == "91.00 ± 2.48"  # 4.303 * 1 / sqrt(3)
    assert row["bytes up"] == "82.2 MB"  # equal in all seeds


def of_metric(run: Run, metric: str, final: float) -> Run:
    """Return the run as one whose figure is another metric's."""
    records = [{metric if k == "accuracy" else k: v for k, v in record.items()} for record in run.records]
    return Run({**run.summary, "metric": metric, "accuracy_final": final}, records)


def test_each_metric_has_its_name_its_scale_and_its_figure(tmp_path: Path) -> None:
    accurate, wrong = made(), of_metric(made(model="mlp"), "mean_error", 0.125)
    accurate.summary["accuracy_final"] = 0.9
    header, table = rows([accurate, wrong])
    assert header[2:5] == ["final", "last 5", "peak"]
    assert [row[2] for row in table] == ["accuracy 90.00 %", "mean_error 0.1250"]
    assert rows([accurate])[0][2:5] == [f"accuracy {when} %" for when in ("final", "last 5", "peak")]
    assert rows([wrong])[0][2:5] == [f"mean_error {when}" for when in ("final", "last 5", "peak")]
    page = write([accurate, wrong], tmp_path / "report.html").read_text()
    for title in ("Test accuracy against rounds", "mean_error against rounds", "Training loss"):
        assert page.count(f"<figcaption>{title}</figcaption>") == 1
    # a run without a figure yet decides no name
    assert rows([Run({"recipe": {"model": "gin"}, "rounds": 0}, []), wrong])[0][2] == "mean_error final"


@pytest.mark.parametrize(("width", "hidden"), [(200, 0), (110, 4), (80, 5), (50, 8)])
def test_a_narrow_terminal_has_every_label_and_is_told_what_it_does_not_show(
    width: int, hidden: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.StringIO()
    monkeypatch.setattr("cutlayer.console.console", Console(file=file, width=width, markup=False))
    runs = [made(scheme="splitfed_v1"), made(scheme="dsl"), *(made("auxiliary_loss", seed, peak=0.88) for seed in (0, 1, 2))]
    show_runs(runs)
    said = file.getvalue()
    assert all(len(line) <= width for line in said.splitlines())
    assert all(f" scheme={scheme}" in said for scheme in ("splitfed_v1", "dsl"))
    assert "accuracy" in said
    assert "±" in said
    assert (f"{hidden} more columns are in the report" in said) == bool(hidden)


def test_a_missing_figure_is_a_dash(tmp_path: Path) -> None:
    bare = Run({"recipe": {}, "rounds": 0}, [])
    assert rows([bare])[1][0][2:] == ["-"] * 3 + ["0 B"] * 2 + ["-"] * 4
    write([bare], tmp_path / "report.html")
    assert findings(bare) == []


def test_read_gives_back_what_was_written(tmp_path: Path) -> None:
    run = read(folder(tmp_path, PAIR[0]))
    assert (run.summary, run.records) == (PAIR[0].summary, PAIR[0].records)


def test_read_of_a_run_that_goes_on_takes_its_rounds(tmp_path: Path) -> None:
    where = folder(tmp_path, PAIR[0], summary=False)
    with (where / "records.jsonl").open("a") as file:
        file.write('{"round": 10, "acc')
    run = read(where)
    assert len(run.records) == 10
    assert run.recipe["num_clients"] == 2
    assert rows([run])[1][0][5] == "82.2 MB"
    assert len([r for r in run.records if "accuracy" in r]) == 7
    assert run.summary["accuracy_last5"] == pytest.approx(PAIR[0].summary["accuracy_last5"])
    assert "10 rounds so far" in write([run], where / "report.html").read_text()


def test_a_damaged_round_is_no_round(tmp_path: Path) -> None:
    where = folder(tmp_path, PAIR[0])
    text = (where / "records.jsonl").read_text()
    (where / "records.jsonl").write_text(text[:-5])
    with pytest.raises(BadInput, match="holds no run that can be read"):
        read(where)
    (where / "summary.json").unlink()
    assert len(read(where).records) == 9
    (where / "records.jsonl").write_text("[3]\n" + text)
    with pytest.raises(BadInput, match=r"holds no run that can be read \(\[3\] is no table\)"):
        read(where)
    (where / "records.jsonl").write_text(text.replace('"round": 3', '"round"', 1))
    with pytest.raises(BadInput, match="holds no run that can be read"):
        read(where)


def test_read_of_no_run_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="give the folder"):
        read(tmp_path)
    (tmp_path / "records.jsonl").write_text("")
    with pytest.raises(BadInput, match="no finished round"):
        read(tmp_path)


def with_series(name: str, values: list[float], **other: list[float]) -> Run:
    run = made("auxiliary_loss", rounds=len(values))
    for column, series in {name: values, **other}.items():
        for record, value in zip(run.records, series, strict=True):
            record[column] = value
    return run


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (with_series("train_loss", [2.0, 1.0, 0.4, 0.9, 4.0]), r"train_loss rose from 0\.4 \(round 3\) to 4 \(round 5\)"),
        (with_series("train_loss", [2.0, 1.0, math.nan, 1.0]), r"not a finite number from round 3"),
        (with_series("accuracy", [0.1, 0.12, 0.1, 0.1]), r"guessing gives 10\.0%\. Try"),
        (with_series("accuracy", [0.1, 0.6, 0.1, 0.1]), r"after 60\.0% in round 2: it fell back"),
        (with_series("effective_rank", [40.0, 30.0, 6.0]), r"effective_rank at the cut fell from 40\.0 to 6\.0"),
        (with_series("gradient_cosine", [0.2, 0.1, -0.1, -0.2, -0.3, -0.3]), r"gradient_cosine is -0\.27"),
        (with_series("activation_norm", [3.0, 9.0, 45.0]), r"activation_norm at the cut went from 3 to 45"),
        (
            with_series("accuracy", [0.2, 0.4, 0.5, 0.5, 0.51, 0.5], auxiliary_accuracy=[0.2, 0.3, 0.4, 0.5, 0.6, 0.65]),
            r"auxiliary_accuracy rose by 17\.5 points and the server's by 0\.5",
        ),
    ],
)  # fmt: skip
def test_signatures_of_failure_are_named(run: Run, said: str) -> None:
    assert re.search(said, findings(run)[0])


def test_a_sound_run_has_no_trouble() -> None:
    assert findings(PAIR[0]) == []
    run = made("auxiliary_loss")
    (only,) = findings(run)
    assert only == "No batch was answered: 81.9 MB of activations went up, and only weights (200 kB) came down."
    del run.summary["bytes"]["down"]["weights"]
    (only,) = findings(run)
    assert only == "Nothing came down but evaluation (10.0 kB): 81.9 MB of activations went up and got no answer."


def test_a_heavy_client_is_named() -> None:
    run = made()
    run.summary["peak_memory_bytes"] = {"client": 5_000_000, "server": 4_000_000}
    (said,) = findings(run)
    assert said.startswith("The client's peak memory (5.00 MB) is not below the server's (4.00 MB). Cut earlier")


def test_two_findings_about_memory_are_both_told_with_their_seeds(tmp_path: Path) -> None:
    runs = [made(seed=seed) for seed in range(3)]
    for run in runs:
        run.summary["peak_memory_bytes"] = {"client": 5_000_000, "server": 4_000_000}
        run.summary["bytes_left_after_step"] = {"client": 100, "server": 0}
    page = write(runs, tmp_path / "report.html").read_text()
    assert page.count("(3 of 3 seeds; numbers of the first.)") == 2
    assert "The client still holds 100 B of a batch" in page
    assert "is not below the server" in page


def test_beside_the_conventional_run_bytes_are_exactly_half() -> None:
    conventional, decoupled = made(), made("auxiliary_loss")
    assert baseline(decoupled, [decoupled, conventional]) is conventional
    assert baseline(conventional, [decoupled, conventional]) is None
    bytes_, memory = against(decoupled, conventional)
    assert bytes_.text.startswith(
        "The bytes at the cut are exactly half those of the conventional run: 81,920,000 against 163,840,000."
    )
    assert memory.text == "The client's peak memory is below that of the conventional run: 21.5 MB against 25.5 MB."
    (coded,) = against(made("auxiliary_loss", codec={"smashed": "float8"}), conventional)
    assert "(they also differ in codec)" in coded.text


def test_clients_that_have_not_learned_for_long_are_told() -> None:
    run = made()
    for record in run.records:
        record["state"] = float(min(record["round"], 2))
    assert any("have not learned since round 1 of 10" in text for text in findings(run))
    run.records[-3]["state"] = 0.0
    assert not any("have not learned" in text for text in findings(run))


def test_other_data_or_other_shares_are_not_set_side_by_side() -> None:
    assert comparable(made("auxiliary_loss", data="digits"), made(data="digits"))
    assert not comparable(made("auxiliary_loss", data="digits"), made(data="breast_cancer"))
    assert not comparable(made(num_clients=2), made(num_clients=1))


def test_seeds_are_compared_in_pairs() -> None:
    mine, others = [made("auxiliary_loss", s) for s in range(3)], [made(seed=s) for s in (2, 0, 1)]
    for run, accuracy in zip(mine, (0.90, 0.91, 0.92), strict=True):
        run.summary["accuracy_final"] = accuracy
    for run, accuracy in zip(others, (0.93, 0.92, 0.94), strict=True):
        run.summary["accuracy_final"] = accuracy
    three = paired(mine, others, "A")
    assert three is not None
    assert three.text == "Final accuracy minus that of A: -2.00 ± 2.48 points (paired differences of 3 seeds, 95 % interval)."
    one = paired(mine[:1], others, "A")
    assert one is not None
    assert "-2.00 points, from one seed" in one.text
    assert paired([made(seed=8)], others, "A") is None
    one = paired([of_metric(mine[0], "error", 0.0012)], [of_metric(others[1], "error", 0.0005)], "A")
    assert one is not None
    assert one.text.startswith("Final error minus that of A: +0.0007, from one seed")


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (None, "-"), (0, "0 B"), (7, "7 B"), (999, "999 B"), (1_000, "1.00 kB"), (16_777_216, "16.8 MB"), (999_960, "1.00 MB"),
        (2e15, "2,000 TB"), (0.5, "0.50 B"),
    ],
)  # fmt: skip
def test_human_numbers(number: float | None, said: str) -> None:
    assert human(number) == said
