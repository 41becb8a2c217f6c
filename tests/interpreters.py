"""New Python processes, without the seconds that it takes to import what diffusers stands on: they are forked from one
that has imported it, but neither diffusers, nor the package, nor the client of the Hub, which reads the environment
when it is imported."""

import json
import os
import subprocess
import sys
import tempfile
import textwrap
from functools import cache
from pathlib import Path


# A process between waits for the new one and says how it has ended
_FORKS = """
import importlib, json, os, signal, sys
for name in ("PIL.Image", "scipy.stats", "torch", "torch._dynamo", "torchao.quantization"):
    try:
        importlib.import_module(name)
    except ImportError:
        pass
assert not {"diffusers", "huggingface_hub", "kaleido_diffusers"} & set(sys.modules)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    code, sys.argv[1:], env, folder = json.loads(line)
    if os.fork():
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if child := os.fork():
        with open(f"{folder}/status", "w") as status:
            status.write(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
        os._exit(0)
    for number, (name, how) in enumerate((("in", os.O_RDONLY), ("out", os.O_WRONLY), ("err", os.O_WRONLY))):
        os.dup2(os.open(f"{folder}/{name}", how), number)
    os.environ.clear()
    os.environ.update(env)
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    sys.exit()
"""


@cache
def _forks() -> subprocess.Popen[str]:
    """One for all tests of a process; it ends when this one does, as nobody writes to it any more."""
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", _FORKS], stdin=subprocess.PIPE, text=True)


class Interpreter:
    """`python -c CODE ARGUMENTS`. `stdin` and `stdout` are pipes; what it says on standard error is in `errors`."""

    def __init__(self, code: str, *arguments, env: dict[str, str] | None = None):
        self._folder = tempfile.TemporaryDirectory()
        place = Path(self._folder.name)
        self.errors = place / "err"
        self.errors.touch()
        for name in ("in", "out", "status"):
            os.mkfifo(place / name)
        request = [
            textwrap.dedent(code),
            list(map(str, arguments)),
            dict(os.environ if env is None else env),
            str(place),
        ]
        print(json.dumps(request), file=_forks().stdin, flush=True)
        self.stdin = open(place / "in", "w")
        self.stdout = open(place / "out")

    def close(self) -> int:
        """Waits for its end: the exit status."""
        self.stdin.close()
        self.stdout.close()
        return int((Path(self._folder.name) / "status").read_text())


def run_alone(code: str, *arguments, env: dict[str, str] | None = None) -> str:
    """What code prints that must end well."""
    interpreter = Interpreter(code, *arguments, env=env)
    said = interpreter.stdout.read()
    assert interpreter.close() == 0, interpreter.errors.read_text()[-3000:]
    return said
