"""What the documentation shows, works: code runs, commands are understood, links lead somewhere, every field is named."""

import functools
import os
import re
import runpy
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

import cutlayer as cl
import cutlayer.cli
from cutlayer import cli_audit, cli_network, frame
from cutlayer.cli import _sweep
from cutlayer.compare import cells
from cutlayer.flags import Fields, given
from cutlayer.recipes import fields_of, load

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def code(page, language):
    return [body for kind, body in FENCE.findall(page.read_text()) if kind == language]


@pytest.mark.parametrize("page", [page for page in PAGES if code(page, "python")], ids=lambda page: page.name)
def test_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "page.py"
    script.write_text("\n".join(code(page, "python")))
    runpy.run_path(str(script))
    if page.name == "README.md":
        assert "<svg" in (tmp_path / "report.html").read_text()


def test_the_method_and_the_codec_of_your_own_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mypackage.py").write_text("\n".join(code(ROOT / "docs" / "your-own.md", "python")))
    monkeypatch.syspath_prepend(tmp_path)
    fields = {"method": "mypackage:Damped", "damping": 0.25, "codec": {"smashed": "mypackage:eighths"}}
    recipe = load("demo", model="mlp", rounds=2, num_train=128, **fields)
    summary = cl.run_recipe(recipe).summary
    assert summary["recipe"]["damping"] == 0.25
    assert summary["bytes"]["up"]["smashed"]["payload"] == 2 * 128 * 64
    monkeypatch.delitem(sys.modules, "mypackage")


def test_every_figure_of_a_summary_and_of_a_record_is_defined(tmp_path):
    page = (ROOT / "docs" / "measuring.md").read_text()
    result = cl.run_recipe(load("demo", model="resnet8", rounds=1, warmup_rounds=0, num_train=128, num_test=64))
    named = set(re.findall(r"[a-z_0-9]+", " ".join(re.findall(r"`([^`]+)`", page))))
    assert {*result.summary} | {name for record in result.records for name in record} <= named


def test_the_page_of_the_command_line_names_every_command_and_what_a_run_writes(tmp_path):
    page = (ROOT / "docs" / "cli.md").read_text()
    cl.run_recipe(load("demo", model="resnet8", rounds=2, num_train=128, num_test=64, tap=True), tmp_path)
    for path in tmp_path.iterdir():
        assert f"`{path.name}" in page, path.name
    for command in re.search(r"run \| .*", cutlayer.cli.__doc__.rstrip("."))[0].split(" | "):
        assert f"`cutlayer {command} " in page, command
    for number in (cutlayer.cli.WRONG, cutlayer.cli.FAILED, cutlayer.cli.INTERRUPTED):
        assert f"| {number} |" in page


def test_the_page_of_the_wire_has_the_codes_and_bounds(tmp_path):
    page = " ".join((ROOT / "docs" / "wire.md").read_text().split())
    assert ", ".join(str(dtype).removeprefix("torch.") for dtype in frame.DTYPES) in page
    assert f"{frame.MAX_ROLES:,} roles" in page
    assert (
        f"{frame.MAX_PARTS:,} parts in all, {frame.MAX_NUMBERS:,} numbers and a header of {frame.MAX_HEADER >> 20} MiB" in page
    )
    assert f"{frame.MAX_RANK} axes" in page
    assert f"{frame.MAX_BYTES >> 30} GiB" in page
    assert f"at most {frame.MAX_NAME}" in page


def commands():
    for page in PAGES:
        for body in code(page, "bash"):
            for line in body.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if "cutlayer" in words:  # behind mpiexec or srun, too
                    yield pytest.param(words[words.index("cutlayer") :], id=" ".join(words)[:80])


@pytest.mark.parametrize("words", list(commands()))
def test_commands_of_the_pages_are_understood(words):
    understood(words)


def understood(words):
    """Assert that the command line and the recipe take these words."""
    import tyro

    verb, *rest = words[1:]
    if verb in ("list", "report"):
        return
    if verb == "audit":
        assert tyro.cli(functools.wraps(cli_audit.audit)(lambda folder, /, **flags: folder), args=rest)
        return
    if verb in ("serve", "join", "predict", "certs"):

        def recipe(name, /, *folder, fields=None, predict=False, **flags):
            if verb == "certs":
                return True
            kept = {field: value for field, value in given(fields).items() if field != "data"}  # join's may be the reader's own
            trains = verb != "predict" and not predict
            return load(name, **kept, **({"transport": "grpc"} if trains else {}))

        taken = functools.wraps(getattr(cli_network, verb))(recipe)
        assert tyro.cli(taken, args=[word for i, word in enumerate(rest) if word != "..." or rest[i - 1].startswith("--")])
        return
    assert verb in ("run", "compare", "show")
    name, *flags = rest
    own = {"--over": [], "--seeds": [], "--out": [], "--max-minutes": []}
    kept, i = [], 0
    while i < len(flags):
        if flags[i] == "--dry-run":
            i += 1
        elif flags[i] in own:
            own[flags[i]].append(flags[i + 1])
            i += 2
        else:
            kept += flags[i : i + 2]
            i += 2
    fields = given(tyro.cli(Fields, args=kept))
    if verb == "compare":
        assert len(list(cells(fields_of(name), dict(map(_sweep, own["--over"])), [0], fields))) > 1
    else:
        load(name, **fields)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize(
    ("script", "page"), [("fields_table", "recipes"), ("results_page", "results"), ("schemes_table", "scheme-table")]
)
def test_pages_that_are_made_are_up_to_date(script, page, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")  # as when it is started by its name
    made = runpy.run_path(str(ROOT / "scripts" / f"{script}.py"))["page"]()
    assert (ROOT / "docs" / f"{page}.md").read_text() == made, f"run python scripts/{script}.py"


def test_an_environment_that_was_interrupted_before_it_had_pip_is_completed(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    how = {
        "CUTLAYER_VENV": str(tmp_path / "venv"),
        "CUTLAYER_TORCH": "skip",
        "PYTHON": sys.executable,
        "PATH": os.environ["PATH"],
    }
    words = ["bash", "-c", f"source {ROOT}/scripts/setup.sh; setup ''"]
    done = subprocess.run(words, env=how, capture_output=True, text=True, check=False)
    assert "has no torch: install it there first" in done.stderr  # so far it came
    assert subprocess.run([tmp_path / "venv" / "bin" / "python", "-c", "import pip"], check=False).returncode == 0


@pytest.mark.parametrize(
    ("there", "stamp", "asked", "refused"),
    [
        ("2.9.0+cpu", "[dev] cpu 1 2", "cuda", True),
        ("2.9.0+cpu", None, "cuda", True),
        ("2.9.0+cu128", "[dev] cuda 1 2", "cpu", True),
        ("2.9.0+cu128", "[dev] cuda 1 2", "", True),
        ("2.9.0+cu128", "[dev] cpu 1 2", "cpu", False),  # the usual index had no other
        ("2.9.0+cpu", "[dev] cpu 1 2", "cpu", False),
        ("2.9.0+cu128", "[dev] cpu 1 2", "skip", False),
    ],
)
def test_an_environment_of_another_build_of_torch_is_not_stamped_as_this_one(there, stamp, asked, refused, tmp_path):
    venv = tmp_path / "venv"
    for name, body in {
        "bin/python": f'#!/bin/sh\nPYTHONPATH={tmp_path}/fake exec {sys.executable} "$@"\n',
        ".cutlayer": stamp,
    }.items():
        if body:
            (venv / name).parent.mkdir(parents=True, exist_ok=True)
            (venv / name).write_text(body)
    (venv / "bin" / "python").chmod(0o755)
    fake = tmp_path / "fake" / "pip"
    fake.mkdir(parents=True)
    (fake / "__init__.py").touch()  # without it the folder is a namespace package, and the real pip is found first
    (fake / "__main__.py").write_text(
        "import pathlib, sys\npathlib.Path(__file__).with_name('asked').write_text(' '.join(sys.argv[1:]))\n"
    )
    version = f"class version:\n    cuda = {None if 'cpu' in there else '12.8'}\n"
    (tmp_path / "fake" / "torch.py").write_text(f"__version__ = {there!r}\n{version}")
    how = {"CUTLAYER_VENV": str(venv), "CUTLAYER_TORCH": asked, "PYTHON": sys.executable, "PATH": os.environ["PATH"]}
    words = ["bash", "-c", f"source {ROOT}/scripts/setup.sh; setup '[dev]'"]
    done = subprocess.run(words, env={**how, "CUTLAYER_OFFLINE": "1"}, capture_output=True, text=True, check=False)
    now = (venv / ".cutlayer").read_text() if (venv / ".cutlayer").exists() else None
    if refused:
        assert (done.returncode, done.stderr.count("\n"), now) == (2, 1, stamp)
        assert f"delete {venv} and start again" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert (fake / "asked").read_text().startswith("install ")
        assert now.startswith(f"[dev] {asked} ")


def test_the_scripts_that_are_named_are_there():
    for page in PAGES:
        for name in re.findall(r"scripts/[a-z_]+(?:\.\w+)?", page.read_text()):
            assert (ROOT / name).exists(), name
    for name in ("demo", "test"):
        assert (ROOT / "scripts" / name).stat().st_mode & 0o111
