"""`/proc/<pid>/cgroup` as container runtimes really leave it; each form with where it is made.

Ids are made up; the shapes are those of the sources, and of tests and logs of programs that read
them (k3s, kind, OpenTelemetry, Datadog).
"""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.cgroups import Place, place

ID = "3f1d6cba" * 8
OUTER = "0a9b8c7d" * 8
POD = "b6a16766-05ee-446a-8ee5-ff96a817f47c"
POD_ = POD.replace("-", "_")
STATIC = "c4ca4238a0b923820dcc509a6f75849b"
USER = "/user.slice/user-1000.slice/user@1000.service"
SLICE = f"kubepods-besteffort-pod{POD_}.slice"
V1 = "12:pids:{0}\n11:memory:{0}\n2:cpu,cpuacct:{0}\n1:name=systemd:{0}\n0::{1}\n"


def v2(path: str) -> str:
    return f"0::{path}\n"


# moby, daemon/oci_linux.go: cgroupsPath is "SLICE:docker:ID" for systemd, else "/docker/ID".
DOCKER = {
    "systemd, v2": (v2(f"/system.slice/docker-{ID}.scope"), Place(f"docker-{ID}.scope", ID)),
    "systemd, v2, systemd inside": (
        v2(f"/system.slice/docker-{ID}.scope/system.slice/ollama.service"),
        Place(f"docker-{ID}.scope", ID),
    ),
    "cgroupfs, v2": (v2(f"/docker/{ID}"), Place("", ID)),
    "systemd, v1": (
        V1.format(f"/system.slice/docker-{ID}.scope", "/"),
        Place(f"docker-{ID}.scope", ID),
    ),
    # On a hybrid host the unified hierarchy knows only who started it.
    "cgroupfs, v1 and v2": (
        V1.format(f"/docker/{ID}", "/system.slice/containerd.service"),
        Place("", ID),
    ),
    "rootless": (
        v2(f"{USER}/user.slice/docker-{ID}.scope"),
        Place(f"docker-{ID}.scope", ID),
    ),
    # A cgroup parent that is a slice, given to the cgroupfs driver.
    "slice to cgroupfs": (v2(f"/system.slice:docker:{ID}"), Place("", ID)),
    "from a container beside it": (
        v2(f"/../docker-{ID}.scope"),
        Place(f"docker-{ID}.scope", ID),
    ),
}
# podman, libpod, getOCICgroupPath(): "SLICE:libpod:ID" for systemd, else "PARENT/libpod-ID"; with
# --cgroups=split, as Quadlet asks, "libpod-payload-ID" below its own; crun adds the leaf "container".
PODMAN = {
    "root, crun": (
        v2(f"/machine.slice/libpod-{ID}.scope/container"),
        Place(f"libpod-{ID}.scope", ID),
    ),
    "rootless": (
        v2(f"{USER}/user.slice/libpod-{ID}.scope/container"),
        Place(f"libpod-{ID}.scope", ID),
    ),
    "quadlet": (
        v2(f"/system.slice/vllm.service/libpod-payload-{ID}"),
        Place("vllm.service", ID),
    ),
    "rootless quadlet": (
        v2(f"{USER}/app.slice/vllm.service/libpod-payload-{ID}/container"),
        Place("vllm.service", ID),
    ),
    "cgroupfs": (v2(f"/libpod_parent/libpod-{ID}"), Place("", ID)),
    "in a podman pod": (
        v2(f"/machine.slice/machine-libpod_pod_{OUTER}.slice/libpod-{ID}.scope/container"),
        Place(f"libpod-{ID}.scope", ID),
    ),
    "its monitor": (
        v2(f"/machine.slice/libpod-conmon-{ID}.scope"),
        Place(f"libpod-conmon-{ID}.scope"),
    ),
}
# Of kubelet pkg/kubelet/cm: pod_container_manager_linux.go joins "pod" and the uid, ToSystemd() in
# cgroup_manager_linux.go turns "-" of a name into "_". Of containerd's CRI getCgroupsPath():
# "SLICE:cri-containerd:ID", else "PARENT/ID". Of CRI-O internal/config/cgmgr: "crio-ID.scope", "crio-ID".
KUBERNETES = {
    "systemd, containerd": (
        v2(f"/kubepods.slice/kubepods-besteffort.slice/{SLICE}/cri-containerd-{ID}.scope"),
        Place(f"cri-containerd-{ID}.scope", ID, POD),
    ),
    "systemd, guaranteed": (
        v2(f"/kubepods.slice/kubepods-pod{POD_}.slice/cri-containerd-{ID}.scope"),
        Place(f"cri-containerd-{ID}.scope", ID, POD),
    ),
    "systemd, CRI-O": (
        v2(f"/kubepods.slice/kubepods-besteffort.slice/{SLICE}/crio-{ID}.scope/container"),
        Place(f"crio-{ID}.scope", ID, POD),
    ),
    "systemd, Docker by cri-dockerd": (
        v2(f"/kubepods.slice/kubepods-besteffort.slice/{SLICE}/docker-{ID}.scope"),
        Place(f"docker-{ID}.scope", ID, POD),
    ),
    "cgroupfs, containerd": (
        V1.format(f"/kubepods/burstable/pod{POD}/{ID}", "/"),
        Place("", ID, POD),
    ),
    "cgroupfs, CRI-O": (v2(f"/kubepods/pod{POD}/crio-{ID}"), Place("", ID, POD)),
    "static pod": (
        v2(f"/kubepods/burstable/pod{STATIC}/{ID}"),
        Place("", ID, STATIC),
    ),
    # kubelet with the systemd driver, containerd without SystemdCgroup.
    "mixed drivers": (
        V1.format(f"/system.slice/containerd.service/{SLICE}:cri-containerd:{ID}", "/"),
        Place("containerd.service", ID, POD),
    ),
    "kind": (
        v2(
            f"/system.slice/docker-{OUTER}.scope/kubelet.slice/kubelet-kubepods.slice/"
            f"kubelet-kubepods-besteffort.slice/kubelet-{SLICE}/cri-containerd-{ID}.scope"
        ),
        Place(f"docker-{OUTER}.scope", ID, POD),
    ),
    "kind, cgroupfs": (
        v2(f"/docker/{OUTER}/kubelet/kubepods/besteffort/pod{POD}/{ID}"),
        Place("", ID, POD),
    ),
    "from a pod, v1": (
        V1.format(f"/../../pod{POD}/{ID}", "/"),
        Place("", ID, POD),
    ),
    "from a pod, v2": (
        v2(f"/../../{SLICE}/cri-containerd-{ID}.scope"),
        Place(f"cri-containerd-{ID}.scope", ID, POD),
    ),
}
# nerdctl: "nerdctl-ID.scope", "/NAMESPACE/ID".
OTHERS = {
    "nerdctl, systemd": (v2(f"/system.slice/nerdctl-{ID}.scope"), Place(f"nerdctl-{ID}.scope", ID)),
    "nerdctl, cgroupfs": (v2(f"/default/{ID}"), Place("", ID)),
    "service": (v2("/system.slice/ollama.service"), Place("ollama.service")),
    "service, v1": (V1.format("/", "/system.slice/vllm@0.service"), Place("vllm@0.service")),
    "user service": (v2(f"{USER}/app.slice/llama.service"), Place("llama.service")),
    "session": (v2("/user.slice/user-1000.slice/session-3.scope"), Place("session-3.scope")),
    "user manager": (v2(f"{USER}/init.scope"), Place("init.scope")),
    "gone": (v2("/system.slice/ollama.service (deleted)"), Place("ollama.service")),
    "container that is gone": (
        v2(f"/system.slice/docker-{ID}.scope (deleted)"),
        Place(f"docker-{ID}.scope", ID),
    ),
    "nspawn": (v2("/machine.slice/machine-llm.scope/payload"), Place("machine-llm.scope")),
    "root": (v2("/"), Place()),
    "in our own container": (V1.format("/", "/"), Place()),
    "nothing": ("", Place()),
    "not understood": ("no colon\n::\n0::\n\0", Place()),
    "not quite an id": (v2(f"/docker/{ID[:-1]}"), Place()),
    "not quite a pod": (v2("/pods.slice/pod12.slice/podium.slice"), Place()),
}
FORMS = {
    f"{family}: {name}": form
    for family, forms in (
        ("docker", DOCKER),
        ("podman", PODMAN),
        ("kubernetes", KUBERNETES),
        ("others", OTHERS),
    )
    for name, form in forms.items()
}


@pytest.mark.parametrize("name", FORMS)
def test_the_place_of_a_process(name) -> None:
    text, expected = FORMS[name]
    assert place(text) == expected


PIECES = st.sampled_from(
    [
        ID,
        POD,
        POD_,
        STATIC,
        SLICE,
        "docker-",
        "crio-",
        ".scope",
        ".service",
        "pod",
        "/",
        ":",
        "..",
        "0",
        "\n",
        "é",
    ]
)


@given(st.lists(PIECES | st.text(max_size=8), max_size=20).map("".join))
@settings(max_examples=200, deadline=None)
def test_whatever_stands_there_an_id_is_an_id(text) -> None:
    found = place(text)
    assert re.fullmatch(r"(?:[0-9a-f]{64})?", found.container_id)
    assert re.fullmatch(r"(?:[0-9a-f-]{36}|[0-9a-f]{32})?", found.pod_uid)
    assert "/" not in found.unit
    assert "\n" not in found.unit
