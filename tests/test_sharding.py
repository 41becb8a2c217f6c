"""A model in shards over processes (gloo, on this machine) is the model of one process: in its losses, its states, its
checkpoints and what comes out."""

import json
import os
import time
import traceback
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import FORKS, free_port, places, random_poses
from test_trainer import MODEL, make_config
from torch.distributed.tensor import DTensor

from kaleido_diffusers import KaleidoTransformer3DModel, KaleidoViewSynthesisPipeline, RectifiedFlowViewScheduler
from kaleido_diffusers.bundled import bundled_checkpoint
from kaleido_diffusers.cli import main
from kaleido_diffusers.loaders.formats import open_weights
from kaleido_diffusers.training.checkpoints import latest_checkpoint
from kaleido_diffusers.training.config import LoraOptions, ModelConfig, TrainConfig
from kaleido_diffusers.training.loop import Trainer
from kaleido_diffusers.training.muon import Muon, orthogonalized


EXACT = {"muon_dtype": "float32", "steps": 20, "batch": 8, "save_every": 100, "keep": 100}


class Relay(Trainer):
    """Ends behind a step, as if the time were over, and keeps the states that it begins and ends with."""

    def __init__(self, config: TrainConfig, stop: int, folder: Path):
        super().__init__(config)
        self.stop, self.folder = stop, folder
        self.keep_state(f"begun-{self.step}")

    def _is_over(self) -> bool:
        return self.step >= self.stop

    def _write_result(self, folder: Path) -> None:
        super()._write_result(folder)
        self.keep_state(f"ended-{self.step}")

    def keep_state(self, name: str) -> None:
        """All tensors, whole, as a file; and how many bytes of them this process has."""
        tensors = flat(self._tensors())
        own = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors.values()]
        (self.folder / f"{name}-bytes-{self.accelerator.process_index}").write_text(str(sum(x.nbytes for x in own)))
        state = self.layout.gather(tensors)
        if self.is_main:
            torch.save(state, self.folder / f"{name}.pt")


def flat(tensors: dict, prefix: str = "") -> dict[str, torch.Tensor]:
    found = {}
    for key, value in tensors.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def started(number: int, size: int, ports: list[int], runs: list[tuple]) -> None:
    """A process of a group, which trains one run after the other. The trainer ends the group behind each."""
    torch.set_num_threads(1)
    os.environ.update(places(size)[number])
    try:
        for port, (kind, *arguments) in zip(ports, runs):
            os.environ["MASTER_PORT"] = str(port)
            AcceleratorState._reset_state(reset_partial_state=True)
            kind(*arguments).train()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def processes(size: int, *runs: tuple) -> list:
    """So many processes that train the `runs`, forked from one that has imported all already."""
    ports = [free_port() for _ in runs]
    group = [FORKS.Process(target=started, args=(number, size, ports, list(runs))) for number in range(size)]
    for process in group:
        process.start()
    return group


def together(size: int, *runs: tuple) -> None:
    """Trains the `runs` in so many processes, and waits for them."""
    group = processes(size, *runs)
    try:
        for process in group:
            process.join(300)
        assert [process.exitcode for process in group] == [0] * size
    finally:
        for process in group:
            process.kill()


def losses(folder: Path) -> torch.Tensor:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return torch.tensor([line["loss"] for line in lines if "loss" in line], dtype=torch.float64)


def assert_equal(left: Path, right: Path) -> None:
    a, b = torch.load(left), torch.load(right)
    assert a.keys() == b.keys() and len(a) > 60
    assert [key for key in a if not torch.equal(a[key], b[key])] == []


def sharded(config: TrainConfig, name: str, **options) -> TrainConfig:
    return replace(config, output=config.output.parent / name, data_parallel_shard_degree=-1, **options)


def lora_base(folder: Path) -> Path:
    torch.manual_seed(3)
    model = KaleidoTransformer3DModel(**MODEL, sample_size=8)
    torch.nn.init.normal_(model.proj_out.weight, std=0.1)
    KaleidoViewSynthesisPipeline(model, RectifiedFlowViewScheduler()).save_pretrained(folder)
    return folder


def test_two_shards_have_half_of_the_states_each_and_the_same_losses(tmp_path):
    config = make_config(tmp_path / "alone", **{**EXACT, "steps": 3})
    Relay(config, 3, tmp_path).train()
    (tmp_path / "shards").mkdir()
    together(2, (Relay, sharded(config, "two"), 3, tmp_path / "shards"))
    torch.testing.assert_close(losses(tmp_path / "two"), losses(tmp_path / "alone"), rtol=0, atol=1e-5)
    whole = int((tmp_path / "ended-3-bytes-0").read_text())
    halves = [int((tmp_path / "shards" / f"ended-3-bytes-{rank}").read_text()) for rank in range(2)]
    # Weights, average and moments; all but the counters of AdamW's steps, 4 bytes each, are split
    counters = 4 * 30
    assert whole <= sum(halves) <= whole + counters and max(halves) <= whole / 2 + counters


def views_of(pipe: KaleidoViewSynthesisPipeline) -> torch.Tensor:
    """Two views from one reference."""
    generator, size = torch.Generator().manual_seed(0), pipe.default_sample_size
    image, poses = torch.rand(3, size, size, generator=generator), random_poses(3, generator=generator)
    options = {"fov": 50.0, "num_inference_steps": 2, "generator": generator, "output_type": "pt"}
    return pipe([image], poses, **options).images


@pytest.mark.slow
def test_shards_train_as_one_process_and_a_run_goes_from_4_to_2_to_1_to_4(tmp_path):
    """Losses agree to 1e-5 over 20 steps, whatever the layout. On the way the state is handed on to the bit."""
    alone = make_config(tmp_path / "alone", **{**EXACT, "validate_every": 20, "validation_scenes": 3})
    Trainer(alone).train()
    lora = {"init_from": lora_base(tmp_path / "base"), "lora": LoraOptions(rank=4)}
    adapter = replace(alone, output=tmp_path / "adapter alone", **lora)
    Trainer(adapter).train()

    relay = sharded(alone, "relay")
    hybrid = {"data_parallel_replicate_degree": 2, "gradient_accumulation_steps": 2}
    four = [sharded(alone, "four"), sharded(alone, "hybrid", **hybrid)]
    together(4, *((Trainer, config) for config in four), (Relay, relay, 8, tmp_path))
    two = [sharded(alone, "two", gradient_checkpointing=True, reshard_after_forward=False)]
    two += [sharded(adapter, "adapter")]
    together(2, *((Trainer, config) for config in two), (Relay, relay, 14, tmp_path))
    Relay(relay, 17, tmp_path).train()
    together(4, (Relay, relay, 20, tmp_path))

    for name in ("four", "hybrid", "two", "adapter", "relay"):
        expected = losses(tmp_path / ("adapter alone" if name == "adapter" else "alone"))
        torch.testing.assert_close(losses(tmp_path / name), expected, rtol=0, atol=1e-5, msg=name)
    for step in (8, 14, 17):
        assert_equal(tmp_path / f"ended-{step}.pt", tmp_path / f"begun-{step}.pt")
    scores = [json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[-1]) for name in ("alone", "four")]
    assert scores[0]["validation_psnr"] == pytest.approx(scores[1]["validation_psnr"], abs=1e-3)
    assert (tmp_path / "four" / "validation-0000020.png").is_file()

    # The pipeline has the average of the last checkpoint, to the bit, and so has what is converted
    folders = {"auto": tmp_path / "converted", "raw": tmp_path / "raw"}
    for weights, folder in folders.items():
        words = ["--output", str(folder), "--weights", weights]
        assert main(["convert", str(tmp_path / "four" / "checkpoint-20"), *words]) == 0
    pipes = [
        KaleidoViewSynthesisPipeline.from_pretrained(folder)
        for folder in (tmp_path / "four" / "pipeline", *folders.values())
    ]
    views = [views_of(pipe) for pipe in pipes]
    assert torch.equal(views[0], views[1]) and not torch.equal(views[0], views[2])
    shipped, averaged, raw = (pipe.transformer.state_dict() for pipe in pipes)
    assert shipped.keys() == averaged.keys() and all(torch.equal(shipped[name], averaged[name]) for name in shipped)
    assert not all(torch.equal(shipped[name], raw[name]) for name in shipped)


@pytest.mark.slow
def test_killed_within_a_save_it_goes_on_in_another_number_of_processes(tmp_path):
    """SIGKILL for both while a checkpoint is being written. What was there is whole, and equal to the bit to that of a
    run that nobody disturbed; one process goes on from it."""
    config = make_config(tmp_path / "alone", **{**EXACT, "save_every": 1, "steps": 12})
    whole, killed = sharded(config, "whole"), sharded(config, "killed")
    together(2, (Trainer, whole))
    group = processes(2, (Trainer, killed))
    while not any(
        int(path.parts[-2].split("-")[1][:-5]) > 3 for path in killed.output.glob(".checkpoint-*.part/state")
    ):
        assert all(process.is_alive() for process in group)
        time.sleep(0.001)
    for process in group:
        process.kill()
        process.join()
    assert list(killed.output.glob(".checkpoint-*.part")), "killed within a save"
    newest = latest_checkpoint(killed.output)
    theirs, ours = (open_weights(run / newest.name / "state") for run in (whole.output, killed.output))
    assert 60 < len(ours.keys) == len(theirs.keys)
    assert all(torch.equal(ours.fetch(key), theirs.fetch(key)) for key in ours.keys)
    Trainer(killed).train()
    assert not list(killed.output.glob(".checkpoint-*.part"))
    lines = (json.loads(line) for line in (killed.output / "log.jsonl").read_text().splitlines())
    told = {line["step"]: line["loss"] for line in lines if "loss" in line}  # a step that was done again counts
    assert list(told.values()) == pytest.approx(losses(whole.output).tolist(), abs=1e-5) and len(told) == 12


class Eagerly(Trainer):
    """Compiles without Inductor, which takes a minute a partition."""

    def _make_model(self) -> None:
        inductor = KaleidoTransformer3DModel.compile_repeated_blocks
        KaleidoTransformer3DModel.compile_repeated_blocks = partialmethod(inductor, backend="aot_eager")
        super()._make_model()
        KaleidoTransformer3DModel.compile_repeated_blocks = inductor


@pytest.mark.slow
def test_shards_compiled_and_in_bfloat16(tmp_path):
    """Products of other shapes round otherwise, hence a wider bound in bfloat16."""
    config = make_config(tmp_path / "alone", **{**EXACT, "steps": 4, "references": (2,), "target_group_sizes": (1,)})
    config = replace(config, validate_every=4)
    half = replace(config, output=tmp_path / "half alone", dtype="bfloat16")
    Trainer(config).train()
    Trainer(half).train()
    runs = [(Trainer, sharded(half, "half")), (Eagerly, sharded(config, "compiled", compile=True))]
    together(2, *runs)
    torch.testing.assert_close(losses(tmp_path / "compiled"), losses(tmp_path / "alone"), rtol=0, atol=1e-5)
    torch.testing.assert_close(losses(tmp_path / "half"), losses(tmp_path / "half alone"), rtol=0, atol=3e-3)
    assert (tmp_path / "half" / "validation-0000004.png").is_file()


@pytest.mark.slow
def test_the_checkpoint_that_ships_goes_on_in_shards(tmp_path):
    """On latents of its own autoencoder, at its own size."""
    settings = {"init_from": Path(bundled_checkpoint()), "prediction_type": "velocity", "size": 128, "batch": 2}
    settings |= {"views": 4, "scenes": 2, "scene_views": 4, "steps": 3, "model": ModelConfig()}
    config = replace(make_config(tmp_path / "alone", **EXACT), data=("object",), in_memory=True, **settings)
    Trainer(config).train()
    together(2, (Trainer, sharded(config, "two")))
    torch.testing.assert_close(losses(tmp_path / "two"), losses(tmp_path / "alone"), rtol=0, atol=1e-5)
    assert len(losses(tmp_path / "two")) == 3


def test_muon_is_that_of_torch_to_the_bit():
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((24, 16), (16, 40), (8, 8))]
    gradients = [[torch.randn_like(matrix) for matrix in start] for _ in range(3)]
    ends = []
    for kind in (Muon, torch.optim.Muon):
        matrices = [torch.nn.Parameter(matrix.clone()) for matrix in start]
        optimizer = kind(matrices, lr=0.03, weight_decay=0.1)
        for step in gradients:
            for matrix, gradient in zip(matrices, step):
                matrix.grad = gradient.clone()
            optimizer.step()
        ends.append(matrices)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*ends))


def test_orthogonalised_matrices_keep_their_directions():
    matrix = torch.randn(12, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    values = torch.diag(left.T @ orthogonalized(matrix) @ right.T)
    assert values.min() > 0.6 and values.max() < 1.3
