"""Write the generated files of deploy/: `python tools/deploy.py`.

The image's requirements come from constraints.txt, the configurations of nginx, Redis and Prometheus from the
templates that `companion stack` uses too, the dashboard from its table. tests/deployment/test_deploy.py says
when one of them is out of date.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from companion.deployment.stack.dashboard import dashboard  # noqa: E402
from companion.deployment.stack.rendering import (  # noqa: E402
    NginxPlace,
    alert_rules,
    nginx_conf,
    prometheus_conf,
    redis_conf,
)

DEPLOY = ROOT / "deploy"
SERVERS = ("server-1:8000", "server-2:8000", "server-3:8000")
REQUIREMENTS_HEADER = """\
# Everything that the image installs. Written by tools/deploy.py from requirements.in and constraints.txt.
"""
GENERATED = "# Written by tools/deploy.py: change the template, not this file.\n"


def lines_of(path: Path) -> list[str]:
    """Return the lines of a file that are neither empty nor comments."""
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def pins() -> dict[str, str]:
    """Return the versions of constraints.txt by canonical name."""
    pairs = (line.split("==") for line in lines_of(ROOT / "constraints.txt"))
    return {canonicalize_name(name): version for name, version in pairs}


def closure(names: Iterable[str]) -> set[str]:
    """Return these distributions and all that they require, as the installed ones say."""
    found: set[str] = set()
    waiting = [
        (canonicalize_name(Requirement(name).name), frozenset(Requirement(name).extras)) for name in names
    ]
    seen = set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        found.add(name)
        try:
            texts = requires(name) or []
        except PackageNotFoundError:
            raise SystemExit(f"{name} is not installed: make env") from None
        for text in texts:
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in (*extras, "")):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return found


def requirements() -> str:
    """Write requirements.txt: the closure, each at its version."""
    versions = pins()
    names = sorted(closure(lines_of(DEPLOY / "image" / "requirements.in")))
    return REQUIREMENTS_HEADER + "".join(f"{name}=={versions[name]}\n" for name in names)


def generated() -> dict[Path, str]:
    """Return the content of every generated file."""
    compose = DEPLOY / "compose"
    place = NginxPlace(
        listen="8080",
        back="127.0.0.1:8081",
        servers=SERVERS,
        pid_file="/tmp/nginx.pid",
        error_log="/dev/stderr",
        access_log="/dev/stdout",
        temporary="/tmp",
        worker_processes="auto",
    )
    return {
        DEPLOY / "image" / "requirements.txt": requirements(),
        compose / "nginx.conf": GENERATED + nginx_conf(place),
        compose / "redis.conf": GENERATED
        + redis_conf(bind="0.0.0.0", port=6379, folder="/tmp", protected=False),
        compose / "prometheus.yml": GENERATED
        + prometheus_conf(targets=SERVERS, rules="/etc/prometheus/alerts.yml", interval_s=15),
        compose / "grafana" / "companion.json": dashboard(),
        DEPLOY / "alerts" / "alerts.yml": GENERATED + alert_rules(),
    }


def main() -> None:
    for path, text in generated().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
