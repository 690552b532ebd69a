"""The web configuration that is in force: read again whenever its files say something else."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serving import config as web_config
from serving import tls as web_tls
from serving.clock import Clock, SystemClock
from serving.config import WebConfig
from serving.errors import ConfigError
from serving.question import Question, T, Unanswered
from serving.tls import TlsOffer

# A server of files that is gone may not answer for days: the last good configuration is served on.
_PATIENCE_SECONDS = 1.0
_PATIENCE_AT_START_SECONDS = 10.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """One reading of the file and of those that it names.

    Attributes:
        tls: None serves plain HTTP.
        contents: digest of every file that was read.
    """

    config: WebConfig
    tls: TlsOffer | None
    contents: bytes


@dataclass(frozen=True, slots=True)
class State:
    """What there is to watch; times are seconds since the epoch.

    Attributes:
        is_current: what the files say now is in force.
        since: when what is in force was read.
        certificate_expires: when the first of the server's certificates ceases to be good; None
            without TLS.
    """

    is_current: bool
    since: float
    certificate_expires: float | None


class LiveConfig:
    """Looks at the files for each request and each handshake, as exporter-toolkit does.

    Their contents are compared, not their times: a rotation within one tick of the clock, or by
    exchanging a link, is seen too. What cannot be used is logged, and the last good one stays in
    force; so it does while the files do not answer, which holds up a request for a second, once.
    What would take protection away at run time, if a half-written file said it, needs a restart:
    no password any more, no TLS any more.
    """

    def __init__(
        self,
        path: Path,
        check: Callable[[WebConfig], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Read it.

        Args:
            path: the file.
            check: raises a ConfigError where what it says cannot be served here, now or later.
            clock: says when it was read.

        Raises:
            ConfigError: it cannot be used.
        """
        self._path = path
        self._check = check
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._complaint = ""
        at_start = Question(lambda: _load(path, check), "web-config")
        self._loaded = self._answer(at_start, _PATIENCE_AT_START_SECONDS)
        self._question = Question(self._look, "web-config")
        self._since = self._clock.time()
        _warn(self._loaded.config)

    def current(self) -> Loaded:
        """Return what is in force now; never raises."""
        with self._lock:
            try:
                self._refresh()
            except ConfigError as error:
                if str(error) != self._complaint:
                    self._complaint = str(error)
                    _log.error("%s; what was read before stays in force", error)
            return self._loaded

    def state(self) -> State:
        """Look at the files now, and say how that went; never raises."""
        offered = self.current().tls
        with self._lock:
            return State(
                is_current=not self._complaint,
                since=self._since,
                certificate_expires=None if offered is None else offered.expires,
            )

    def _refresh(self) -> None:
        old, new = self._loaded, self._answer(self._question, _PATIENCE_SECONDS)
        if new is None:
            return
        if (new.tls is None) != (old.tls is None):
            raise ConfigError(f"{self._path}: TLS is switched on or off by a restart only")
        if old.config.users and not new.config.users:
            raise ConfigError(f"{self._path}: passwords are switched off by a restart only")
        if new.contents != old.contents or self._complaint:
            _log.info("%s and the files it names were read again", self._path)
            self._since = self._clock.time()
        self._complaint = ""
        self._loaded = new

    def _look(self) -> Loaded | None:
        """Read the files; None where they say what is in force."""
        in_force = self._loaded
        if not self._complaint and _contents(self._path, in_force.config) == in_force.contents:
            return None
        return _load(self._path, self._check)

    def _answer(self, question: Question[T], patience: float) -> T:
        try:
            return question.begin().answer(patience)
        except Unanswered:
            raise ConfigError(
                f"{self._path}, or a file that it names, does not answer: look at its mount"
            ) from None


def _load(path: Path, check: Callable[[WebConfig], None] | None) -> Loaded:
    text = _read(path)
    try:
        config = web_config.parse(text, path.parent)
        if check is not None:
            check(config)
        # Before the files are used: one that changes meanwhile is seen to have changed.
        contents = _contents(path, config)
        tls = None if config.tls is None else web_tls.build(config.tls)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except OSError as error:
        # A file that went away while it was read, or no descriptor left to read it with.
        raise ConfigError(f"{path}: cannot be read now: {error.strerror}") from error
    return Loaded(config, tls, contents)


def _contents(path: Path, config: WebConfig) -> bytes:
    digest = hashlib.sha256()
    for file in (path, *(config.tls.files if config.tls else ())):
        digest.update(hashlib.sha256(_read(file)).digest())
    return digest.digest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _warn(config: WebConfig) -> None:
    tls = config.tls
    if tls is None:
        if config.users:
            _log.warning("passwords are asked for without TLS: they cross the network readable")
        return
    verified = tls.client_auth_type != "NoClientCert"
    if verified and not tls.client_ca and tls.client_ca_file is None:
        _log.warning("client_ca_file is not set: certificates of any public CA are accepted")
