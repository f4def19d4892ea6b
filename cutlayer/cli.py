"""cutlayer run | compare | show | report | audit | list | serve | join | predict | readmit | certs."""

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg

from . import cli_audit, cli_list, cli_network, cli_operator
from .console import (
    FAILED,
    INTERRUPTED,
    TERMINATED,
    WRONG,
    advised,
    console,
    follow,
    progress_bar,
    show_estimate,
    show_failure,
    show_finished,
    show_paths,
    show_runs,
    told,
    trace,
)  # fmt: skip
from .errors import Advice, BadInput, RunFailed, shortage
from .flags import Fields, check_paths, current_folder, folder_of, given, none
from .integrity import check_trained
from .printable import printable
from .recipes import Recipe, fields_of, load
from .recipes.toml import to_toml
from .saved_tensors import heard
from .signals import terminable


def run(
    recipe: Positional[str],
    /,
    fields: OmitArgPrefixes[Fields],  # type: ignore[valid-type]
    out: Path | None = None,
    dry_run: bool = False,
) -> int:
    """Train one recipe and write tables, figures and weights to a folder.

    Args:
        recipe: a named recipe (cutlayer list recipes), or a flat TOML file.
        fields: any field of the recipe.
        out: where everything is written; runs/<recipe>-<digest> if not given. A run that stopped goes on.
        dry_run: print bytes, memory and parameters, and write nothing.
    """
    from .compare import run_in

    made = load(recipe, **given(fields))
    if dry_run:
        from .estimate import estimate

        show_estimate(made.name or made.scheme, estimate(made))
        return 0
    folder = out or folder_of(made)
    if made.transport == "mpi":
        return run_mpi(made, recipe, folder)
    with progress_bar() as bar:
        run_in(made, folder, progress=follow(bar, made.name or recipe))
    show_finished(folder)
    return 0


def run_mpi(made: Recipe, recipe: str, folder: Path) -> int:
    """Run under mpiexec: all ranks are here, and rank 0 speaks for them."""
    from . import cluster

    if cluster.rank():
        warnings.simplefilter("ignore", Advice)  # rank 0 says it
        try:
            cluster.run(made, folder)
        except Exception as error:
            return WRONG if isinstance(error, BadInput) else FAILED
        return 0
    with progress_bar() as bar:
        cluster.run(
            made, folder, progress=follow(bar, made.name or recipe), say=lambda line: console.print(line, highlight=False)
        )
    show_finished(folder)
    return 0


def compare(
    recipe: Positional[str],
    /,
    fields: OmitArgPrefixes[Fields],  # type: ignore[valid-type]
    over: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, arg(metavar="FIELD=A,B")] = (),
    seeds: str | None = None,
    out: Path | None = None,
    max_minutes: float | None = None,
    baselines: bool = True,
) -> int:
    """Run the product of everything in --over and --seeds; what is done is kept, what stopped goes on.

    Args:
        recipe: a named recipe, or a flat TOML file.
        fields: any field of the recipe, for all runs.
        over: FIELD=A,B,C; may be given several times.
        seeds: 0,1,2; the recipe's own if not given.
        out: where the runs and the report are written; runs/compare-<recipe> if not given.
        max_minutes: stop at the next mark after so many minutes; the same command goes on.
        baselines: run the uncut network beside them: centralised, each client alone, FedAvg.
    """
    if max_minutes is not None and not max_minutes >= 0:
        raise BadInput(f"--max-minutes {max_minutes}: take a number of minutes, 0 or more")
    from .compare import baselines as baselines_of, cells, compare as compare_all

    wanted, flags = _sweeps(over), given(fields)
    base = fields_of(recipe)
    sweeps = {field: f"--over {field}=..." for field in wanted} | ({} if seeds is None else {"seed": f"--seeds {seeds}"})
    for field in (field for field in flags if field in sweeps):
        raise BadInput(f"--{field.replace('_', '-')} {flags[field]} beside {sweeps[field]}: drop one of the two")
    own = {**base, **flags}.get("seed", 0)
    recipes = list(cells(base, wanted, _seeds(seeds) if seeds is not None else [own], flags))
    recipes += baselines_of(recipes) if baselines else []
    folder = out or Path("runs") / f"compare-{Path(recipe).stem}"
    if (folder / "recipe.toml").exists():
        raise BadInput(f"{folder} holds a run, whose report.html would be replaced; choose another --out")
    swept = [*wanted, "seed"]
    failures: list[Exception] = []
    with progress_bar() as bar:

        def progress(i: int, cell: Recipe) -> Any:
            flat = cell.flat()
            label = ", ".join(
                f"{name}={flat[name]}" for name in (swept if cell.cut != "none" else ("scheme", "seed")) if name in flat
            )
            return follow(bar, f"{i + 1}/{len(recipes)} {label}")

        def failed(cell: Recipe, error: Exception) -> None:
            failures.append(error)
            trace(error)
            show_failure(cell.digest()[:12], shortage(error) or str(error))

        done, complete = compare_all(recipes, folder, max_minutes=max_minutes, progress=progress, failed=failed)
    if not done:
        if failures:
            raise RunFailed("no run was finished")
        console.print("no run is done yet; the same command goes on")
        return 0
    from .report import write

    page = write(done, folder / "report.html", f"cutlayer: {recipe}")
    show_runs(done)
    show_paths({"report": page, "runs": folder})
    if not complete:
        console.print(f"{len(done)} of {len(recipes)} runs are done; the same command goes on with the others.")
    return FAILED if failures else 0


def show(recipe: Positional[str], /, fields: OmitArgPrefixes[Fields]) -> int:  # type: ignore[valid-type]
    """Print a recipe with every field, as the TOML file that `run` would read.

    Args:
        recipe: a named recipe, or a flat TOML file.
        fields: any field of the recipe.
    """
    made = load(recipe, **given(fields))
    print(to_toml(made.flat()), end="")
    return 0


def report(folders: Positional[tuple[Path, ...]], /, out: Path = Path("report.html")) -> int:
    """Write one page that compares finished runs, and print its table.

    Args:
        folders: folders of runs, or of comparisons.
        out: the page.
    """
    from .report import read, write

    found = {folder: sorted(folder.rglob("summary.json")) for folder in folders}
    without = [str(folder) for folder, paths in found.items() if not paths]
    if without or not folders:
        raise BadInput(f"no summary.json in {', '.join(without) or 'nothing given'}; name folders that run or compare wrote")
    once = {path.parent.resolve(): path.parent for paths in found.values() for path in paths}
    runs = [read(folder) for folder in once.values()]
    for folder in once.values():
        try:
            check_trained(folder)
        except BadInput as damage:  # its figures are in files of their own
            warnings.warn(f"{damage}; the report shows its figures all the same", Advice, stacklevel=1)
    page = write(runs, out)
    show_runs(runs)
    show_paths({"report": page})
    return 0


def _sweeps(texts: Sequence[str]) -> dict[str, list[str | None]]:
    found = dict[str, list[str | None]]()
    for field, values in map(_sweep, texts):
        if field in found:
            raise BadInput(f"--over {field} is given twice; write all its values in one, {field}=A,B,C")
        found[field] = values
    return found


def _sweep(text: str) -> tuple[str, list[str | None]]:
    name, mark, values = text.partition("=")
    if not mark or not values:
        raise BadInput(f"--over {text!r}: write FIELD=A,B,C")
    field, found = name.strip().replace("-", "_"), [value.strip() for value in values.split("," if ";" not in values else ";")]
    if "" in found:
        raise BadInput(f"--over {text!r} has an empty value; write none where a field may be unset")
    return field, [none(field, value) for value in found]


def _seeds(text: str) -> list[int]:
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise BadInput(f"--seeds {text!r}: write whole numbers, 0,1,2") from None


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 ok, 1 failure in the run, 2 bad input, 130 after Ctrl-C, 143 after SIGTERM."""
    with terminable() as terminated:
        try:
            return _run(sys.argv[1:] if argv is None else argv)
        except BrokenPipeError:  # whoever read our output has seen enough
            sys.stderr.close()
            return FAILED
        except Exception as error:
            if (found := told(error)) is None:
                raise
            trace(error)
            print(f"cutlayer: {printable(found[1], None)}", file=sys.stderr)
            return found[0]
        except KeyboardInterrupt:
            print("cutlayer: interrupted; the same command goes on from the last mark", file=sys.stderr)
            return TERMINATED if terminated() else INTERRUPTED


def _run(words: Sequence[str]) -> int:
    here = current_folder()
    if "" not in sys.path and here not in sys.path:
        sys.path.append(here)  # package.module:object may lie where one is
    check_paths(words)
    commands: dict[str, Callable[..., Any]] = {
        "run": run,
        "compare": compare,
        "show": show,
        "report": report,
        "audit": cli_audit.audit,
        "list": cli_list.list_,
        "serve": cli_network.serve,
        "join": cli_network.join,
        "predict": cli_network.predict,
        "readmit": cli_operator.readmit,
        "certs": cli_network.certs,
    }
    if list(words) == ["--version"]:
        print(f"cutlayer {version('cutlayer')}")
        return 0
    with heard(), advised():
        code: int = tyro.extras.subcommand_cli_from_dict(commands, prog="cutlayer", description=__doc__, args=words)
    return code


if __name__ == "__main__":
    sys.exit(main())
