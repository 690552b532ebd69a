"""A Deployment or StatefulSet of Kubernetes, whose pods are one server.

A stop is a scale to 0, a start the scale back to what it had, which is kept before it is changed.
A restart is one request: a rollout, which is marked with the run that asks for it, or the deletion
of the one pod by its uid. Either can be asked for again without being done twice, so that a request
whose answer was lost is looked for in the world and not guessed.

Kubernetes pins a change to a version of the workload, not to a process. What a stop could hit in
place of the process that it is meant for is one that came within the same version.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from remediator.config.strict import Seconds
from remediator.errors import ConfigError
from remediator.managers._kubernetes_api import IN_CLUSTER, Api, is_address
from remediator.managers._workload import Kind
from remediator.managers._workload_client import Restart, WorkloadClient
from remediator.managers._workload_manager import WorkloadManager
from remediator.managers._workload_restarts import PodDeletion, Rollout
from remediator.managers.base import Context

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_NAMES = {
    "namespace": re.compile(_LABEL),
    "name": re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*"),
    "container": re.compile(rf"({_LABEL})?"),
    "node": re.compile(rf"((?=.{{1,253}}$){_LABEL}(\.{_LABEL})*)?"),
}


@dataclass(frozen=True)
class Options:
    """Which workload, on which API server, and how it is restarted.

    `container`: where its pods have several. `node`: the only node where it may be acted on.
    `replicas`: how many to go back to where it is not known how many there were.
    """

    namespace: str
    name: str
    kind: Kind = "deployment"
    container: str = ""
    node: str = ""
    restart: Restart = "rollout"
    replicas: int = 1
    url: str = IN_CLUSTER
    token_file: Path = _ACCOUNT / "token"
    ca_file: Path = _ACCOUNT / "ca.crt"
    timeout: Seconds = 10.0


def create(options: Options, service: str, context: Context) -> WorkloadManager:
    """The manager of one workload."""
    where = f"services.{service}.manager"
    for key, form in _NAMES.items():
        if not form.fullmatch(getattr(options, key)):
            raise ConfigError(f"{where}.{key} must be a name of Kubernetes, in lower case")
    if not is_address(options.url):
        raise ConfigError(
            f"{where}.url must be https://HOST:PORT of an API server, or http://127.0.0.1:PORT of "
            "`kubectl proxy`, without a path and without a user in it"
        )
    if options.timeout <= 0:
        raise ConfigError(f"{where}.timeout must be longer than 0s")
    if options.replicas < 1:
        raise ConfigError(f"{where}.replicas must be at least 1")
    api = Api(options.url, options.token_file, options.ca_file, options.timeout, context.clock)
    client = WorkloadClient(api, options.namespace, options.kind, options.name, options.container)
    makes = {"rollout": Rollout, "pod": PodDeletion, "stop_start": WorkloadManager}
    return makes[options.restart](client, context, options.node, options.replicas)
