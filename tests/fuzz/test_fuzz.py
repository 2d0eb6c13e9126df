"""What the fuzzers begin with, and a short run of each; `make fuzz` and `make soak` run longer."""

import importlib
import importlib.util
import os
import subprocess
from pathlib import Path

import pytest

from tests.fuzz import seeds

ROOT = Path(__file__).parents[2]
EXECUTIONS = 20_000


@pytest.mark.parametrize("target", ["handshake", "link", "control"])
def test_inputs_that_are_known(target: str) -> None:
    fuzz_one = importlib.import_module(f"tests.fuzz.{target}").fuzz_one
    for data in seeds.read(target):
        fuzz_one(data)


@pytest.mark.skipif(
    not importlib.util.find_spec("atheris"), reason="atheris has no build for this Python"
)
@pytest.mark.timeout(600)
def test_a_short_run() -> None:
    environ = {"FUZZ_EXECUTIONS": str(EXECUTIONS), "FUZZ_SEED": "1"}
    run = subprocess.run(
        ["scripts/fuzz.sh"], cwd=ROOT, env=os.environ | environ, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    executed = [int(line.split()[1]) for line in run.stdout.splitlines() if "executed" in line]
    assert len(executed) == len(seeds.TARGETS)
    assert sum(executed) >= EXECUTIONS
