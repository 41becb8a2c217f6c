"""Files from anywhere: whatever a config, an index, an adapter or a shard says, the answer is a sentence, or it works.

`make fuzz` runs these for as long as one likes: `KALEIDO_FUZZ` is the number of cases of each.
"""

import copy
import json
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import make_model, make_pipeline
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_pipeline import generate, make_inputs

from kaleido_diffusers import (
    Cameras,
    KaleidoTransformer3DModel,
    KaleidoViewSynthesisPipeline,
    RectifiedFlowViewScheduler,
    load_scene,
    sample_capture,
)
from kaleido_diffusers.captures.export import write_colmap
from kaleido_diffusers.cli import main
from kaleido_diffusers.cli.loading import load_pipeline
from kaleido_diffusers.loaders.adapter_files import AdapterInfo, save_adapter
from kaleido_diffusers.loaders.lora_settings import make_lora_config
from kaleido_diffusers.training.config import TrainConfig
from kaleido_diffusers.worlds.shard_writing import write_shards
from kaleido_diffusers.worlds.sources import ShardSource, SyntheticSource


CASES = int(os.environ.get("KALEIDO_FUZZ", "25"))
fuzzed = settings(
    max_examples=CASES,
    deadline=None,
    derandomize="KALEIDO_FUZZ" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.sampled_from([-1, 0, 10**6, 2**31, 2**63, 10**400, -(10**9), 0.5, -0.0, 1e308, -1e-9, 1e-320]),
    st.text(max_size=8),
    st.sampled_from(["", "../..", "/etc/passwd", "os", "torch", "global", "\x1b[31m", "null", "nan"]),
    st.lists(st.one_of(st.none(), st.integers(-3, 3), st.text(max_size=3)), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(-3, 3), max_size=2),
)
BYTES = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6)


@pytest.fixture(autouse=True, scope="module")
def bounded() -> Iterator[None]:
    """4 GB for any one case, where the system keeps such limits."""
    if not sys.platform.startswith("linux"):
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    taken = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (taken + (4 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_pipeline(num_layers=1).save_pretrained(folder)
    return folder


def answered(call: Callable[[], Any]) -> bool:
    """Whether a call ends well; if it does not, it says so in a sentence, soon, and before memory runs out."""
    started = time.process_time()
    try:
        call()
        return True
    except (ValueError, OSError) as error:
        said = str(error)
        assert said.strip() and "\x1b" not in said.replace("\\x1b", "")
        assert "allocate" not in said and "memory" not in said
        return False
    finally:
        assert time.process_time() - started < 30


def seen(pipe: KaleidoViewSynthesisPipeline) -> None:
    """A view by a pipeline is a picture, if there is one."""
    image = generate(pipe, *make_inputs(num_references=2, num_targets=1), steps=2)
    assert image.isfinite().all() and image.min() >= 0 and image.max() <= 1


def works(base: Path) -> None:
    seen(load_pipeline(str(base), "cpu"))


def ends(capsys, *words: str) -> bool:
    """Whether a command ends well; if it does not, it says so in one line."""
    status = main(words)
    said = capsys.readouterr().err
    assert status in (0, 1) and "unexpected" not in said and "Traceback" not in said and "memory" not in said, said
    assert "\x1b" not in said
    return status == 0


def with_file(folder: Path, name: str, content: bytes, call) -> bool:
    """What a call says with other content in a file, which is put back."""
    file = folder / name
    before = file.read_bytes()
    file.write_bytes(content)
    try:
        return answered(call)
    finally:
        file.write_bytes(before)


def damaged(content: bytes, changes: list[tuple[float, int]], keep: float) -> bytes:
    """Bytes changed in places, which are denser at the front, where headers are; and the end cut off."""
    content = bytearray(content)
    for place, value in changes:
        content[int(place**3 * (len(content) - 1))] = value
    return bytes(content[: math.ceil(len(content) * keep)])


CONFIG = sorted(dict(make_model(num_layers=1).config).keys() - {"_use_default_values"})


@fuzzed
@given(st.sampled_from(CONFIG), HOSTILE)
@example("num_layers", 10**6)
@example("norm_eps", -1)
@example("norm_eps", 10**400)
@example("ffn_dim", 0.5)
@example("layer_pattern", "global")
@example("rope_axes_dim", None)
@example("num_key_value_heads", 0)
@example("patch_size", 0)
@example("sample_size", 10**400)
def test_any_entry_of_a_config(base, capsys, name, value):
    config = json.loads((base / "transformer" / "config.json").read_text())
    content = json.dumps({**config, name: value}).encode()
    with_file(base, "transformer/config.json", content, lambda: works(base))
    assert with_file(base, "transformer/config.json", content, lambda: ends(capsys, "info", str(base)))


@fuzzed
@given(st.one_of(HOSTILE, st.binary(max_size=40)))
@example("\x1b[31m")
def test_any_file_as_a_config(base, value):
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    for name in ("transformer/config.json", "model_index.json", "scheduler/scheduler_config.json"):
        with_file(base, name, content, lambda: works(base))


@fuzzed
@given(
    st.sampled_from(
        ["transformer", "scheduler", "vae", "_class_name", "_diffusers_version", "prediction_type", "new"]
    ),
    HOSTILE | st.lists(st.sampled_from(["diffusers", "os", "KaleidoTransformer3DModel", "system", None]), max_size=3),
)
def test_any_entry_of_a_model_index(base, name, value):
    index = json.loads((base / "model_index.json").read_text())
    content = json.dumps({**index, name: value}).encode()
    with_file(base, "model_index.json", content, lambda: works(base))


SCHEDULER = sorted(dict(RectifiedFlowViewScheduler().config).keys() - {"_use_default_values"})


@fuzzed
@given(st.sampled_from(SCHEDULER), HOSTILE)
@example("num_train_timesteps", 0)
@example("shift", True)
@example("num_train_timesteps", 2**31)
@example("num_train_timesteps", 2**63)
@example("num_train_timesteps", 0.5)
@example("shift", 10**400)
def test_any_entry_of_a_scheduler(base, name, value):
    config = json.loads((base / "scheduler" / "scheduler_config.json").read_text())
    content = json.dumps({**config, name: value}).encode()
    with_file(base, "scheduler/scheduler_config.json", content, lambda: works(base))


@fuzzed
@given(BYTES, st.floats(0, 1))
def test_damaged_weights(base, changes, keep):
    name = "transformer/diffusion_pytorch_model.safetensors"
    content = damaged((base / name).read_bytes(), changes, keep)
    with_file(base, name, content, lambda: works(base))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(base, tmp_path, value):
    model = make_model()
    with torch.no_grad():
        model.proj_out.weight[0, 0] = value
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the weight proj_out.weight holds values that are not finite"):
        KaleidoTransformer3DModel.from_pretrained(tmp_path)


# Adapters


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    model = make_model(num_layers=1)
    model.add_adapter(make_lora_config(rank=2))
    return save_adapter(folder, model, AdapterInfo.of(model, base_name="base"))


def loads(pipe: KaleidoViewSynthesisPipeline, file: Path) -> bool:
    before = set(getattr(pipe.transformer, "peft_config", None) or ())
    ended_well = answered(lambda: pipe.load_lora_weights(str(file.parent), weight_name=file.name))
    left = set(getattr(pipe.transformer, "peft_config", None) or ())
    assert ended_well or left == before, "what was refused is not there"
    if ended_well:
        answered(lambda: seen(pipe))
        pipe.unload_lora_weights()
    return ended_well


@pytest.fixture(scope="module")
def adapted() -> KaleidoViewSynthesisPipeline:
    return make_pipeline(num_layers=1)


def test_the_adapter_itself_loads(adapted, adapter):
    assert loads(adapted, adapter)


@fuzzed
@given(BYTES, st.floats(0.5, 1))
def test_damaged_adapters(adapted, adapter, tmp_path_factory, changes, keep):
    file = tmp_path_factory.mktemp("damaged") / "a.safetensors"
    file.write_bytes(damaged(adapter.read_bytes(), changes, keep))
    loads(adapted, file)


@fuzzed
@given(st.data())
def test_adapters_of_other_shapes_names_and_values(adapted, adapter, tmp_path_factory, data):
    weights = load_file(adapter)
    for name in data.draw(st.lists(st.sampled_from(sorted(weights)), min_size=1, max_size=4, unique=True)):
        weight = weights.pop(name)
        change = data.draw(st.sampled_from(["shape", "name", "nan", "gone", "flat", "int", "empty"]))
        changed = {
            "shape": lambda w: torch.cat([w, w], dim=-1),
            "name": lambda w: w,
            "nan": lambda w: w * math.nan,
            "flat": lambda w: w.flatten(),
            "int": lambda w: w.to(torch.int8),
            "empty": lambda w: w[:0],
        }
        if change != "gone":
            weights[f"x.{name}" if change == "name" else name] = changed[change](weight).contiguous()
    file = tmp_path_factory.mktemp("other") / "a.safetensors"
    save_file(weights, file)
    ended_well = loads(adapted, file)
    if any(weight.is_floating_point() and not weight.isfinite().all() for weight in weights.values()):
        assert not ended_well


def test_an_adapter_none_of_whose_names_fit_is_refused(adapted, adapter, tmp_path):
    weights = {f"unet.{name}": weight for name, weight in load_file(adapter).items()}
    save_file(weights, tmp_path / "a.safetensors")
    assert not loads(adapted, tmp_path / "a.safetensors")
    weights = {name.replace("transformer_blocks.0", "blocks.9"): weight for name, weight in load_file(adapter).items()}
    save_file(weights, tmp_path / "b.safetensors")
    assert not loads(adapted, tmp_path / "b.safetensors")


# Shards


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> Path:
    source = SyntheticSource(num_scenes=2, num_views=3, size=16)
    return write_shards(tmp_path_factory.mktemp("shards"), [source[0], source[1]])[0]


@fuzzed
@given(BYTES, st.floats(0, 1))
def test_damaged_shards(shard, tmp_path_factory, changes, keep):
    file = tmp_path_factory.mktemp("damaged") / "shard-000000.tar"
    file.write_bytes(damaged(shard.read_bytes(), changes, keep))

    def read():
        for sample in map(ShardSource(file).__getitem__, range(len(ShardSource(file)))):
            assert sample.poses is None or sample.poses.isfinite().all()
        scene = load_scene(file.parent, scene="00000000")
        for image in scene.images:
            image.load()

    answered(read)


# Captures


@pytest.fixture(scope="module")
def captures(tmp_path_factory) -> Path:
    """A folder of two: as transforms.json, and by COLMAP in binary files."""
    folder = tmp_path_factory.mktemp("captures")
    source = Path(sample_capture())
    described = json.loads((source / "transforms.json").read_text())
    described["frames"] = described["frames"][:3]
    (folder / "json" / "images").mkdir(parents=True)
    for frame in described["frames"]:
        shutil.copy(source / frame["file_path"], folder / "json" / "images")
    (folder / "json" / "transforms.json").write_text(json.dumps(described))
    poses = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    poses[:, 0, 3] = torch.arange(3)
    photos = [PIL.Image.fromarray(np.full((16, 24, 3), 40 * number, np.uint8)) for number in range(3)]
    write_colmap(folder / "colmap", photos, Cameras.from_fov(poses, 60.0, [16, 24]))
    return folder


def rendered(capsys, capture: Path, base: Path, output: Path) -> bool:
    words = ["--checkpoint", str(base), "--output", str(output), "--references", "2", "--steps", "1", "--views", "2"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ended_well = ends(capsys, "render", str(capture), *words, "--trajectory", "keyframes")
    shutil.rmtree(output, ignore_errors=True)
    return ended_well


@pytest.mark.parametrize("name", ["json", "colmap"])
def test_the_captures_themselves_are_rendered(captures, base, tmp_path, capsys, name):
    assert rendered(capsys, captures / name, base, tmp_path / "renders")


ENTRIES = "camera_model k1 k2 k3 k4 p1 p2 camera_angle_x is_fisheye frames aabb_scale ply_file_path".split()
FRAME_ENTRIES = "file_path transform_matrix fl_x fl_y cx cy w h k1 p1 time mask_path depth_file_path".split()


@fuzzed
@given(
    st.dictionaries(st.sampled_from(ENTRIES), HOSTILE, max_size=2),
    st.dictionaries(st.sampled_from(FRAME_ENTRIES), HOSTILE, max_size=2),
    st.none() | st.tuples(st.integers(0, 3), st.integers(0, 3), HOSTILE | st.floats()),
)
@example({}, {"fl_x": 1e308}, None)
@example({"k1": 1e308}, {}, None)
@example({}, {}, (0, 3, 1e300))
@example({"camera_angle_x": 1e-320}, {"fl_x": None}, None)
def test_any_entry_of_a_capture(captures, base, tmp_path, capsys, top, frame, element):
    described = json.loads((captures / "json" / "transforms.json").read_text())
    described["frames"][1].update(frame)
    if element is not None:
        row, column, value = element
        described["frames"][2]["transform_matrix"][row][column] = value
    content = json.dumps({**described, **top}).encode()
    capture = captures / "json"
    with_file(capture, "transforms.json", content, lambda: rendered(capsys, capture, base, tmp_path / "renders"))


@fuzzed
@given(st.sampled_from(["cameras.bin", "images.bin", "points3D.bin"]), BYTES, st.floats(0, 1))
def test_damaged_models_of_colmap(captures, base, tmp_path, capsys, name, changes, keep):
    capture = captures / "colmap"
    content = damaged((capture / "sparse" / "0" / name).read_bytes(), changes, max(keep, 0.5))
    with_file(capture, f"sparse/0/{name}", content, lambda: rendered(capsys, capture, base, tmp_path / "renders"))


@fuzzed
@given(BYTES, st.floats(0, 1))
def test_damaged_photos(captures, base, tmp_path, capsys, changes, keep):
    capture = captures / "json"
    (name, *_) = sorted(path.name for path in (capture / "images").iterdir())
    content = damaged((capture / "images" / name).read_bytes(), changes, max(keep, 0.1))
    with_file(capture, f"images/{name}", content, lambda: rendered(capsys, capture, base, tmp_path / "renders"))


# Settings


@fuzzed
@given(st.sampled_from(["max_grad_norm", "ema_decay", "batch", "steps", "other_lr", "keep"]), st.floats())
@example("max_grad_norm", 0.0)
@example("ema_decay", 2.0)
@example("other_lr", math.nan)
def test_settings_that_cannot_be_trained_with(name, value):
    made = copy.copy({"output": Path("run"), name: value})
    answered(lambda: TrainConfig(**made))
    may_be_zero, below = name in ("ema_decay", "other_lr"), {"ema_decay": 1, "other_lr": math.inf}.get(name)
    if not (value > 0 or may_be_zero and value == 0) or below is not None and value >= below:
        with pytest.raises(ValueError, match=name):
            TrainConfig(**made)


def test_settings_are_refused_by_the_command_line_in_a_sentence(tmp_path, capsys):
    for setting in (["--max-grad-norm", "0"], ["--ema-decay", "2"]):
        with pytest.raises(SystemExit):
            main(["train", "--output", str(tmp_path / "run"), *setting])
    said = capsys.readouterr().err
    assert "`max_grad_norm` must be above 0" in said and "`ema_decay` must lie" in said and "Traceback" not in said
    assert not (tmp_path / "run").exists()
