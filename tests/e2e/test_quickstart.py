"""Every command of docs/quickstart.md does what the page says, in its order."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e.seat import BIN, ROOT, Seat

PAGE = ROOT / "docs/quickstart.md"
OWN_FEDERATION = ("trellis up", "trellis down", "export ")
COMMAND_TIMEOUT_S = 60


def commands() -> list[str]:
    lines = [line.strip() for line in PAGE.read_text().splitlines() if line.startswith("    ")]
    return [line for line in lines if not line.startswith(OWN_FEDERATION)]


def test_page_starts_and_ends_a_federation() -> None:
    text = PAGE.read_text()
    assert "    trellis up --detach\n" in text
    assert "    trellis down\n" in text


@pytest.mark.slow
def test_commands_of_the_page_work(seat: Seat, tmp_path: Path) -> None:
    (tmp_path / ".trellis").symlink_to(seat.directory)
    environment = {**seat.environment, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("TRELLIS_DIR")
    assert len(commands()) > 12
    for command in commands():
        done = subprocess.run(
            ["/bin/bash", "-c", command],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        if command.startswith("sha256sum"):
            digests = {line.split()[0] for line in done.stdout.splitlines()}
            assert len(digests) == 1, done.stdout
