"""`serve` in a process of its own, for tests and benchmarks: `with Server(path) as server: ... server.url`."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import msgspec

from burnish.errors import BurnishError, ServeError
from burnish.serve.server import Options, serve


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nothing listens at now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class Server:
    """`serve` in a process of its own, ready to be asked: `with Server(path) as server: ... server.url`. Ends with the block."""

    def __init__(
        self,
        path: str | Path,
        *,
        http: int | None = None,
        host: str = "127.0.0.1",
        timeout: float = 60.0,
        stdout: Any = None,
        **options: Any,
    ) -> None:
        self.host = host
        self._stdout = stdout
        self.port = http or free_port(host)
        self.timeout = timeout
        self.options = {"path": str(path), "http": self.port, "host": host, **options}
        self.secure = "tls_cert" in options
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed by __exit__
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"http{'s' if self.secure else ''}://{self.address}"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServeError("the server was not started. Use it in a with statement")
        return self._process

    @property
    def log(self) -> str:
        """What the server wrote to stderr until now."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def __enter__(self) -> Server:
        code = "import sys; from burnish.serve.process import main; sys.exit(main(sys.argv[1]))"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, msgspec.json.encode(self.options, enc_hook=str).decode()], stdout=self._stdout, stderr=self._log
        )
        until = time.monotonic() + self.timeout
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise ServeError((self.log.strip().splitlines() or ["the server ended without a word"])[-1])
            try:
                if self.secure:  # whom it lets in is the caller's to try
                    socket.create_connection((self.host, self.port), 1).close()
                else:
                    urllib.request.urlopen(f"{self.url}/v2/health/ready", timeout=1).close()
                return self
            except OSError:  # nobody listens yet
                time.sleep(0.02)
        self.stop()
        raise ServeError(f"the server at {self.url} was not ready within {self.timeout:g} seconds")

    def stop(self, timeout: float = 10.0) -> int:
        """End the server as SIGTERM does; its exit status. One that has not ended after `timeout` seconds is killed."""
        self.process.terminate()
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.stop()
        self._log.close()


def main(options: str) -> int:
    """`serve` with options as a JSON object; the exit code. The command line is `burnish serve`; this is what Server starts."""
    told = msgspec.json.decode(options)
    try:
        serve(told.pop("path"), msgspec.convert(told, Options, dec_hook=lambda kind, text: kind(text)))
    except BurnishError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0
