"""`kaleido demo` as a process of its own, for tests that visit it."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from conftest import free_port


PATIENCE = 180.0  # seconds; only a page that hangs gets there


@dataclass(frozen=True)
class Server:
    url: str
    process: subprocess.Popen
    log: Path
    temporary: Path  # folder in which it makes its own

    def resident_mb(self) -> float:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise AssertionError("the server has ended")

    def files(self) -> list[Path]:
        """All that it, and libraries, have written: onnxruntime leaves a `.ses` where its telemetry is on."""
        return [path for path in self.temporary.rglob("*") if path.is_file()]


@contextmanager
def demo_server(folder: Path, *options: str, command: tuple[str, ...] | None = None, cwd=None) -> Iterator[Server]:
    """Serves on a free port of this machine; ends it as Ctrl-C would, and checks that it leaves no files."""
    port = free_port()
    temporary = folder / "temporary"
    temporary.mkdir(parents=True)
    log = folder / "server.log"
    root = str(Path(__file__).parents[1])
    if command is None:
        command = (sys.executable, "-m", "kaleido_diffusers.cli", "demo", "--port", str(port), *options)
    environment = {
        **os.environ,
        "PYTHONPATH": root if cwd is None else "",
        "TMPDIR": str(temporary),
        "MALLOC_ARENA_MAX": "1",  # one heap for all threads, so that figures of its size can be compared
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
    }
    with open(log, "w") as stream:
        process = subprocess.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=cwd or folder,
            stdin=subprocess.DEVNULL,
        )
    server = Server(f"http://127.0.0.1:{port}", process, log, temporary)
    try:
        _wait(server)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    assert not server.files(), "the server removes its files when it ends"


def _wait(server: Server) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert server.process.poll() is None, server.log.read_text()
        if "serving on" in server.log.read_text():
            urllib.request.urlopen(server.url, timeout=PATIENCE).close()
            return
        time.sleep(0.2)
    raise AssertionError(f"the server did not start:\n{server.log.read_text()}")
