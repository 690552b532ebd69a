"""The log of a pod's container, from the API server (`GET …/pods/NAME/log`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from remediator.managers._kubernetes_api import RefusedError
from remediator.managers._server_log import PAGE_BYTES, LogPage, stamped_page
from remediator.managers._workload import Pod

# The server may give a little more than it was asked for.
_MARGIN = 64 * 1024


class PodLog:
    """`ServerLog` over the newest pod. What its container wrote before kubelet restarted it is read, too."""

    def __init__(
        self, where: str, pod: Callable[[], Pod | None], fetch: Callable[[Pod, str, int], bytes]
    ) -> None:
        """Nothing is asked yet.

        Args:
            where: Which server's, for a person.
            pod: Looks for the newest pod; None where there is none.
            fetch: Gets at most so many bytes of a pod's log for a query string.
        """
        self.where = where
        self._pod, self._fetch = pod, fetch

    def read(self, position: Mapping[str, Any], since: float) -> LogPage:
        """The next lines; the API counts in seconds, so some come twice and are left out."""
        pod = self._pod()
        if pod is None or not pod.container_id:
            return LogPage((), dict(position))
        after = max(float(position.get("at", 0.0)), since)
        # The end of the process that was killed is where it says why.
        ended = pod.ended_id not in ("", pod.container_id)
        if ended and position.get("container") == pod.ended_id:
            try:
                page = self._page(pod, pod.ended_id, after, previous=True)
            except RefusedError:
                # The kubelet has removed it; what runs now goes on writing.
                page = LogPage((), {"at": after}, skipped=True)
            if not page.more:
                ahead = {**page.position, "container": pod.container_id}
                return LogPage(page.lines, ahead, more=True, skipped=page.skipped)
            return page
        return self._page(pod, pod.container_id, after, previous=False)

    def _page(self, pod: Pod, container: str, after: float, *, previous: bool) -> LogPage:
        query = {"timestamps": "true", "limitBytes": PAGE_BYTES, "sinceTime": _rfc3339(after)}
        if previous:
            query["previous"] = "true"
        data = self._fetch(pod, urlencode(query), PAGE_BYTES + _MARGIN)
        cut = len(data) >= PAGE_BYTES
        whole = data[: data.rfind(b"\n") + 1] if cut else data
        page = stamped_page(whole, after, cut=cut)
        return replace(page, position={**page.position, "container": container})


def _rfc3339(unix: float) -> str:
    return datetime.fromtimestamp(int(unix), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
