"""Run one fuzz target under libFuzzer.

    python -m tests.fuzz.run TARGET [libFuzzer's options and folders]

The request stream needs the modules that `tests/fuzz/build.py` makes; scripts/fuzz.sh does both.
"""

import sys

import atheris

from tests.fuzz.seeds import TARGETS


def main() -> None:
    """Import the target with coverage and hand it to libFuzzer."""
    target, *options = sys.argv[1:]
    if target not in TARGETS:
        sys.exit(f"no fuzz target {target}; there are {', '.join(TARGETS)}")
    with atheris.instrument_imports(include=["facade.engine"]):
        module = __import__(f"tests.fuzz.{target}", fromlist=["fuzz_one"])
    atheris.Setup([sys.argv[0], *options], module.fuzz_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
