"""docs/commands.md says what the commands say of themselves, and misses none."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/commands.md"


def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "make_commands_page", ROOT / "scripts/make_commands_page.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_is_what_the_commands_say() -> None:
    assert PAGE.read_text() == maker().page(), "run `python scripts/make_commands_page.py`"


@pytest.mark.parametrize("path", ["replica create", "replica sync", "up", "event tail"])
def test_page_has_every_option_that_help_shows(path: str) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "console.cli", *path.split(), "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout
    heading = f"## trellis {path}\n"
    section = PAGE.read_text().split(heading)[1].split("\n## ")[0].split("\n### ")[0]
    options = {word for word in told.split() if word.startswith("--")} - {"--help"}
    own = options - {"--json", "--config"} - (set() if path == "up" else {"--host"})
    assert own
    assert all(f"`{option}" in section for option in own)
