"""What the command `cutlayer` runs first: it imports nothing that takes time, so that Ctrl-C is one line from the beginning."""

import os
import sys


def main() -> int:
    """Run the command line and return its exit code; 130 after Ctrl-C, during imports too."""
    try:
        os.getcwd()  # libraries that torch loads abort the process without one
    except FileNotFoundError:
        print("cutlayer: the current folder does not exist any more; change to one that does", file=sys.stderr)
        return 2
    try:
        from cutlayer.cli import main as run_command

        return run_command()
    except KeyboardInterrupt:
        print("cutlayer: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
