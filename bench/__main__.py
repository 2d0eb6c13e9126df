"""`make bench`: every bench, one after the other, and one table of all figures with their targets.

    python -m bench [--only NAME]... [--rounds N] [--seconds N] [--json FILE]

Each bench is given those of `--rounds` and `--seconds` that it knows. Status 1 when a bench could
not measure; a missed target alone is no failure, for the machine may be busy.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.figures import Figure, load, load_figures, print_figures, store

HERE = Path(__file__).parent
NAMES = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def arguments_of(script: Path, options: argparse.Namespace) -> list[str]:
    """Return the common options that this bench knows, by its own help."""
    asked = subprocess.run(
        [sys.executable, str(script), "--help"], capture_output=True, text=True, check=True
    ).stdout
    given = []
    for name in ("rounds", "seconds"):
        value = getattr(options, name)
        if value is not None and f"--{name}" in asked:
            given += [f"--{name}", str(value)]
    return given


def main() -> int:
    """Run them all and print what they found."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Run every bench.")
    parser.add_argument("--only", action="append", choices=NAMES, help="run these alone")
    parser.add_argument("--rounds", type=int, help="runs of each side")
    parser.add_argument("--seconds", type=int, help="length of one run")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    failed: list[str] = []
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for name in options.only or NAMES:
            script, found = HERE / f"bench_{name}.py", Path(folder) / f"{name}.json"
            print(f"== {name} ({load()})", flush=True)
            command = [sys.executable, str(script), *arguments_of(script, options)]
            if subprocess.run([*command, "--json", str(found)], check=False).returncode:
                failed.append(name)
            figures += load_figures(found)
    if figures:
        print(f"== all figures ({load()})")
        print_figures(figures)
    store(options.json, figures, failed=failed)
    if failed:
        print(f"could not measure, or said no: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
