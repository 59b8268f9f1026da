"""Did it get slower? `python -m benchmarks.regression OLD.json NEW.json` ends with status 1 where, in some suite, the
fast paths lost more than a tenth of their gain over eager.

The gain is a ratio within one run, so that a machine that is slower today moves both sides; a suite's is the geometric
mean over the benchmarks that both results have. Results of different machines are not compared.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from statistics import geometric_mean
from typing import Any

from fastattn.report.comparison import differences
from fastattn.report.result import load

ALLOWED = 0.1
FAST = ("native", "triton")


def gains(result: dict[str, Any]) -> dict[tuple[str, str], float]:
    """Return how many times faster than eager each fast benchmark was, by suite and name."""
    records = {benchmark["name"]: benchmark["extra_info"] for benchmark in result["benchmarks"]}
    return {
        (record["suite"], name): record["speedup"]["eager"]["least"]
        for name, record in records.items()
        if record.get("rival") in FAST and "eager" in record.get("speedup", {})
    }


def changes(old: dict[str, Any], new: dict[str, Any]) -> dict[str, float]:
    """Return by suite how the gain changed: 0.9 where a tenth is lost."""
    before, now = gains(old), gains(new)
    ratios = defaultdict(list)
    for suite, name in before.keys() & now.keys():
        ratios[suite].append(now[suite, name] / before[suite, name])
    return {suite: geometric_mean(found) for suite, found in sorted(ratios.items())}


def main(argv: Sequence[str]) -> int:
    """Run the command line; 0 where nothing got slower, or nothing can be compared."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.regression", description=__doc__)
    parser.add_argument("old")
    parser.add_argument("new")
    options = parser.parse_args(argv)
    old, new = load(options.old), load(options.new)
    if other := [text for text in differences({"old": old, "new": new}) if "version" not in text]:
        print("another machine, nothing is compared:", *other)
        return 0
    found = changes(old, new)
    for suite, change in found.items():
        print(f"{suite}: {change:.2f} of the gain over eager that there was")
    return int(any(change < 1 - ALLOWED for change in found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
