"""deploy/: what is generated is up to date, and every file is what its reader expects."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import kubernetes_validate
import pytest
import yaml

from companion.deployment.stack.topology import server_arguments

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
MANIFESTS = [
    pytest.param(document, id=f"{file.stem}-{document['kind']}-{number}")
    for file in sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    for number, document in enumerate(yaml.safe_load_all(file.read_text()))
    if document["kind"] != "Kustomization"
]
ALL = {(found.values[0]["kind"], found.values[0]["metadata"]["name"]): found.values[0] for found in MANIFESTS}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("deploy_tool", ROOT / "tools" / "deploy.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
    return found


def test_generated_files_are_up_to_date(tool):
    stale = [str(path) for path, text in tool.generated().items() if path.read_text() != text]
    assert stale == [], "run tools/deploy.py"


def test_the_requirements_are_closed_pinned_and_light(tool):
    lines = tool.lines_of(DEPLOY / "image" / "requirements.txt")
    listed = dict(line.split("==") for line in lines)
    assert listed == {name: version for name, version in tool.pins().items() if name in listed}
    assert tool.closure(listed) == set(listed)
    assert not {"torch", "transformers", "datasets", "onnx", "scipy", "ray", "locust", "matplotlib"} & set(
        listed
    )


# --- compose


def test_compose_fits_the_specification(tmp_path):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    file = DEPLOY / "compose" / "compose.yaml"
    done = subprocess.run([*command, str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    broken = tmp_path / "compose.yaml"
    broken.write_text(file.read_text().replace("restart: unless-stopped", "restrat: unless-stopped"))
    assert subprocess.run([*command, str(broken)], capture_output=True).returncode == 1


def test_compose_mounts_files_that_are_there_and_hardens_every_service():
    document = compose()
    for name, service in document["services"].items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / "compose" / source).is_file(), source
            elif not source.startswith("$"):
                assert source in document["volumes"], source


def test_compose_and_the_native_stack_tell_servers_the_same():
    command = compose()["services"]["server-1"]["command"]
    expected = server_arguments("RATE", "redis://redis:6379/0")
    given = {line.partition("=")[0]: line.partition("=")[2] for line in command}
    names = [argument for argument in expected if argument.startswith("--")]
    assert set(names) <= given.keys()
    assert given["--redis"] == given["--cache"] == "redis://redis:6379/0"
    subnet = compose()["networks"]["inner"]["ipam"]["config"][0]["subnet"]
    assert given["--trust-proxy"] == subnet
    assert yaml.safe_load((DEPLOY / "compose" / "prometheus.yml").read_text())["scrape_configs"][0][
        "static_configs"
    ] == [{"targets": [f"server-{number}:8000" for number in (1, 2, 3)]}]


def test_options_that_containers_give_are_options_of_serve(run):
    """A flag that is renamed must not be found out at night."""
    given = [*compose()["services"]["server-1"]["command"]]
    for found in MANIFESTS:
        document = found.values[0]
        if document["kind"] == "Deployment" and document["metadata"]["name"] == "companion":
            given += document["spec"]["template"]["spec"]["containers"][0]["args"]
    given += re.findall(r'"(--[a-z-]+)"', (DEPLOY / "image" / "Dockerfile").read_text().split("CMD")[-1])
    code, out, _ = run("serve", "--help")
    assert code == 0
    for option in {line.partition("=")[0] for line in given if line.startswith("--")}:
        assert option in out, option


# --- Kubernetes


@pytest.mark.parametrize("document", MANIFESTS)
def test_a_manifest_fits_the_schema(document):
    kubernetes_validate.validate(document, "1.31", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**document, "metdata": {}}, "1.31", strict=True)


def test_the_kustomization_lists_every_manifest():
    listed = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())["resources"]
    there = {file.name for file in (DEPLOY / "kubernetes").glob("*.yaml")} - {"kustomization.yaml"}
    assert set(listed) == there


def test_the_manifests_agree_with_each_other_and_with_the_server():
    from companion.deployment.server import GRACE_S

    pod = ALL["Deployment", "companion"]["spec"]["template"]
    server = pod["spec"]["containers"][0]
    labels = pod["metadata"]["labels"].items()
    for kind, path in (
        ("Service", "selector"),
        ("PodDisruptionBudget", "selector"),
        ("NetworkPolicy", "podSelector"),
    ):
        selector = ALL[kind, "companion"]["spec"][path]
        assert selector.get("matchLabels", selector).items() <= labels, kind
    assert ALL["HorizontalPodAutoscaler", "companion"]["spec"]["scaleTargetRef"]["name"] == "companion"
    paths = {
        name: server[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert paths == {
        "startupProbe": "/health/ready",
        "livenessProbe": "/health/live",
        "readinessProbe": "/health/ready",
    }
    assert (
        pod["spec"]["terminationGracePeriodSeconds"]
        > server["lifecycle"]["preStop"]["sleep"]["seconds"] + GRACE_S
    )
    settings = ALL["ConfigMap", "companion"]["data"]
    used = {name for argument in server["args"] for name in re.findall(r"\$\((\w+)\)", argument)}
    assert used <= settings.keys()
    assert {"--redis=$(REDIS)", "--cache=$(REDIS)"} <= set(server["args"])
    assert (
        settings["REDIS"].split("//")[1].split(":")[0]
        == ALL["Service", "companion-redis"]["metadata"]["name"]
    )
    assert int(settings["COMPANION_THREADS"]) == int(server["resources"]["limits"]["cpu"])
    assert pod["spec"]["enableServiceLinks"] is False
    for name in ("companion", "companion-redis"):
        spec = ALL["Deployment", name]["spec"]["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"] and not spec["automountServiceAccountToken"]
        assert spec["containers"][0]["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


# --- the image


def test_the_dockerfile_copies_what_is_there_and_runs_as_nobody_special():
    text = (DEPLOY / "image" / "Dockerfile").read_text()
    ignored = (DEPLOY / "image" / "Dockerfile.dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        *sources, _ = line.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            assert f"!{source.removeprefix('./')}" in ignored, f"{source} is not let through"
    stages = re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE)
    assert stages == ["build", "server", "with-model"]
    last = text.split(" AS server")[1]
    assert re.search(r"^USER 10001:10001$", last, re.MULTILINE) and "HEALTHCHECK" in last
    uid = ALL["Deployment", "companion"]["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
    assert str(uid) in last


def test_the_health_check_of_the_image_is_python_that_runs():
    text = (DEPLOY / "image" / "Dockerfile").read_text()
    code = re.search(r'CMD \["python", "-c", "(.+)"\]', text)
    assert code
    compile(code[1], "healthcheck", "exec")
    assert "/health/ready" in code[1]
