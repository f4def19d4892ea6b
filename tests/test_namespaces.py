"""Over real network namespaces with delay, rate and loss: the weights of one process, and the time that the virtual clock says."""

import statistics
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def calibrate():
    import calibrate

    try:
        with calibrate.namespaces(50.0, 50.0, 1.0):
            pass
    except OSError as error:
        pytest.skip(f"no network namespaces with tc netem here: {error}")
    return calibrate


def test_the_clock_predicts_five_short_runs_on_slow_and_lossy_lines(calibrate):
    errors, known = [], {}
    for scheme, *line in calibrate.LINES:
        known[scheme] = known.get(scheme) or calibrate.speeds(scheme)
        predicted = calibrate.predicted(scheme, *line, *known[scheme])
        took = calibrate.seconds(calibrate.measured(scheme, None, tuple(line))["records"])
        errors.append(abs(predicted - took) / took)
    assert statistics.median(errors) <= 0.15, errors
