"""Write constraints.txt and environment.yml from pyproject.toml: `python tools/lock.py [--upgrade]`.

Resolves the package with all its extras, in a dry run that installs nothing. Versions in constraints.txt stay
as they are unless --upgrade is given; a new requirement gets the newest version that fits.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
HEADER = """\
# Every version that companion and all its extras resolve to together, on Python 3.11.
# Written by tools/lock.py; tests/test_house.py compares it with pyproject.toml and environment.yml.
"""
CONDA_HEADER = """\
# Written by tools/lock.py, for: conda env create -f environment.yml
name: companion
channels:
  - conda-forge
dependencies:
  - python=3.11
  - pip
  - pip:
      - -c constraints.txt
      - -e .
"""
# What a reader of the course needs. `scale` and `grade` are installed by those who want them.
CONDA_EXTRAS = ("embedded", "book", "dev")


def resolve(extras: list[str], *, upgrade: bool) -> dict[str, str]:
    """Return the version of each distribution in the closure, by canonical name."""
    constraints = ROOT / "constraints.txt"
    keep = [] if upgrade or not constraints.exists() else ["-c", str(constraints)]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--report", str(report), *keep, "-e", f"{ROOT}[{','.join(extras)}]"]
        subprocess.run(command, check=True)
        found = json.loads(report.read_text())["install"]
    versions = {canonicalize_name(item["metadata"]["name"]): item["metadata"]["version"] for item in found}
    versions.pop("companion")
    # A local version (+cpu) names one build of a release, and only some indexes have it.
    return {name: Version(version).public for name, version in sorted(versions.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upgrade", action="store_true", help="ignore the versions of constraints.txt")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    pins = resolve(sorted(extras), upgrade=parser.parse_args().upgrade)

    lines = "".join(f"{name}=={version}\n" for name, version in pins.items())
    (ROOT / "constraints.txt").write_text(HEADER + lines)

    texts = project["dependencies"] + [text for extra in CONDA_EXTRAS for text in extras[extra]]
    direct = sorted({canonicalize_name(Requirement(text).name) for text in texts})
    conda = CONDA_HEADER
    conda += "".join(f"      - {name}=={pins[name]}\n" for name in direct)
    (ROOT / "environment.yml").write_text(conda)
    print(f"constraints.txt: {len(pins)} versions; environment.yml: {len(direct)}")


if __name__ == "__main__":
    main()
