"""A real S3 server on this machine for tests: moto's, in a process of its own, behind a forwarder that can be cut.

moto keeps objects in memory: a server that is ended has lost them. Tests of a storage that goes away and comes back therefore cut
the connection to it, as a network does. It does not check who asks; tests of refused credentials use a server of their own.
"""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from types import TracebackType

__all__ = ["Forwarder", "S3Server", "free_port"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class S3Server:
    """moto's S3 server; ``with S3Server() as server: server.url``."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> S3Server:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self._process.poll() is None, "moto's server has ended"
            with suppress(OSError):
                self._request("GET", "/")
                return self
            time.sleep(0.1)
        raise AssertionError("moto's server does not answer")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _request(self, method: str, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, headers={"Host": f"127.0.0.1:{self.port}"})
            return connection.getresponse().status
        finally:
            connection.close()

    def make_bucket(self, name: str) -> None:
        assert self._request("PUT", f"/{name}") == 200

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class Forwarder:
    """Hands connections on to a port; :meth:`cut` ends them all and refuses new ones, until :meth:`mend`.

    Args:
        target: port on this machine.
        most_bytes: cut by itself once so many bytes have gone to the target; None for never.
    """

    def __init__(self, target: int, *, most_bytes: int | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._target = target
        self._most_bytes = most_bytes
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.mend()

    def mend(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(64)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def cut(self) -> None:
        with self._lock:
            listener, self._listener = self._listener, None
            connections, self._open = self._open, set()
        for connection in connections | ({listener} if listener is not None else set()):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            with self._lock:
                self._open |= {client, server}
            for source, target, counted in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pump, args=(source, target, counted), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                if counted and self._most_bytes is not None:
                    self._most_bytes -= len(data)
                    if self._most_bytes < 0:
                        self._most_bytes = None
                        self.cut()
                        return
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)
