"""The house: who may import whom, and names that no file may use."""

import ast
from pathlib import Path

import pytest

import cutlayer

PACKAGE = Path(cutlayer.__file__).parent
LEVELS = (
    {"errors", "descriptors", "integrity", "printable", "private", "finite", "record_names",
     "streams", "rows", "task", "named", "averaging", "message", "frame", "wire", "codecs", "reducing",
     "models", "trace", "cut", "frozen",
     "training", "slots", "memory",
     "data.partition", "data.augment", "data.files"},
    {"auxiliary", "meter", "saved_tensors", "clock", "client", "program", "schedules", "server", "steps", "stored", "kept", "aligned",
     "greedy", "probes", "shifts", "expected", "server_checks",
     "data", "data.sources", "data.images", "data.folder", "data.tables", "checkpoint"},
    {"methods", "transports", "evaluate"},
    {"recipes", "costs", "row_check", "loss_check", "fit", "head_check", "labels_cross",
     "building", "parties", "diagnose", "findings", "figures", "runs", "schema",
     "report", "report_cells", "outputs", "run_folder", "trained_data",
     "provenance", "rounds", "run", "compare", "estimate", "sides", "handshake", "certs",
     "revoked", "offences", "readmit", "access", "cluster", "serve", "join",
     "predict", "live", "final_weights", "audits"},
    {"cli", "cli_audit", "cli_list", "cli_network", "cli_operator", "flags", "console", "signals"},
)  # fmt: skip
# partitions are cut from sources, which know nothing of them
SAME_LEVEL_UP = {("data.partition", "data.sources")}


def module_name(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def level(name):
    while name:
        for i, names in enumerate(LEVELS):
            if name in names:
                return i
        name = name.rpartition(".")[0]
    return None


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imports(path):
    """Yield the package's modules that a file imports when it runs (not for types only)."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    base = path.relative_to(PACKAGE).with_suffix("").parts
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            parent = base[: len(base) - node.level]
            prefix = ".".join([*parent, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                whole = f"{prefix}.{alias.name}".strip(".")
                target = PACKAGE / Path(*whole.split("."))
                yield whole if target.with_suffix(".py").exists() or target.is_dir() else prefix


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_no_file_imports_from_a_higher_level(path):
    mine = level(module_name(path))
    assert mine is not None, f"{module_name(path)} has no level: add it to LEVELS"
    for name in imports(path):
        theirs = level(name)
        assert theirs is not None, name
        assert theirs <= mine or (module_name(path), name) in SAME_LEVEL_UP, f"{module_name(path)} imports {name}"


def test_methods_know_no_transport_schedule_or_codec_and_transports_no_message_kind():
    for path in (PACKAGE / "methods").glob("*.py"):
        names = {name.split(".")[0] for name in imports(path)}
        assert not names & {"transports", "schedules", "codecs", "server", "meter"}, path.name
    for path in (PACKAGE / "transports").glob("*.py"):
        text = path.read_text()
        assert not any(f'"{kind}"' in text for kind in ("smashed", "cut_grad", "sync", "go", "mark", "features")), path.name


def test_a_method_stays_below_100_lines_and_a_file_below_300():
    for path in FILES:
        lines = len(path.read_text().splitlines())
        assert lines <= (99 if path.parent.name == "methods" else 300), f"{path.name} has {lines} lines"


def test_nothing_is_unpickled_or_evaluated():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in ("eval", "exec", "torch.load", "pickle.load", "pickle.loads"), f"{path.name}: {name}"
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert ast.unparse(node.value) == "False", path.name


def test_law6_what_can_leave_a_client_is_a_yield_in_client_and_program():
    yielding = {path.name for path in FILES if any(isinstance(n, ast.Yield) for n in ast.walk(ast.parse(path.read_text())))}
    assert not {path.name for path in (PACKAGE / "methods").glob("*.py")} & yielding  # methods send through client.uplink alone
    trees = [ast.parse((PACKAGE / name).read_text()) for name in ("client.py", "program.py")]
    sends = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Yield)]
    assert {ast.unparse(node.value).split("(")[0] for node in sends} - {"Collect"} == {"Message", "client.sync"}
