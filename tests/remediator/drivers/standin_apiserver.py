"""A stand-in Kubernetes API server, for one namespace.

Paths, merge patches, preconditions, statuses and RBAC are those of the API reference of Kubernetes
1.37. The controllers move by one step at each look at pods, so that what lies between two states is
seen, too.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.remediator.drivers.standin_cluster import NAMESPACE, Cluster, Object, uid_of


class Server(Cluster):
    """A cluster, who may do what in it, and what goes wrong.

    `rules` are those of a Role; None lets everybody do everything. `used` is what was asked for, as
    (verb, group, resource, name). `before` is consulted before a request is carried out, `after`
    when it was: a status is answered in place of the true one, and 0 breaks the connection.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__(now)
        self.rules: list[Object] | None = None
        self.token: str | None = None
        self.used: set[tuple[str, str, str, str]] = set()
        self.requests: list[str] = []
        self.writes: list[str] = []
        self.before: Callable[[str, str], int | None] = lambda method, path: None
        self.after: Callable[[str, str], int | None] = lambda method, path: None

    def answer(self, method: str, target: str, body: Object, kind: str) -> tuple[int, Any]:
        parts = urlsplit(target)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        words = parts.path.strip("/").split("/")
        if parts.path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":
            return 201, self._review(body)
        group = "" if words[0] == "api" else words[1]
        rest = words[2:] if words[0] == "api" else words[3:]
        if rest[:2] != ["namespaces", NAMESPACE]:
            return _status(404, "NotFound", "the server could not find the requested resource")
        plural, name, sub = (*rest[2:], "", "")[:3]
        verb = {"GET": "get" if name else "list", "PATCH": "patch", "DELETE": "delete"}[method]
        resource = plural + (f"/{sub}" if sub else "")
        self.used.add((verb, group, resource, name if group == "apps" else ""))
        if not self.allows(verb, group, resource, name):
            who = f'{plural}.{group} "{name}" is forbidden: User "gpu-remediator" cannot {verb}'
            return _status(403, "Forbidden", who)
        if method == "GET":
            return self._get(group, plural, name, sub, query)
        if method == "DELETE":
            return self._delete_pod(name, body)
        return self._patch(plural, name, sub, body, kind, query)

    def allows(self, verb: str, group: str, resource: str, name: str) -> bool:
        if self.rules is None:
            return True
        return any(
            verb in rule["verbs"]
            and group in rule["apiGroups"]
            and resource in rule["resources"]
            and (not rule.get("resourceNames") or name in rule["resourceNames"])
            for rule in self.rules
        )

    def _review(self, body: Object) -> Object:
        asked = body["spec"]["resourceAttributes"]
        assert asked["namespace"] == NAMESPACE
        resource = asked["resource"] + (f"/{asked['subresource']}" if asked["subresource"] else "")
        allowed = self.allows(asked["verb"], asked["group"], resource, asked["name"])
        return {**body, "status": {"allowed": allowed}}

    def _get(self, group: str, plural: str, name: str, sub: str, query: Object) -> tuple[int, Any]:
        if plural == "horizontalpodautoscalers":
            return 200, _page("HorizontalPodAutoscalerList", self.autoscalers, query)
        if sub == "log":
            return self._log(name, query)
        if name:
            found = self.workloads.get((plural, name))
            return (200, found) if found else _status(404, "NotFound", f'"{name}" not found')
        self.step()
        wanted = dict(term.split("=") for term in query["labelSelector"].split(","))
        kept = self.pods if plural == "pods" else self.sets
        items = [
            one
            for one in kept.values()
            if wanted.items() <= one["metadata"].get("labels", {}).items()
        ]
        return 200, _page("List", items, query)

    def _log(self, name: str, query: Object) -> tuple[int, Any]:
        assert query["container"] == "server"
        if name not in self.pods:
            return _status(404, "NotFound", f'pods "{name}" not found')
        lines = self.logs.get((name, query.get("previous") == "true"), [])
        since = dt.datetime.fromisoformat(query["sinceTime"]).timestamp()
        text = "".join(
            f"{dt.datetime.fromtimestamp(at, dt.UTC).isoformat(timespec='microseconds')[:-6]}789Z {line}\n"
            for at, line in lines
            if at >= since
        )
        return 200, text.encode()[: int(query["limitBytes"])]

    def _delete_pod(self, name: str, body: Object) -> tuple[int, Any]:
        pod = self.pods.get(name)
        if pod is None:
            return _status(404, "NotFound", f'pods "{name}" not found')
        if body["preconditions"]["uid"] != uid_of(pod):
            return _status(409, "Conflict", "the UID in the precondition does not match")
        self._delete(pod)
        return 200, pod

    def _patch(
        self, plural: str, name: str, sub: str, body: Object, kind: str, query: Object
    ) -> tuple[int, Any]:
        if kind != "application/merge-patch+json":
            return _status(415, "UnsupportedMediaType", f"the body was in an unknown format {kind}")
        target = self.workloads.get((plural, name))
        if target is None:
            return _status(404, "NotFound", f'"{name}" not found')
        version = body.get("metadata", {}).get("resourceVersion")
        if version is not None and version != target["metadata"]["resourceVersion"]:
            return _status(
                409, "Conflict", "the object has been modified; please apply your changes"
            )
        if sub == "scale":
            body = {"spec": {"replicas": body["spec"]["replicas"]}}
        self._put(target, body, query["fieldManager"])
        return 200, target


def _page(kind: str, items: list[Object], query: Object) -> Object:
    """As many as `limit`, and where to go on."""
    start = int(query.get("continue", 0))
    end = start + int(query.get("limit", len(items)))
    more = {"continue": str(end)} if end < len(items) else {}
    return {"kind": kind, "apiVersion": "v1", "metadata": more, "items": items[start:end]}


def _status(code: int, reason: str, message: str) -> tuple[int, Object]:
    return code, {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    }


class _Handler(BaseHTTPRequestHandler):
    cluster: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _any(self) -> None:
        cluster, size = self.cluster, int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(size)) if size else {}
        cluster.requests.append(f"{self.command} {self.path}")
        if cluster.token is not None and self.headers["Authorization"] != f"Bearer {cluster.token}":
            return self._send(*_status(401, "Unauthorized", "Unauthorized"))
        instead = cluster.before(self.command, self.path)
        if instead is None:
            with cluster.lock:
                if self.command in ("PATCH", "DELETE"):
                    cluster.writes.append(f"{self.command} {self.path.partition('?')[0]}")
                code, found = cluster.answer(
                    self.command, self.path, body, self.headers.get("Content-Type", "")
                )
                data = found if isinstance(found, bytes) else json.dumps(found).encode()
            instead = cluster.after(self.command, self.path)
            if instead is None:
                return self._send(code, data)
        if instead == 0:
            # The connection breaks.
            self.close_connection = True
            return None
        return self._send(*_status(instead, "InternalError", "made to fail"))

    def _send(self, code: int, found: Any) -> None:
        data = found if isinstance(found, bytes) else json.dumps(found).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        # Who asked may have had enough.
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data)

    do_GET = do_POST = do_PATCH = do_DELETE = _any  # noqa: N815 - what the base class calls


@contextlib.contextmanager
def serve(cluster: Server, certificate: tuple[Path, Path] | None = None) -> Iterator[str]:
    """The server on a loopback port of its own; yields its URL. With a certificate and key by TLS."""
    handler = type("Handler", (_Handler,), {"cluster": cluster})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    scheme = "http" if certificate is None else "https"
    try:
        yield f"{scheme}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
