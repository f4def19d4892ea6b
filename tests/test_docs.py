"""What the documentation shows, works: code runs, commands are understood, links lead somewhere, every field is named."""

import re
import runpy
import shlex

import pytest
from conftest import ROOT

from cutlayer.cli import Fields, _given, _sweep
from cutlayer.compare import cells
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


def commands():
    for page in PAGES:
        for body in code(page, "bash"):
            for line in body.splitlines():
                if line.strip():
                    yield pytest.param(shlex.split(line, comments=True), id=line.split("#")[0].strip())


@pytest.mark.parametrize("words", list(commands()))
def test_commands_of_the_pages_are_understood(words):
    import tyro

    assert words[0] == "cutlayer"
    verb, *rest = words[1:]
    if verb in ("list", "report"):
        return
    assert verb in ("run", "compare", "show")
    name, *flags = rest
    own = {"--over": [], "--seeds": [], "--dry-run": []}
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
    fields = _given(tyro.cli(Fields, args=kept))
    if verb == "compare":
        assert len(list(cells({**fields_of(name), **fields}, dict(map(_sweep, own["--over"])), [0]))) > 1
    else:
        load(name, **fields)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize(("script", "page"), [("fields_table", "recipes"), ("results_page", "results")])
def test_pages_that_are_made_are_up_to_date(script, page):
    made = runpy.run_path(str(ROOT / "scripts" / f"{script}.py"))["page"]()
    assert (ROOT / "docs" / f"{page}.md").read_text() == made, f"run python scripts/{script}.py"


def test_the_scripts_that_are_named_are_there():
    for page in PAGES:
        for name in re.findall(r"scripts/[a-z_]+(?:\.\w+)?", page.read_text()):
            assert (ROOT / name).exists(), name
    for name in ("demo", "test"):
        assert (ROOT / "scripts" / name).stat().st_mode & 0o111
