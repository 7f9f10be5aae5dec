"""What a user waits for: time to the first step, cold and warm, rate and memory.

    python -m benchmarks.starts vit_base swin_base --batch_size=8

Runs `simmim bench` twice for each config: first with an empty cache of compiled
programs, then with those of the first run. Seconds are from after Python's imports to
the end of the first step. Comparisons are measured by their pre-training. Memory is the
process's peak.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def measure(config: str, cache: Path, options: list[str]) -> dict[str, float]:
    """Return what `simmim bench` says, with programs cached in `cache`."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "-m", "simmim_jax", "bench", f"--config={config}"]
        process = subprocess.Popen(
            [*command, f"--workdir={workdir}", *options],
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)},
            stdout=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"simmim bench --config={config} failed.")
        result = json.loads((Path(workdir) / "bench.json").read_text())
    return result | {"peak": usage.ru_maxrss * 1024}


def main() -> None:
    """Print a row for each config."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="+", metavar="CONFIG")
    parser.add_argument("--batch_size", type=int, help="in place of the configs'")
    args = parser.parse_args()
    options = []
    if args.batch_size:
        options = [f"--config.data.batch_size={args.batch_size}"]
    print("| config | batch | cold, s | warm, s | images/s | memory, GB |")
    print("|---|---|---|---|---|---|", flush=True)
    for config in args.configs:
        with tempfile.TemporaryDirectory() as cache:
            cold, warm = (measure(config, Path(cache), options) for _ in "12")
        print(
            f"| {config} | {warm['batch_size']} | {cold['first_step_seconds']:.1f} "
            f"| {warm['first_step_seconds']:.1f} | {warm['images_per_second']:.3g} "
            f"| {warm['peak'] / 1e9:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
