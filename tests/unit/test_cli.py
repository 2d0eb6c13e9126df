"""Exit status, error form and the places of options, without any federation."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from console import avs
from console.cli import main


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("TRELLIS_DIR", "TRELLIS_HOST", "TRELLIS_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def run(*arguments: str) -> int:
    return main(arguments)


@pytest.mark.parametrize(
    "line",
    ["volume frob", "frob", "volume create v", "volume create v --size x", "volume show",
     "replica create s --primary a --secondary b:c", "replica sync s --full --update",
     "replica create s --primary a:v:b:x --secondary b:c", "replica sync s --keep both",
     "volume", "up --frob"],
)  # fmt: skip
def test_wrong_usage_is_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*line.split()) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("line", ["volume list", "status", "host list", "event list", "down"])
def test_without_a_federation_it_is_3(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*line.split()) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: no_federation")
    assert len(captured.err.splitlines()) == 1
    assert ".trellis" in captured.err


@pytest.mark.parametrize("line", ["--json volume list", "volume --json list", "volume list --json"])
def test_json_may_stand_anywhere(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*line.split()) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    error = json.loads(captured.err)
    assert error["code"] == "no_federation"
    assert set(error) == {"code", "message", "hint", "data"}


def test_wrong_usage_with_json_is_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("volume", "frob", "--json") == 2
    assert json.loads(capsys.readouterr().err)["code"] == "usage"


@pytest.mark.parametrize("line", ["replica delete s", "replica sync s --reverse"])
def test_without_a_terminal_yes_is_needed(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*line.split()) == 2
    assert "--yes" in capsys.readouterr().err
    assert run(*line.split(), "--yes") == 3


def test_predecessors_commands_share_form_and_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert avs.sndradm(["-Z"]) == 2
    assert avs.snradm(["-C", "tag", "set"]) == 2
    assert avs.sndradm(["-P"]) == 3
    assert avs.iiadm(["-l"]) == 1
    assert avs.scmadm([]) == 1
    assert avs.dsstat(["-m", "ii"]) == 1
    assert avs.dsstat(["-m", "nosuch"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 7
    assert all(line.startswith("error: ") for line in lines)


@pytest.mark.parametrize("command", [avs.sndradm, avs.svadm, avs.dscfg, avs.dsstat])
def test_predecessors_help_needs_no_federation(command: object) -> None:
    assert command(["-h"]) == 0  # type: ignore[operator]


def test_config_names_a_settings_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.toml").write_text("[nosuch]\n")
    assert run("--config", "t.toml", "volume", "list") == 1
    assert "[nosuch] is not a section" in capsys.readouterr().err
    (tmp_path / "t.toml").write_text(
        '[host]\nname = "h1"\n[broker]\nurls = ["amqp://u:p@127.0.0.1:1"]\n'
        '[redis]\nurl = "redis://127.0.0.1:1"\n'
    )
    assert run("volume", "list", "--config", "t.toml") == 3
    assert "127.0.0.1:1" in capsys.readouterr().err


def test_help_is_quick() -> None:
    command = [sys.executable, "-m", "console.cli", "--help"]
    assert min(_processor_s(command) for _ in range(3)) < 0.3


def test_help_imports_no_middle_tier() -> None:
    code = "import sys, console.cli; print(sorted(m for m in sys.modules if m in {watched}))"
    watched = {"celery", "pika", "redis", "marshmallow", "beans.proxy", "console.supervisor"}
    root = Path(__file__).parents[2]
    told = subprocess.run(
        [sys.executable, "-c", code.format(watched=watched)],
        capture_output=True, text=True, check=True, cwd=root,
    )  # fmt: skip
    assert told.stdout.strip() == "[]"


def _processor_s(command: list[str]) -> float:
    """Processor time, which a busy machine stretches less than the clock."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[2])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
