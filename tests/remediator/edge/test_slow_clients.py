"""Connections that drip, by the hundred, beside deliveries: the benchmark is benchmarks/slow_clients.py."""

from __future__ import annotations

import contextlib
import http.client
import socket

from serving.crowd import Capacity
from tests.remediator.edge.support import TOKENS, alert, body, in_process
from tests.serving.door import Door

SIZE = 300
HEAD = b"POST /api/v1/alerts HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def deliver(door: Door, data: bytes) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", door.port, timeout=20)
    try:
        headers = {
            "Authorization": f"Bearer {TOKENS['webhook']}",
            "Content-Type": "application/json",
        }
        connection.request("POST", "/api/v1/alerts", data, headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_deliveries_beside_hundreds_that_drip_are_taken_in(tmp_path) -> None:
    with in_process(tmp_path) as running, contextlib.ExitStack() as stack:
        door = Door(app=running.app, capacity=Capacity(6, 4 * 2**20))
        stack.callback(door.close)
        crowd = []
        for number in range(SIZE):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", door.port)))
            slow.sendall(HEAD + (b"Content-Length: 100000\r\n\r\n" if number % 2 else b"X-Drip: "))
            crowd.append(slow)
        for number in range(10):
            for slow in crowd:
                slow.send(b" ")
            data = body(alert(uuid=f"GPU-beside-slow-{number}"))
            assert deliver(door, data) == 202
        # None of them was sent away for it.
        assert door.server.connections >= SIZE
