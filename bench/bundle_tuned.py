"""Put the plans that `tune.py` fitted to a bundled model next to it: `solver="tuned"` finds them there.

    python bench/bundle_tuned.py mnist --nfe 4 6 8 10

Of each budget the plan of seed 0 whose certificate holds, with the least median beside the best pair.
"""

from __future__ import annotations

import argparse

from tune import GUIDED, read

import odediff
from odediff.model import BUNDLED
from odediff.stored import write_plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem")
    parser.add_argument("--nfe", type=int, nargs="+", default=[4, 6, 8, 10])
    args = parser.parse_args()
    for nfe in args.nfe:
        chosen = {"nfe": nfe, "way": "both", "seed": 0, "certified": True}
        plans = [p for p in read(args.problem)["plans"] if chosen.items() <= p.items()]
        made = min(plans, key=lambda p: p["over_median"][0])
        guidance = GUIDED if args.problem == "mnist_conditional" else None
        print(write_plan(odediff.Plan.from_json(made["plan"]), BUNDLED / args.problem / "tuned", guidance))


if __name__ == "__main__":
    main()
