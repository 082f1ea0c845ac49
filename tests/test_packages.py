"""Packages: pinned by name and version, renewed and looked up by two commands."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from conftest import ROOT

PINS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]


def test_every_package_is_pinned_by_name_and_version():
    assert all(re.fullmatch(r"[\w.-]+==[\w.+!-]+", pin) for pin in PINS)  # and no address
    assert sorted(PINS, key=str.lower) == PINS
    pinned = {canonicalize_name(pin.split("==")[0]): pin.split("==")[1] for pin in PINS}
    assert len(pinned) == len(PINS)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in chain(project["dependencies"], *project["optional-dependencies"].values()):
        requirement = Requirement(text)
        if requirement.name != project["name"]:
            assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, text


def test_the_oldest_versions_are_the_lower_bounds():
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    oldest = dict(line.split("==") for line in lines if not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in chain(project["dependencies"], *project["optional-dependencies"].values()):
        requirement = Requirement(text)
        if requirement.name in {project["name"], "ruff", "mypy", "import-linter"}:
            continue  # the suite does not need them
        (bound,) = (each for each in requirement.specifier if each.operator == ">=")
        assert Version(oldest[requirement.name]) == Version(bound.version), text


@pytest.fixture
def checkout(tmp_path):
    """The Makefile in a folder of its own, with programs that only pretend to be pip and others."""
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def pretend(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def make(checkout, *arguments):
    command = ["make", "-C", str(checkout), *arguments, f"PYTHON={sys.executable}"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("status", "words"), [(0, ""), (1, "nothing was checked")])
def test_the_audit_says_what_it_could_not_do(checkout, status, words):
    pretend(checkout / ".venv/audit/bin/pip-audit", f'echo "$@" > asked\nexit {status}')
    done = make(checkout, "audit")
    assert (done.returncode != 0) == bool(status)
    assert words in done.stdout
    asked = (checkout / "asked").read_text().split()
    # strict: a package that could not be looked up is no package without vulnerabilities
    assert {"constraints.txt", "--no-deps", "--disable-pip", "--strict"} <= set(asked)


def test_an_update_keeps_names_and_versions_only(checkout):
    found = [
        {"metadata": {"name": name, "version": "2.0"}, "download_info": {"url": "mirror/x"}}
        for name in ("Zope", "lfvit", "attrs")
    ]
    (checkout / "found.json").write_text(json.dumps({"install": found}))
    pip = 'if [ "$1" = -m ]; then echo "$@" > asked; cp found.json .venv/report.json; exit; fi\n'
    pretend(checkout / ".venv/bin/python", f'{pip}exec {sys.executable} "$@"')
    (checkout / ".venv/.installed").touch()
    done = make(checkout, "update", "--old-file=.venv/.installed")
    assert done.returncode == 0, done.stderr
    head, *pins = (checkout / "constraints.txt").read_text().splitlines()
    assert head.startswith("#")
    assert pins == ["attrs==2.0", "Zope==2.0"]
    assert "--ignore-installed" in (checkout / "asked").read_text()


def test_hooks_before_a_commit_are_those_of_make_lint():
    hooks = re.findall(r"entry: ([^,]+),", (ROOT / ".pre-commit-config.yaml").read_text())
    rule = (ROOT / "Makefile").read_text().partition("\nlint: ")[2].partition("\n\n")[0]
    lint = [line.strip().replace("$(VENV)", ".venv") for line in rule.splitlines()[1:]]
    assert hooks == lint


def test_the_image_is_made_of_files_that_are_there():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]]
    assert copied
    assert all((ROOT / name).exists() for name in copied)
    kept = (ROOT / ".dockerignore").read_text().split()
    assert {f"!{name}" for name in copied} <= set(kept)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r"/src\[([\w,]+)\]", "\n".join(lines))
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    (torch,) = re.findall(r'"(torch>[^"]+)"', "\n".join(lines))
    assert torch in project["dependencies"]
