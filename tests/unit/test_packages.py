"""Packaging: one list of Debian packages, one of versions, entry points that exist."""

import ast
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIST = ROOT / "scripts/debian-packages.txt"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = ("facade", "broker", "beans", "notifier", "console")


def listed_packages() -> dict[str, tuple[str, list[str]]]:
    rows = {}
    for line in LIST.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            section, package, *facts = line.split()
            assert package not in rows, f"{package} is listed twice"
            rows[package] = (section, facts)
    return rows


def pinned() -> dict[str, str]:
    lines = (ROOT / "scripts/constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    return dict(re.fullmatch(r"([\w.-]+)==([\w.]+)", pin).groups() for pin in pins)


def test_every_debian_package_has_a_section_and_a_fact_to_check() -> None:
    for package, (section, facts) in listed_packages().items():
        assert section in ("build", "run", "test", "fuzz"), package
        assert facts, package
        assert all(re.match(r"(program|file|module|header):\S", fact) for fact in facts), package


def test_the_packages_that_the_issue_of_a_bare_machine_names_are_listed() -> None:
    wanted = {
        "run": {"rabbitmq-server", "redis-server"},
        "test": {
            "nbdkit", "libnbd-bin", "python3-libnbd", "qemu-utils", "qemu-system-common", "fio"
        },
        "build": {"gcc", "python3-venv", "python3-dev"},
    }  # fmt: skip
    rows = listed_packages()
    for section, packages in wanted.items():
        assert packages <= {name for name, (of, _) in rows.items() if of == section}


def test_no_debian_package_is_named_outside_the_list() -> None:
    for script in ("scripts/setup.sh", "Makefile"):
        text = (ROOT / script).read_text(encoding="utf-8")
        named = {
            name for name in listed_packages() if re.search(rf"(?<![\w-]){name}(?![\w-])", text)
        }
        # Words that are programs as well: make is called by its name.
        assert named <= {"make", "gcc"}, script


def test_every_direct_dependency_is_pinned_and_the_pin_satisfies_the_floor() -> None:
    from packaging.requirements import Requirement

    pins = {name.lower().replace("_", "-"): version for name, version in pinned().items()}
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *extras["dev"]]
    for requirement in map(Requirement, [*wanted, *PROJECT["build-system"]["requires"]]):
        name = requirement.name.lower().replace("_", "-")
        assert name in pins, f"{name} is not pinned"
        assert requirement.specifier.contains(pins[name]), f"{name} {pins[name]} {requirement}"
        assert requirement.specifier, f"{name} has no floor"


@pytest.mark.parametrize("name", sorted(PROJECT["project"]["scripts"]))
def test_entry_point_exists(name: str) -> None:
    module, _, function = PROJECT["project"]["scripts"][name].partition(":")
    path = ROOT / f"{module.replace('.', '/')}.py"
    assert path.exists(), f"{name}: there is no {path}"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    defined = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    defined |= {
        a.asname or a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names
    }
    for node in tree.body:
        if isinstance(node, ast.Assign):
            defined |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    assert function in defined, f"{name}: {module} has no {function}"


def test_all_promised_commands_are_entry_points() -> None:
    wanted = {
        "trellis", "trellis-engine", "trellis-beans", "trellis-notifier",
        "sndradm", "snradm", "iiadm", "scmadm", "svadm", "dscfg", "dsstat",
    }  # fmt: skip
    assert wanted <= set(PROJECT["project"]["scripts"])


def test_every_package_of_ours_would_be_installed() -> None:
    from setuptools import find_packages

    include = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    found = set(find_packages(str(ROOT), include=include))
    assert {name.partition(".")[0] for name in found} == set(PACKAGES)
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            folder = ".".join(path.parent.relative_to(ROOT).parts)
            assert folder in found, f"{path} is in a folder without __init__.py"


def test_every_cython_module_of_the_engine_is_built() -> None:
    built = {path.name.partition(".")[0] for path in (ROOT / "facade/engine").glob("*.so")}
    missing = {path.stem for path in (ROOT / "facade/engine").glob("*.pyx")} - built
    assert not missing, f"`make build` has not built {', '.join(sorted(missing))}"


def test_only_the_engine_has_cython() -> None:
    strays = [p for top in PACKAGES for p in (ROOT / top).rglob("*.pyx")]
    assert all(path.parent == ROOT / "facade/engine" for path in strays)


def test_license_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"


@pytest.mark.parametrize("script", ["setup.sh", "install-debian-packages.sh", "build.sh"])
def test_script_is_executable_and_parses(script: str) -> None:
    path = ROOT / "scripts" / script
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", str(path)], check=True, timeout=20)


def test_make_parses_every_promised_target() -> None:
    for target in ("demo", "test", "build", "lint", "bench", "soak", "asan", "docs", "clean"):
        done = subprocess.run(
            ["make", "-n", "--no-print-directory", target],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "Nothing to be done" not in done.stdout, target


def test_setup_of_what_is_there_is_quick_and_writes_nothing() -> None:
    import time

    stamp = ROOT / ".venv/.trellis-setup"
    if not stamp.exists():
        pytest.skip("this checkout's .venv was not made by scripts/setup.sh")
    before = stamp.stat().st_mtime_ns
    started_s = time.monotonic()
    done = subprocess.run(
        ["scripts/setup.sh", "build", "run", "test"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert stamp.stat().st_mtime_ns == before
    # Under a second on a quiet machine; a busy one gets the benefit of the doubt.
    assert time.monotonic() - started_s < 5
