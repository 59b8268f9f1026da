"""The command: `python -m tests.fuzz --seconds 60 [--seed S] [--only MODULE]`, `python -m tests.fuzz --replay CASE`."""

import argparse
import json
import os
import sys

from . import runner
from .cases import DRAWS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long to draw calls for")
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same calls")
    parser.add_argument("--only", choices=DRAWS, help="one module instead of all")
    parser.add_argument("--replay", type=json.loads, metavar="CASE", help="run one call, as a failure prints it")
    parser.add_argument("--child", action="store_true", help="judge the calls that stdin brings: what the parent runs")
    options = parser.parse_args()
    if options.child:
        _serve()
        return 0
    well = runner.replay(options.replay) if options.replay else runner.fuzz(options.seconds, options.seed, options.only)
    return 0 if well else 1


def _serve() -> None:
    """Answer one line of JSON with one line, until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what else is printed is no answer
    from . import call

    with call.environment():
        print("ready", file=answers, flush=True)
        for line in sys.stdin:
            try:
                answer = {"failures": call.judge(json.loads(line))}
            except call.Refused as error:
                answer = {"refused": str(error)}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    sys.exit(main())
