"""The house as a whole: its floors, its dependency lists, its words, and the conditions of its tests."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
REQUIREMENTS = {
    text: Requirement(text) for texts in [PROJECT["dependencies"], *EXTRAS.values()] for text in texts
}


# --- dependencies: pyproject.toml, constraints.txt and environment.yml agree


def pins(lines: list[str]) -> dict[str, Version]:
    """Return the version of each line of the form name==version, by canonical name."""
    found: dict[str, Version] = {}
    for line in lines:
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([^\s;]+)", line)
        assert match, f"expected name==version, found {line!r}"
        name = canonicalize_name(match[1])
        assert name not in found, f"{name} is pinned twice"
        found[name] = Version(match[2])
    return found


@pytest.fixture(scope="module")
def constraints() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return pins([line for line in lines if line and not line.startswith("#")])


@pytest.fixture(scope="module")
def conda() -> dict[str, object]:
    environment: dict[str, object] = yaml.safe_load((ROOT / "environment.yml").read_text())
    return environment


def conda_pip(conda: dict[str, object]) -> list[str]:
    dependencies = conda["dependencies"]
    assert isinstance(dependencies, list)
    [section] = [item for item in dependencies if isinstance(item, dict)]
    return list(section["pip"])


@pytest.mark.parametrize("text", REQUIREMENTS)
def test_every_requirement_is_pinned_to_a_version_that_it_allows(
    text: str, constraints: dict[str, Version]
) -> None:
    requirement = REQUIREMENTS[text]
    name = canonicalize_name(requirement.name)
    assert name in constraints, f"{name} is not in constraints.txt: run tools/lock.py"
    assert constraints[name] in requirement.specifier


def test_constraints_name_releases_not_builds(constraints: dict[str, Version]) -> None:
    assert [f"{name}=={version}" for name, version in constraints.items() if version.local] == []


def test_torch_is_pinned_in_the_package_itself(constraints: dict[str, Version]) -> None:
    [requirement] = [item for item in REQUIREMENTS.values() if item.name == "torch"]
    assert str(requirement.specifier) == f"=={constraints['torch']}"


def test_conda_has_the_same_versions(conda: dict[str, object], constraints: dict[str, Version]) -> None:
    lines = conda_pip(conda)
    assert "-e ." in lines
    found = pins([line for line in lines if not line.startswith("-")])
    assert found == {name: constraints[name] for name in found}
    texts = PROJECT["dependencies"] + EXTRAS["embedded"] + EXTRAS["book"] + EXTRAS["dev"]
    assert found.keys() == {canonicalize_name(Requirement(text).name) for text in texts}


def test_conda_has_the_same_python(conda: dict[str, object]) -> None:
    dependencies = conda["dependencies"]
    assert isinstance(dependencies, list)
    [text] = [item for item in dependencies if str(item).startswith("python=")]
    assert PROJECT["requires-python"] == ">=" + text.removeprefix("python=")


# --- floors

FLOORS = "A module imports from the floors below it only"
LIGHT = "The server runs without torch and transformers"


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a copy of the package and of its contract, to be broken."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "companion", tmp_path / "companion", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_the_import_contract_is_kept(copy: Path) -> None:
    answer = lint_imports(copy)
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("settings.py", "import companion.data", FLOORS),
        ("data/__init__.py", "import companion.models", FLOORS),
        ("training/__init__.py", "def f():\n    import companion.inference", FLOORS),
        ("attic.py", "'''A module without a floor.'''", FLOORS),
        ("deployment/__init__.py", "def f():\n    import torch", LIGHT),
        ("inference/predictor.py", "from companion.models.loading import load", LIGHT),
    ],
)
def test_the_import_contract_can_be_broken(module: str, line: str, broken: str, copy: Path) -> None:
    with (copy / "companion" / module).open("a") as file:
        file.write(f"\n{line}\n")
    answer = lint_imports(copy)
    assert answer.returncode == 1, answer.stdout + answer.stderr
    assert f"{broken} BROKEN" in answer.stdout


def test_cost_is_arithmetic() -> None:
    graph = grimp.build_graph("companion", include_external_packages=True, cache_dir=None)
    rooms = [module for module in graph.modules if re.match(r"companion\.cost\b", module)]
    assert [module for module in rooms if graph.find_shortest_chain(module, "torch")] == []


# --- words


def own_files() -> Iterator[Path]:
    """Yield the text files of the checkout that git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: nothing says which files belong to it")
    for name in listed.stdout.split("\0"):
        path = ROOT / name
        if name and path.is_file() and b"\0" not in path.read_bytes()[:8000]:
            yield path


# In pieces, so that this file does not hold what it looks for.
FORBIDDEN = {
    "a path of one machine": re.compile("/" + r"(?:work|root|home/\w+|Users/\w+|tmp/brief|opt/wheels)" + "/"),
    "a package registry's host": re.compile(
        r"\b(?:pypi|pythonhosted|test\.pypi)\.org\b|\bdownload\.pytorch\.org\b|\bregistry\.npmjs\b|\banaconda\.org\b"
    ),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_names(what: str) -> None:
    found = []
    for path in own_files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if FORBIDDEN[what].search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert found == []


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("a path of one machine", "/" + "work/main/model"),
        ("a path of one machine", "/" + "home/someone/model"),
        ("a package registry's host", "https://" + "pypi" + ".org/simple"),
    ],
)
def test_forbidden_words_are_recognised(what: str, text: str) -> None:
    assert FORBIDDEN[what].search(text)


# --- the two commands


def test_the_readme_begins_with_the_two_commands() -> None:
    first = re.search(r"^```\w*\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert first
    assert first[1] == "make book\nmake test\n"


def test_continuous_integration_runs_the_two_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "\nmake book" in script
    assert "\nmake test" in script
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


# --- the conditions under which all tests run


@pytest.mark.filterwarnings("ignore:A test tried to use")
def test_sockets_reach_this_machine_only() -> None:
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
    # An address set aside for documentation: nothing answers there, should the block be gone.
    with socket.socket() as client, pytest.raises(RuntimeError, match=r"192\.0\.2\.1"):
        client.settimeout(1)
        client.connect(("192.0.2.1", 80))


def test_child_processes_reach_this_machine_only() -> None:
    code = "import socket; socket.create_connection(({host!r}, {port}), timeout=5)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tools" / "offline")}

    def connect(host: str, port: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code.format(host=host, port=port)]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        assert connect("127.0.0.1", server.getsockname()[1]).returncode == 0
    refused = connect("192.0.2.1", 80)
    assert refused.returncode == 1
    assert "never leaves this machine" in refused.stderr


@pytest.mark.parametrize(("ci", "ended"), [("", "1 skipped"), ("true", "1 error")])
def test_a_missing_part_skips_and_fails_in_ci(ci: str, ended: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = glue: real data\n")
    (tmp_path / "test_part.py").write_text("import pytest\n\n@pytest.mark.glue\ndef test_part(): pass\n")
    environment = {**os.environ, "CI": ci, "COMPANION_DATA_DIR": str(tmp_path / "absent")}
    command = [sys.executable, "-m", "pytest", "-rsE", "-p", "no:cacheprovider", str(tmp_path)]
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended in answer.stdout
    assert "no SST-2/train.tsv in COMPANION_DATA_DIR" in answer.stdout
    assert answer.returncode == (1 if ci else 0)
