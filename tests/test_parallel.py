"""Several devices by diffusers' own engines, on processes of this machine: the results are those of one."""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import torch.distributed as dist
from conftest import ended, free_port, make_model, make_pipeline, places, started, torchrun
from diffusers import ContextParallelConfig

from kaleido_diffusers import cli


def start(rank: int, world_size: int, port: int, folder: str, work) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world_size))
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    torch.accelerator.device_count = lambda: 1  # diffusers divides by the number of accelerators, here 0
    try:
        torch.save(work(rank), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def on_two_ranks(folder: Path, work) -> list:
    """What `work(rank)` returns on each of two gloo ranks."""
    port = free_port()
    torch.multiprocessing.start_processes(start, (2, port, str(folder), work), 2, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def views(count: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    poses = torch.eye(4).repeat(1, count, 1, 1)
    poses[..., :3, 3] = torch.randn(1, count, 3, generator=generator)
    intrinsics = torch.tensor([[1.0, 0, 0.5], [0, 1.2, 0.5], [0, 0, 1]]).repeat(1, count, 1, 1)
    hidden_states = torch.randn(1, count, 3, 16, 12, generator=generator)
    times = torch.linspace(0, 1, count)[None]
    return {"hidden_states": hidden_states, "poses": poses, "intrinsics": intrinsics, "times": times}


def predictions(model) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Uncached in groups, and with a cache that grows; and the tokens of a view that this rank keeps."""
    call = views(6)
    timestep = torch.tensor([[0.0, 0, 0, 300, 700, 700]])
    with torch.no_grad():
        uncached = model(**call, timestep=timestep, num_targets=3, view_groups=[0, 0, 1, 2, 3, 3]).sample
        cache = model.encode_views(**{key: value[:, :2] for key, value in call.items()})
        model.encode_views(**{key: value[:, 2:3] for key, value in call.items()}, cache=cache)
        targets = {key: value[:, 3:] for key, value in call.items()}
        cached = model(**targets, timestep=timestep[:, 3:], view_groups=[2, 3, 3], cache=cache).sample
    return uncached, cached, cache.layer(0)[0].shape[2]


def pipeline_views(pipe) -> torch.Tensor:
    poses = torch.eye(4).repeat(7, 1, 1)
    poses[:, 0, 3] = torch.arange(7)
    photos = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    options = {"fov": 60, "num_inference_steps": 2, "views_per_group": 2, "guidance_scale": 1.5, "output_type": "pt"}
    return pipe(photos, poses, generator=torch.Generator().manual_seed(0), **options).images


def context_parallel(rank: int):
    model = make_model(layer_pattern=("global", "view"))
    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    pipe = make_pipeline()
    pipe.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    return (*predictions(model), pipeline_views(pipe))


def test_tokens_split_over_two_ranks(tmp_path):
    uncached, cached, tokens = predictions(make_model(layer_pattern=("global", "view")))
    expected = (uncached, cached, tokens // 2, pipeline_views(make_pipeline()))
    for result in on_two_ranks(tmp_path, context_parallel):
        for ours, alone in zip(result, expected, strict=True):
            torch.testing.assert_close(ours, alone, rtol=1e-5, atol=1e-5)


def flight(pipe, **options) -> torch.Tensor:
    poses = torch.eye(4).repeat(12, 1, 1)
    poses[:, 0, 3] = torch.arange(12)
    photos = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(0)
    known = {"fov": 60, "num_inference_steps": 2, "views_per_group": 2, "output_type": "pt", "generator": generator}
    return pipe(photos, poses, generation_order="anchors", **known, **options).images


def shared_groups(rank: int):
    pipe, group_sizes = make_pipeline(), []

    def after_step(_pipe, _step, _timestep, tensors):
        group_sizes.append(tensors["latents"].shape[1])
        return {}

    results = []
    for joins in ("first", "none"):
        group_sizes.clear()
        views = flight(pipe, joins_memory=joins, share_groups=True, callback_on_step_end=after_step)
        results.append((views, list(group_sizes)))
    return results


def test_groups_that_do_not_depend_on_each_other_are_shared_out(tmp_path):
    first, second = on_two_ranks(tmp_path, shared_groups)
    for joins, mine, theirs in zip(("first", "none"), first, second, strict=True):
        alone = flight(make_pipeline(), joins_memory=joins)
        for views, _ in (mine, theirs):
            torch.testing.assert_close(views, alone, rtol=1e-6, atol=1e-6)
    # Nine targets in groups of two, two steps each: both ranks make the first group where the others attend to it
    assert [sizes for _, sizes in first] == [[2] * 4 + [1] * 2, [2] * 4 + [1] * 2]
    assert [sizes for _, sizes in second] == [[2] * 6, [2] * 4]


def test_render_over_two_processes_writes_what_one_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_pipeline().save_pretrained("pipeline")
    words = ["render", "sample", "--checkpoint", "pipeline", "--targets", "none", "--trajectory", "orbit"]
    words += ["--views", "9", "--steps", "2", "--export", "transforms", "--generation-order", "anchors"]
    words += ["--dtype", "float32", "--joins-memory"]
    assert cli.main([*words, "first", "--output", "one"]) == 0
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [*torchrun(), "-m", "kaleido_diffusers.cli", *words, "first", "--output", "two"]
    two = subprocess.run(command, env=env, capture_output=True, text=True)
    assert two.returncode == 0, two.stderr
    assert two.stdout.replace("two/", "one/") == capsys.readouterr().out  # said once
    frames = [sorted(Path(name).glob("*/images/*.png")) for name in ("one", "two")]
    assert len(frames[0]) == 6 + 9 and [x.name for x in frames[0]] == [x.name for x in frames[1]]
    for ours, theirs in zip(*([np.asarray(PIL.Image.open(x), int) for x in each] for each in frames)):
        assert abs(ours - theirs).max() <= 1
    words[words.index("float32")] = "auto"
    measured = [*words, "none", "--output", "measured"]
    said = ended(*(started(*measured, cwd=tmp_path, env=place, all_said=True) for place in places(2)))
    assert len(re.findall(r"pipeline: (?:float32|bfloat16) on cpu\n", "".join(said))) == 1
    refused = [started(*words, "all", "--output", "three", cwd=tmp_path, env=place) for place in places(2)]
    with refused[0] as first, refused[1] as second:
        for command in (first, second):
            assert "groups wait for each other" in command.rest() and command.returncode == 1
