"""Build the wheel, install it alone into an empty environment, and use it there."""

import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

USE = """
import cutlayer, pathlib
assert pathlib.Path(cutlayer.__file__).is_relative_to(pathlib.Path({venv!r}).resolve()), cutlayer.__file__
assert (pathlib.Path(cutlayer.__file__).parent / "py.typed").exists()
from cutlayer.cli import main
assert main(["list", "methods"]) == 0
assert main(["run", "demo", "--rounds", "1", "--num-train", "64", "--num-test", "64", "--warmup-rounds", "0", "--out", {out!r}]) == 0
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        dist, venv = Path(folder, "dist"), Path(folder, "venv")
        run = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(dist), str(ROOT)]
        subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
        site = next(venv.glob("lib/python*/site-packages"))
        (wheel,) = dist.glob("*.whl")
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel)],
            check=True,
        )
        # the libraries are lent from this environment, after the wheel's own folder; the project's editable install is not
        (site / "lent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        use = USE.format(venv=str(venv), out=str(Path(folder, "out")))
        subprocess.run([str(venv / "bin" / "python"), "-c", use], check=True, cwd=folder, stdout=subprocess.DEVNULL)
    print("the wheel works in an empty environment")


if __name__ == "__main__":
    main()
