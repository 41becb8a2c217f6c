"""CPU seconds of `import kaleido_diffusers`, of all its names, and of `kaleido --help`, in fresh processes, beside
those of the parts of diffusers that it needs, in turns.

    python benchmarks/import_time.py
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import tyro
from measuring import show


IMPORTS = {
    "diffusers, the parts needed": (
        "from diffusers import AutoencoderKL, AutoencoderTiny, ConfigMixin, DiffusionPipeline, ModelMixin\n"
        "from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin\n"
        "from diffusers.models.attention_dispatch import dispatch_attention_fn"
    ),
    "kaleido_diffusers": "import kaleido_diffusers",
    "all names of kaleido_diffusers": "from kaleido_diffusers import *",
    "kaleido --help": (
        "from kaleido_diffusers.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    ),
}
TIMED = "import time; started = time.process_time()\n{}\nprint(time.process_time() - started)"


@dataclass
class Config:
    repeats: int = 5
    """Processes of each kind."""
    output: Path | None = None
    """JSON of the rows."""


def main(config: Config) -> None:
    seconds = {name: [] for name in IMPORTS}
    for _ in range(config.repeats):
        for name, code in IMPORTS.items():
            run = [sys.executable, "-W", "ignore", "-c", TIMED.format(code)]
            printed = subprocess.run(run, check=True, capture_output=True, text=True).stdout
            seconds[name].append(float(printed.splitlines()[-1]))
    base = median(seconds["diffusers, the parts needed"])
    columns = {"import": "", "CPU seconds": ".2f", "fastest": ".2f", "slowest": ".2f", "ratio": ".2f"}
    rows = [
        {
            "import": name,
            "CPU seconds": median(taken),
            "fastest": min(taken),
            "slowest": max(taken),
            "ratio": median(taken) / base,
        }
        for name, taken in seconds.items()
    ]
    show(rows, columns, config.output)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
