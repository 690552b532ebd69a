"""A server in vLLM's dialect that runs out of memory for real when somebody asks for too much.

    hungry_server.py PORT (limit BYTES | cgroup FOLDER) [small]

`limit`: its own address space, so that an allocation fails. `cgroup`: it goes into that cgroup, whose
limit the kernel enforces. `small`: it takes no request that is too large.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MODEL = "tiny"
TOO_MUCH = 1000
_MANY = 2**31
SMALL = "small" in sys.argv


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/v1/models":
            return self._send(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        return self._send(200 if self.path == "/health" else 404, {})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked["max_tokens"] >= TOO_MUCH:
            if SMALL:
                return self._send(400, {"error": {"message": "max_tokens is too large"}})
            self._take()
        return self._send(200, {"choices": [{"text": "pong"}], "model": MODEL})

    def _take(self) -> None:
        try:
            taken = bytearray(_MANY)
            for place in range(0, len(taken), 4096):
                taken[place] = 1
        except MemoryError:
            traceback.print_exc()
            self._send(500, {"error": {"message": "the engine has died: MemoryError"}})
            os._exit(1)

    def _send(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    port, kind, what = sys.argv[1:4]
    if kind == "cgroup":
        (Path(what) / "cgroup.procs").write_text(str(os.getpid()))
    else:
        resource.setrlimit(resource.RLIMIT_AS, (int(what), int(what)))
    ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever(0.02)


if __name__ == "__main__":
    main()
