"""What the head at the cut adds to the network's answer: a decoupled network has two exits that learned the classes.

ResNet-20 on the first 10,000 images of CIFAR-10, 12 rounds of the strong schedule, full test set, bfloat16, three seeds; the heads of
benchmarks/parity.py. In every run the accuracy of the network, of its head, and of the network's log-probabilities with a quarter of
the head's; the quarter was chosen on held-out training images, in other runs. About 3 minutes a run on 2 cores: results/exits.jsonl.
"""

from cells import Cell, parser, run
from parity import FRUGAL, decoupled


def cells() -> list[Cell]:
    """Return all cells."""
    return [
        Cell({"cut": cut, "what": what}, "small-cifar10", own, cut == "shallow")
        for cut, what, own in (decoupled(*each) for each in FRUGAL.items())
    ]


if __name__ == "__main__":
    run("exits", cells(), parser("exits", __doc__, "0,1,2").parse_args(), "Two exits")
