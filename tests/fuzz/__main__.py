"""Read damaged files until nothing that they cause is a surprise.

    python -m tests.fuzz --target=image --cases=1000000 --ledger=/tmp/fuzz.json

Every case damages a valid file, seeded by target, --seed and number, and reads it as
the package does. It survives if the result is right or the file is refused with a
sentence. It is lost if anything else happens: another exception, more than 5 s of a
processor, more than 1 GB of memory, code or connections that the file asked for, a hang
of 30 s, or the end of the process. The same command continues the ledger, and tries
lost cases again. Exit status 1 if any is lost.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from simmim_jax.data.loader.workers import num_cpus
from tests.fuzz import pool
from tests.fuzz.targets import TARGETS
from tests.fuzz.worker import Seeds


def main() -> None:
    """Run cases, and print tried, survived and lost."""
    names = [target.name for target in TARGETS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--target", action="append", choices=names, help="default: all of them")
    add("--cases", type=int, default=1000, help="of each target, with the ledger's")
    add("--minutes", type=float, default=float("inf"), help="stop after this time")
    add("--seed", type=int, default=0)
    add("--ledger", type=Path, help="file that keeps what became of all cases")
    add("--workers", type=int, default=num_cpus(), help="processes (%(default)s)")
    add(
        "--show", type=int, metavar="CASE", help="run one case here, with its traceback"
    )
    args = parser.parse_args()
    chosen = [t for t in TARGETS if t.name in (args.target or names)]
    if args.show is not None:
        for target in chosen:
            show(target, args.seed, args.show)
        return
    ledger = pool.Ledger(args.seed, args.ledger)
    pool.run(
        chosen,
        ledger,
        cases=args.cases,
        workers=args.workers,
        minutes=args.minutes,
        report=lambda text: print(f"{text}\n", flush=True),
    )
    print(ledger.summary())
    lost = {name: account.lost for name, account in ledger.accounts.items()}
    for name, cases in lost.items():
        for number, (verdict, text) in sorted(cases.items()):
            print(f"\n{name} {number}: {verdict}: {text}")
    sys.exit(1 if any(lost.values()) else 0)


def show(target: pool.Target, seed: int, number: int) -> None:
    """Read the damaged file of one case in this process."""
    with tempfile.TemporaryDirectory() as folder:
        valid = Path(folder, "valid")
        valid.mkdir()
        target.make(valid)
        with Seeds(target, valid, Path(folder)).damaged(seed, number) as damaged:
            print(f"{target.name} {number} is a damaged {damaged.name!r}", flush=True)
            target.read(damaged)
            print("read")


if __name__ == "__main__":
    main()
