"""Measures what each process holds of a run's states when they are split: bytes of the tensors that are there.

python benchmarks/sharding.py
"""

import multiprocessing
import os
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from measuring import show
from torch.distributed.tensor import DTensor

from kaleido_diffusers.training.config import ModelConfig, TrainConfig
from kaleido_diffusers.training.loop import Trainer


LAYOUTS = ((1, 1), (1, 2), (1, 4), (2, 2))  # copies, shards
COLUMNS = {
    "copies x shards": "",
    "weights": ".2f",
    "optimizer": ".2f",
    "average": ".2f",
    "all": ".2f",
    "of one": ".3f",
}


@dataclass
class Config:
    preset: str = "tiny"
    """Architecture."""
    optimizer: str = "muon"
    """Or `adamw`."""
    output: Path | None = None
    """JSON of the rows."""


def hold(number: int, port: int, layout: tuple[int, int], config: Config, folder: str, results) -> None:
    """Makes one process of a run, and says what it holds."""
    copies, shards = layout
    if copies * shards > 1:
        place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": copies * shards, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    degrees = {"data_parallel_replicate_degree": copies, "data_parallel_shard_degree": shards}
    model = ModelConfig(preset=config.preset)  # pyright: ignore[reportArgumentType]
    settings = {"model": model, "optimizer": config.optimizer, "tracker": "none", "dtype": "float32", **degrees}
    trainer = Trainer(TrainConfig(output=Path(folder), batch=4, **settings))
    results.put({part: sum(map(own_bytes, leaves(tensors))) for part, tensors in trainer._tensors().items()})
    trainer.accelerator.end_training()


def leaves(tensors: dict):
    for value in tensors.values():
        yield from leaves(value) if isinstance(value, dict) else (value,)


def own_bytes(tensor: torch.Tensor) -> int:
    own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return own.untyped_storage().nbytes()


def main(config: Config) -> None:
    context, rows, whole = multiprocessing.get_context("forkserver"), [], 0.0
    context.set_forkserver_preload(["kaleido_diffusers.training.loop"])
    for layout in LAYOUTS:
        results, folder = context.Queue(), tempfile.mkdtemp()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        arguments = (port, layout, config, folder, results)
        group = [context.Process(target=hold, args=(n, *arguments)) for n in range(layout[0] * layout[1])]
        for process in group:
            process.start()
        most = max((results.get(timeout=600) for _ in group), key=lambda held: sum(held.values()))
        for process in group:
            process.join()
        total = sum(most.values()) / 1e6
        whole = whole or total
        row = {"weights": most["model"], "optimizer": most["optimizer"], "average": most["ema"]}
        row = {name: value / 1e6 for name, value in row.items()}
        rows.append({"copies x shards": f"{layout[0]} x {layout[1]}", **row, "all": total, "of one": total / whole})
    show(rows, COLUMNS, config.output)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
