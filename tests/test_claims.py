"""docs/claims.md: every claim has a verdict, every command parses, every file of results exists."""

import importlib
import re
import shlex

import pytest
from conftest import ROOT
from test_docs import understood

PAGE = (ROOT / "docs" / "claims.md").read_text()
CLAIMS = re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]
VERDICTS = ("**Holds**", "**Holds when**", "**Not found**", "**Not testable here**")
QUOTED = [" ".join(words.split()) for words in re.findall(r"`([^`]+)`", PAGE)]
BENCHMARKS = sorted({words for words in QUOTED if words.startswith("python benchmarks/")})
COMMANDS = sorted({words for words in QUOTED if words.startswith("cutlayer run ")})
TESTS = sorted({words for words in QUOTED if words.startswith("python -m pytest ")})


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.partition(".")[0])
def test_a_claim_has_a_verdict_first_and_a_command_unless_it_cannot_be_tested(claim):
    title, _, body = claim.partition("\n")
    assert body.startswith(VERDICTS), title
    assert re.search(r"`(python|cutlayer)\s", body) or body.startswith("**Not testable here**"), title


def test_claims_are_numbered_and_all_sources_are_there():
    assert [int(claim.partition(".")[0]) for claim in CLAIMS] == list(range(1, len(CLAIMS) + 1))
    assert len(CLAIMS) >= 35


@pytest.mark.parametrize("verdict", VERDICTS)
def test_the_table_has_the_claims_of_a_verdict(verdict):
    mine = [claim.partition(".")[0] for claim in CLAIMS if claim.partition("\n")[2].startswith(verdict)]
    assert f"| {verdict.strip('*')} | {len(mine)} | {', '.join(mine)} |" in PAGE


@pytest.mark.parametrize("command", BENCHMARKS)
def test_the_command_of_a_benchmark_parses(command, monkeypatch):
    file, *words = shlex.split(command)[1:]
    source = (ROOT / file).read_text()
    name = file.removeprefix("benchmarks/").removesuffix(".py")
    if "def cells(" not in source:
        assert all(f'"{word}"' in source for word in words if word.startswith("--"))
        return
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    found = importlib.import_module("cells")
    tables = found.of(name)
    args = found.parser(name, "", profiles=tables).parse_args(words)
    assert found.choose(tables[args.profile], args.only), f"{args.only} matches no cell"


@pytest.mark.parametrize("command", TESTS)
def test_the_command_of_a_test_names_tests_that_are_there(command):
    words = shlex.split(command)[3:]
    source = (ROOT / words[0]).read_text()
    names = re.findall(r"def (test_\w+)", source)
    assert "-k" not in words or any(words[words.index("-k") + 1].lower() in name.lower() for name in names)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_of_a_run_is_understood(command):
    understood(shlex.split(command))


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.partition(".")[0])
def test_a_claim_names_the_results_of_its_commands(claim):
    words = " ".join(claim.split())
    assert set(re.findall(r"`python benchmarks/(\w+)\.py", words)) == set(
        re.findall(r"`benchmarks/results/(\w+)\.jsonl`", words)
    )


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`(benchmarks/results/[^`]+)`", PAGE))))
def test_a_file_of_results_exists(path):
    assert (ROOT / path).stat().st_size
