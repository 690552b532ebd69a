"""The Kubernetes manifests: that they name each other rightly, and what they give to whom."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from exporter import __version__
from remediator.config import Config, load
from remediator.config.windows import check_playbooks
from remediator.managers._workload_client import Right, rights
from remediator.playbooks import load as load_playbooks
from tests.remediator.drivers.kubernetes_scene import NOW, Scene, scene

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
OURS, THEIRS = "gpu-remediator", "llm"
# What the API server would refuse an object without.
REQUIRED = {
    "ConfigMap": (),
    "DaemonSet": ("spec.selector.matchLabels", "spec.template.spec.containers"),
    "Namespace": (),
    "Role": ("rules",),
    "RoleBinding": ("roleRef.apiGroup", "roleRef.kind", "roleRef.name"),
    "Service": ("spec.ports",),
    "ServiceAccount": (),
    "StatefulSet": (
        "spec.selector.matchLabels",
        "spec.template.spec.containers",
        "spec.serviceName",
    ),
}
VERSIONS = {
    "DaemonSet": "apps/v1",
    "StatefulSet": "apps/v1",
    "Role": "rbac.authorization.k8s.io/v1",
    "RoleBinding": "rbac.authorization.k8s.io/v1",
}


def objects() -> Iterator[dict[str, Any]]:
    for file in sorted(FOLDER.glob("*.yaml")):
        yield from yaml.safe_load_all(file.read_text())


def one(kind: str, name: str = "") -> dict[str, Any]:
    (found,) = (o for o in objects() if o["kind"] == kind and name in ("", o["metadata"]["name"]))
    return found


def at(raw: Any, path: str) -> Any:
    for key in path.split("."):
        raw = raw[key]
    return raw


PODS = {"DaemonSet": "gpu-exporter", "StatefulSet": "gpu-remediator"}


@pytest.mark.parametrize(
    "found", list(objects()), ids=lambda o: f"{o['kind']}-{o['metadata']['name']}"
)
def test_each_object_has_what_its_kind_requires(found: dict[str, Any]) -> None:
    kind = found["kind"]
    assert found["apiVersion"] == VERSIONS.get(kind, "v1")
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", found["metadata"]["name"])
    for path in REQUIRED[kind]:
        assert at(found, path), path
    wanted = THEIRS if kind in ("Role", "RoleBinding") else OURS
    assert found["metadata"].get("namespace", wanted) == wanted
    assert ("namespace" in found["metadata"]) == (kind != "Namespace")


@pytest.mark.parametrize(("kind", "name"), PODS.items())
def test_what_a_workload_makes_is_found_again(kind: str, name: str) -> None:
    workload, service = one(kind), one("Service", name)
    labels = workload["spec"]["template"]["metadata"]["labels"]
    assert workload["spec"]["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    ports = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    probes = [container[probe] for probe in container if probe.endswith("Probe")]
    assert {probe["httpGet"]["port"] for probe in probes} <= ports
    assert ("livenessProbe" in container) == (kind == "StatefulSet"), (
        "who is in the driver is not killed"
    )
    assert container["image"] == f"{name}:{__version__}"
    spec = workload["spec"]["template"]["spec"]
    kept = {v["metadata"]["name"] for v in workload["spec"].get("volumeClaimTemplates", ())}
    volumes = kept | {volume["name"] for volume in spec.get("volumes", ())}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


@pytest.mark.parametrize("kind", PODS)
def test_nothing_is_root_privileged_or_holds_a_card(kind: str) -> None:
    spec = one(kind)["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    shares = spec.get("hostPID", False)
    for one_of in ("runAsUser", "runAsGroup", "fsGroup"):
        number = spec["securityContext"][one_of]
        assert number == (59940 if shares else 65534), "who sees all processes is nobody else"
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for whole in ("hostNetwork", "hostIPC"):
        assert whole not in spec
    assert not any("hostPath" in volume for volume in spec["volumes"])
    assert not any("gpu" in name for limits in container["resources"].values() for name in limits)


def test_only_the_exporter_sees_processes_and_only_the_remediator_has_an_account() -> None:
    exporter, remediator = (one(kind)["spec"]["template"]["spec"] for kind in PODS)
    assert exporter["hostPID"] is True
    assert exporter["automountServiceAccountToken"] is False
    assert "hostPID" not in remediator
    account = {
        "kind": "ServiceAccount",
        "name": remediator["serviceAccountName"],
        "namespace": OURS,
    }
    assert one("RoleBinding")["subjects"] == [account]
    assert one("RoleBinding")["roleRef"]["name"] == one("Role")["metadata"]["name"]
    assert one("ServiceAccount")["metadata"]["name"] == account["name"]


def test_what_the_remediator_writes_has_a_place_on_a_read_only_root() -> None:
    """Commands write into temporary files, and SQLite where a sort does not fit its cache."""
    spec = one("StatefulSet")["spec"]["template"]["spec"]
    scratch = {volume["name"] for volume in spec["volumes"] if "emptyDir" in volume}
    mounts = {m["mountPath"]: m["name"] for m in spec["containers"][0]["volumeMounts"]}
    assert mounts["/tmp"] in scratch
    assert mounts["/run/gpu-remediator-emergency"] in scratch


def test_the_exporters_variables_are_flags() -> None:
    (container,) = one("DaemonSet")["spec"]["template"]["spec"]["containers"]
    names = {one["name"] for one in container["env"] if one["name"].startswith("GPU_EXPORTER_")}
    known = re.findall(r"`(GPU_EXPORTER_\w+)`", (ROOT / "docs" / "configuration.md").read_text())
    assert names - set(known) == set()


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """The embedded remediator.yml, with its paths moved into a folder of the test."""
    text = one("ConfigMap")["data"]["remediator.yml"]
    spec = one("StatefulSet")["spec"]["template"]["spec"]
    mounts = {m["name"]: m["mountPath"] for m in spec["containers"][0]["volumeMounts"]}
    assert f"state_dir: {mounts['state']}\n" in text
    for role in ("webhook", "read", "operate"):
        assert f"{mounts['tokens']}/{role}.token" in text
        (tmp_path / f"{role}.token").write_text(role + "x" * 20)
    file = tmp_path / "remediator.yml"
    moved = text.replace(mounts["tokens"], str(tmp_path))
    file.write_text(moved.replace(mounts["state"], str(tmp_path / "state")))
    return load(file)


def test_the_embedded_configuration_is_accepted_and_only_observes(config: Config) -> None:
    check_playbooks(config.windows, tuple(load_playbooks(config.playbooks).by_name))
    assert (config.mode, config.gpus.control) == ("observe", "none")
    exporter = one("Service", "gpu-exporter")
    host = f"{exporter['metadata']['name']}.{OURS}.svc:{exporter['spec']['ports'][0]['port']}"
    assert config.exporter.url == f"http://{host}"
    assert exporter["spec"]["internalTrafficPolicy"] == "Local", "its own node's cards"
    (service,) = config.services
    node = one("StatefulSet")["spec"]["template"]["spec"]["nodeSelector"]["kubernetes.io/hostname"]
    assert service.manager["node"] == node == config.exporter.instance
    named = {name for rule in one("Role")["rules"] for name in rule.get("resourceNames", ())}
    assert (service.manager["namespace"], {service.manager["name"]}) == (THEIRS, named)


@pytest.fixture
def cluster() -> Iterator[Scene]:
    with scene() as made:
        made.server.add("Deployment", "vllm")
        made.server.rules = one("Role")["rules"]
        yield made


def granted() -> set[tuple[str, str, str, str]]:
    return {
        (verb, group, resource, name)
        for rule in one("Role")["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", ("",))
    }


def test_the_role_is_enough_and_nothing_in_it_is_unused(config: Config, cluster: Scene) -> None:
    (service,) = config.services
    options = {key: value for key, value in service.manager.items() if key != "type"}
    manager = cluster.manager(**options)
    assert list(manager.concerns()) == []
    manager.log().read({}, NOW)
    manager.replace(manager.status().identity, "run 7", 30)
    manager.stop(None, 30)
    manager.start(30)
    assert cluster.server.used == granted()


def test_the_page_explains_each_right() -> None:
    page = (ROOT / "docs" / "deployment.md").read_text()
    table = page.partition("| right | for |")[2].partition("\n\n")[0]
    needed: set[Right] = set()
    for how in ("rollout", "pod", "stop_start"):
        needed |= set(rights("deployment", "vllm", how))
    for right in needed:
        resource = right.resource + (f"/{right.subresource}" if right.subresource else "")
        lines = [line for line in table.splitlines() if f"`{resource}`" in line]
        assert any(f"`{right.verb}`" in line for line in lines), right.told


@pytest.fixture
def schemas() -> Any:
    """The models of the official client, which are generated from the API's OpenAPI document."""
    for name in ("kubernetes", "pydantic"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed (pip install kubernetes==37.0.2): no schemas")
    from kubernetes.client import models

    return models


def wrong(schemas: Any, found: dict[str, Any]) -> str:
    group = "V2" if found["kind"] == "HorizontalPodAutoscaler" else "V1"
    model = getattr(schemas, group + found["kind"])
    try:
        model.model_validate(found, extra="forbid")
    except ValueError as error:
        return str(error)
    return ""


def test_manifests_and_stand_in_are_as_the_apis_schemas_have_them(
    schemas: Any, cluster: Scene
) -> None:
    cluster.server.add("StatefulSet", "db")
    cluster.server.gpus = 1
    cluster.server.edit("deployments", "vllm", {"spec": {"replicas": 3}})
    cluster.server.settle()
    cluster.server.end(cluster.server.pod(), 137, "OOMKilled", waits="CrashLoopBackOff")
    server = cluster.server
    made = [*server.workloads.values(), *server.sets.values(), *server.pods.values()]
    assert [error for found in (*objects(), *made) if (error := wrong(schemas, found))] == []
    assert "selecter" in wrong(schemas, {"kind": "Service", "spec": {"selecter": {}}})


def test_the_page_makes_the_tokens_that_the_configuration_reads(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "deployment.md").read_text()
    commands = page[page.index("\n## Kubernetes\n") :].partition("```sh\n")[2].partition("```")[0]
    lines = [line for line in commands.splitlines() if re.match(r"mkdir |python3 ", line)]
    script = "\n".join(lines).replace("python3 deploy", f"{sys.executable} {ROOT}/deploy")
    subprocess.run(["bash", "-ec", script], cwd=tmp_path, check=True, timeout=60)
    config = one("ConfigMap")
    wanted = yaml.safe_load(config["data"]["remediator.yml"])["web"]["tokens"].values()
    assert {Path(file).name for file in wanted} == {
        file.name for file in (tmp_path / "tokens").iterdir()
    }
