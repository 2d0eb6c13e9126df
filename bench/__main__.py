"""`make bench`: every bench, one after the other; status 1 when one of them could not measure."""

import subprocess
import sys
from pathlib import Path


def main() -> int:
    """Run them all; arguments are handed on to each."""
    failed = []
    for bench in sorted(Path(__file__).parent.glob("bench_*.py")):
        print(f"== {bench.stem}", flush=True)
        if subprocess.run([sys.executable, str(bench), *sys.argv[1:]], check=False).returncode:
            failed.append(bench.stem)
    if failed:
        print(f"could not measure: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
