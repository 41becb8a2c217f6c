"""Checkpoints of every kind in, the same weights and images out; what does not fit or could run code is refused."""

import json
import os
import pickle
import random
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, make_model, make_pipeline
from diffusers import AutoencoderTiny
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed import checkpoint as dcp

from kaleido_diffusers import (
    KaleidoTransformer3DModel,
    KaleidoViewSynthesisPipeline,
    bundled_checkpoint,
    cli,
    sample_capture,
)
from kaleido_diffusers.cli.checkpoint_info import is_checkpoint
from kaleido_diffusers.loaders.base_weights import base_architecture
from kaleido_diffusers.loaders.errors import CheckpointError
from kaleido_diffusers.loaders.names import RENAMES, read_renames, rename, select_weights


UNTOLD = {"--sample-size": "8", "--prediction-type": "sample"}  # what the shapes of `make_pipeline` do not tell


def convert(source, output, *options, untold: bool = False) -> int:
    words = [word for pair in UNTOLD.items() for word in pair] if untold else []
    return cli.main(["convert", str(source), "--output", str(output), *words, *options])


def refused(capsys, *call, **options) -> str:
    """The line in which a conversion ends; nothing is left of its output."""
    output = Path(call[1])
    before = set(output.parent.iterdir())
    capsys.readouterr()
    assert convert(*call, **options) == 1
    assert set(output.parent.iterdir()) == before, "nothing half-written is left"
    error = capsys.readouterr().err
    assert error.startswith("kaleido: ") and error.count("\n") == 1, error
    return error


def images(pipe: KaleidoViewSynthesisPipeline) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    poses = torch.eye(4).repeat(3, 1, 1)
    poses[:, 0, 3] = torch.arange(3)
    views = [torch.linspace(0, 1, 192).reshape(3, 8, 8)] * 2
    generator = torch.Generator().manual_seed(0)
    return pipe(views, poses, fov=50.0, num_inference_steps=2, output_type="pt", generator=generator).images


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert sorted(left) == sorted(right)
    for name, value in left.items():
        assert value.dtype == right[name].dtype and torch.equal(value, right[name]), name


@pytest.fixture(scope="module")
def pipe() -> KaleidoViewSynthesisPipeline:
    return make_pipeline()


@pytest.fixture(scope="module")
def state(pipe) -> dict[str, torch.Tensor]:
    return pipe.transformer.state_dict()


# Layouts, written by hand from ours


def exchanged(state: dict[str, torch.Tensor], pairs: dict[str, str]) -> dict[str, torch.Tensor]:
    result = {}
    for name, value in state.items():
        for ours, theirs in pairs.items():
            name = name.replace(ours, theirs)
        result[name] = value
    return result


def stacked(state: dict[str, torch.Tensor], name: str, *parts: str) -> dict[str, torch.Tensor]:
    """Layers `parts` of each block as one."""
    state = dict(state)
    for block in range(TINY["num_layers"]):
        stem = f"transformer_blocks.{block}."
        state[f"{stem}{name}.weight"] = torch.cat([state.pop(f"{stem}{part}.weight") for part in parts])
    return state


QKV = ("attn.qkv", "attn.to_q", "attn.to_k", "attn.to_v")


def like_dit(state):
    """Convolutional patches, fused qkv, numbered SwiGLU, a table with an axis of one."""
    state = exchanged(stacked(state, *QKV), {"patch_embed.": "x_embedder.proj."})
    state["x_embedder.proj.weight"] = state["x_embedder.proj.weight"].reshape(-1, 3, 4, 4)
    state["final_layer.scale_shift_table"] = state.pop("scale_shift_table")[None]
    names = {"time_embed.embedder.linear_1": "t_embedder.mlp.0", "time_embed.embedder.linear_2": "t_embedder.mlp.2"}
    names |= {"time_embed.linear": "t_block.1", "norm_out": "final_layer.norm_final", "proj_out": "final_layer.linear"}
    names |= {"to_out.0": "proj", "norm_q": "q_norm", "norm_k": "k_norm", "transformer_blocks": "blocks"}
    return exchanged(state, names | {"ff.gate_proj": "mlp.w1", "ff.up_proj": "mlp.w3", "ff.down_proj": "mlp.w2"})


def like_lumina(state):
    """A transposed patch embedding, fused gate and up, sandwich norms by other names, buffers of rotary embeddings."""
    state = stacked(state, "ff.w13", "ff.gate_proj", "ff.up_proj")
    state["patch_embed.weight"] = state["patch_embed.weight"].T.contiguous()
    for block in range(TINY["num_layers"]):
        state[f"layers.{block}.modulation"] = state.pop(f"transformer_blocks.{block}.scale_shift_table")[None]
    names = {"norm1": "attention_norm1", "norm2": "attention_norm2", "norm3": "ffn_norm1", "norm4": "ffn_norm2"}
    names |= {"norm_q": "q_norm", "norm_k": "k_norm", "to_out.0": "wo"}
    names |= {"to_q": "wq", "to_k": "wk", "to_v": "wv", "ff.": "feed_forward.", "down_proj": "w2"}
    names |= {".attn.": ".attention.", "transformer_blocks": "layers", "patch_embed": "x_embedder"}
    return exchanged(state, names) | {"rope.freqs_cis": torch.ones(4)}


def like_gemma(state):
    """A language model's names, patches with channels last."""
    state = dict(state)
    weight = state["patch_embed.weight"].reshape(-1, 3, 16)
    state["patch_embed.weight"] = weight.transpose(1, 2).reshape(-1, 48)
    for name in ("proj_out.weight", "proj_out.bias"):
        state[name] = state[name].reshape(3, 16, -1).transpose(0, 1).reshape(state[name].shape)
    names = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm", "norm_out": "norm"}
    names |= {"norm3": "pre_feedforward_layernorm", "norm4": "post_feedforward_layernorm", "to_out.0": "o_proj"}
    names |= {"norm_q": "q_norm", "norm_k": "k_norm", "to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj"}
    names |= {".attn.": ".self_attn.", ".ff.": ".mlp.", "transformer_blocks": "model.layers"}
    return exchanged(state, names)


def like_diffusers_feed_forward(state):
    """SwiGLU as diffusers' own: one layer, up before gate."""
    state = stacked(state, "ff.net.0.proj", "ff.up_proj", "ff.gate_proj")
    return exchanged(state, {"ff.down_proj": "ff.net.2", "time_embed.linear": "adaln_single.linear"})


LAYOUTS = [dict, like_dit, like_lumina, like_gemma, like_diffusers_feed_forward]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_layouts_go_round(layout, pipe, state, tmp_path, capsys):
    foreign, folder, single = tmp_path / "foreign.safetensors", tmp_path / "folder", tmp_path / "single.safetensors"
    save_file({name: value.contiguous() for name, value in layout(state).items()}, foreign)
    options = ["--channels-last-patches"] if layout is like_gemma else []
    assert convert(foreign, folder, *options, untold=True) == 0
    out = capsys.readouterr().out
    assert "rope_theta           100.0 (assumed)" in out and "num_key_value_heads  2\n" in out
    assert ("patch_size           4 (assumed)" in out) == (layout is not like_dit)
    there = KaleidoViewSynthesisPipeline.from_pretrained(folder)
    assert_same(there.transformer.state_dict(), state)
    assert torch.equal(images(there), images(pipe))
    assert convert(folder, single) == 0
    assert "assumed" not in capsys.readouterr().out
    assert_same(load_file(single), state)
    loaded = KaleidoTransformer3DModel.from_single_file(
        str(foreign), sample_size=8, channels_last_patches=layout is like_gemma
    )
    assert_same(loaded.state_dict(), state)
    assert base_architecture(loaded) == base_architecture(there.transformer)


# Containers


def as_shards(folder: Path, pipe) -> Path:
    pipe.transformer.save_pretrained(folder, max_shard_size="100KB")
    (folder / "config.json").unlink()
    return folder / "diffusion_pytorch_model.safetensors.index.json"


def as_nested(path: Path, pipe) -> Path:
    state = {f"module.model._orig_mod.{name}": value for name, value in pipe.transformer.state_dict().items()}
    extra = {"epoch": 3, "lr": 0.1, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}
    torch.save({"state_dict": state, **extra}, path)
    return path


def as_adapted(path: Path, pipe) -> Path:
    state = pipe.transformer.state_dict()
    torch.save({name.replace("to_q.", "to_q.base_layer."): torch.nn.Parameter(x) for name, x in state.items()}, path)
    return path


def as_legacy(path: Path, pipe) -> Path:
    torch.save(pipe.transformer.state_dict(), path, _use_new_zipfile_serialization=False)
    return path


def as_distributed(folder: Path, pipe) -> Path:
    content = {"app": None, "step": 7, "optimizer": {"exp_avg": torch.ones(5)}}
    dcp.save({"model": pipe.transformer.state_dict(), **content}, checkpoint_id=folder)
    return folder


def as_pipeline(folder: Path, pipe) -> Path:
    pipe.save_pretrained(folder)
    return folder


def as_transformer(folder: Path, pipe) -> Path:
    pipe.transformer.save_pretrained(folder, safe_serialization=False)
    return folder


CONTAINERS = {
    "shards": (as_shards, True),
    "nested.ckpt": (as_nested, True),
    "adapted.bin": (as_adapted, True),
    "legacy.pth": (as_legacy, True),
    "distributed": (as_distributed, True),
    "pipeline": (as_pipeline, False),
    "transformer": (as_transformer, True),
}


def test_to_a_distributed_folder_and_back(pipe, state, tmp_path):
    """What it was trained to predict and its shape come along."""
    pipe.save_pretrained(tmp_path / "pipeline")
    assert convert(tmp_path / "pipeline", tmp_path / "distributed", "--format", "distributed") == 0
    assert (tmp_path / "distributed" / "state" / ".metadata").is_file()
    assert convert(tmp_path / "distributed", tmp_path / "back") == 0
    there = KaleidoViewSynthesisPipeline.from_pretrained(tmp_path / "back")
    assert_same(there.transformer.state_dict(), state)
    assert there.scheduler.config.prediction_type == pipe.scheduler.config.prediction_type


@pytest.mark.filterwarnings("ignore:torch.distributed is")
@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_go_round(name, pipe, state, tmp_path):
    write, untold = CONTAINERS[name]
    source = write(tmp_path / name, pipe)
    assert convert(source, tmp_path / "folder", untold=untold) == 0
    there = KaleidoViewSynthesisPipeline.from_pretrained(tmp_path / "folder")
    assert_same(there.transformer.state_dict(), state)
    assert torch.equal(images(there), images(pipe))
    assert convert(tmp_path / "folder", tmp_path / "single.safetensors") == 0
    assert_same(load_file(tmp_path / "single.safetensors"), state)
    assert_same(KaleidoTransformer3DModel.from_single_file(source, sample_size=8).state_dict(), state)


def test_a_single_file_knows_its_config(tmp_path):
    config = {"camera_encoding": "gta", "layer_pattern": ("view", "global"), "rope_theta": 31.0, "out_channels": 5}
    pipe = make_pipeline("velocity", **config)
    pipe.save_pretrained(tmp_path / "one")
    assert convert(tmp_path / "one", tmp_path / "single.safetensors") == 0
    assert convert(tmp_path / "single.safetensors", tmp_path / "two") == 0
    one, two = (KaleidoViewSynthesisPipeline.from_pretrained(tmp_path / name) for name in ("one", "two"))
    assert one.config.prediction_type == two.config.prediction_type == "velocity"
    assert base_architecture(one.transformer) == base_architecture(two.transformer)


@pytest.mark.parametrize(
    "weights, seed, said", [("auto", 1, "ema weights"), ("ema", 1, "ema weights"), ("raw", 0, "raw weights")]
)
@pytest.mark.parametrize("kind", ["training", "nested"])
def test_raw_or_averaged_weights(kind, weights, seed, said, tmp_path, capsys):
    raw, averaged = make_pipeline(), make_model(seed=1)
    source = tmp_path / "checkpoint-7"
    if kind == "training":
        raw.transformer.save_pretrained(source / "transformer")
        averaged.save_pretrained(source / "transformer_ema")
        raw.scheduler.save_pretrained(source / "scheduler")
    else:
        content = {"model": raw.transformer.state_dict(), "ema": {"n_averaged": torch.tensor(3)}}
        content["ema"] |= {f"module.{name}": value for name, value in averaged.state_dict().items()}
        torch.save(content, source := tmp_path / "nested.pt")
    assert convert(source, tmp_path / "out", "--weights", weights, untold=kind == "nested") == 0
    assert said in capsys.readouterr().out
    there = KaleidoViewSynthesisPipeline.from_pretrained(tmp_path / "out")
    assert_same(there.transformer.state_dict(), make_model(seed=seed).state_dict())
    assert there.config.prediction_type == "sample"


def test_precision_as_in_diffusers(pipe, tmp_path, capsys):
    pipe.save_pretrained(tmp_path / "full")
    for dtype in ("float16", "bfloat16"):
        assert convert(tmp_path / "full", tmp_path / dtype, "--dtype", dtype) == 0
        expected = KaleidoTransformer3DModel.from_pretrained(
            tmp_path / "full" / "transformer", dtype=getattr(torch, dtype)
        )
        written = load_file(tmp_path / dtype / "transformer" / "diffusion_pytorch_model.safetensors")
        assert_same(written, expected.state_dict())
    with torch.no_grad():
        broken = make_model()
        broken.proj_out.bias[3] = 1e6
        broken.save_pretrained(tmp_path / "broken" / "transformer")
    error = refused(capsys, tmp_path / "broken", tmp_path / "overflow", "--dtype", "float16")
    assert "`proj_out.bias` has values that are not finite in torch.float16" in error
    refused(capsys, tmp_path / "broken", tmp_path / "overflow.safetensors", "--dtype", "float16")


def test_shards_card_and_vae_travel(tmp_path, capsys):
    vae = AutoencoderTiny(encoder_block_out_channels=(8,), decoder_block_out_channels=(8,),
                          num_encoder_blocks=(1,), num_decoder_blocks=(1,), latent_channels=4)  # fmt: skip
    pipe = make_pipeline(vae=vae, in_channels=4)
    pipe.save_pretrained(tmp_path / "one")
    (tmp_path / "one" / "README.md").write_text("---\nlicense: mit\n---\n")
    assert convert(tmp_path / "one", tmp_path / "two", "--max-shard-size", "100KB") == 0
    assert len(list((tmp_path / "two" / "transformer").glob("*-of-*.safetensors"))) > 2
    there = KaleidoViewSynthesisPipeline.from_pretrained(tmp_path / "two")
    assert_same(there.transformer.state_dict(), pipe.transformer.state_dict())
    assert_same(there.vae.state_dict(), vae.state_dict())
    assert "license: mit" in (tmp_path / "two" / "README.md").read_text()
    one, two = (json.loads((tmp_path / name / "model_index.json").read_text()) for name in ("one", "two"))
    assert {**one, "_name_or_path": None} == {**two, "_name_or_path": None}
    assert convert(tmp_path / "one", tmp_path / "single.safetensors") == 0
    assert "VAE" in capsys.readouterr().out


def test_the_script_converts_the_bundled_checkpoint(tmp_path, monkeypatch):
    script = Path(__file__).parents[1] / "conversion" / "convert_checkpoint.py"
    monkeypatch.setattr(sys, "argv", [str(script), "bundled", "--output", str(tmp_path / "out.safetensors")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    with safe_open(tmp_path / "out.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["kaleido_config"])["num_layers"] == 8
    original = Path(bundled_checkpoint()) / "transformer" / "diffusion_pytorch_model.safetensors"
    assert_same(load_file(tmp_path / "out.safetensors"), load_file(original))


# Names


@pytest.mark.parametrize(
    "name, expected",
    [
        ("blocks.3.attn.qkv.weight", "transformer_blocks.3.attn.to_qkv.weight"),
        ("layers.11.attention.wqkv.weight", "transformer_blocks.11.attn.to_qkv.weight"),
        ("layers.0.self_attn.k_proj.weight", "transformer_blocks.0.attn.to_k.weight"),
        ("blocks.0.attn.norm.query_norm.scale", "transformer_blocks.0.attn.norm_q.weight"),
        ("blocks.0.attn.out_proj.weight", "transformer_blocks.0.attn.to_out.0.weight"),
        ("blocks.0.mlp.gate_up_proj.weight", "transformer_blocks.0.ff.gate_up_proj.weight"),
        ("blocks.0.ffn.down.weight", "transformer_blocks.0.ff.down_proj.weight"),
        ("blocks.0.post_ffn_norm.gamma", "transformer_blocks.0.norm4.weight"),
        ("adaln_single.emb.timestep_embedder.linear_2.bias", "time_embed.embedder.linear_2.bias"),
        ("time_embedding.0.weight", "time_embed.embedder.linear_1.weight"),
        ("head.modulation", "scale_shift_table"),
        ("head.head.bias", "proj_out.bias"),
        ("blocks.2.attn.rope.inv_freq", None),
        ("something.else", "something.else"),
    ],
)
def test_the_rename_table(name, expected):
    assert rename(name, RENAMES) == expected


def test_our_own_names_are_left_alone(state):
    assert {rename(name, RENAMES) for name in state} == set(state)


def test_a_table_for_another_layout(state, tmp_path, capsys):
    """xformers' packed SwiGLU: w12, and w3 is the way down."""
    foreign = stacked(state, "ff.w12", "ff.gate_proj", "ff.up_proj")
    foreign = exchanged(foreign, {"ff.down_proj": "ff.w3", "patch_embed": "stem"}) | {"vae.conv": torch.ones(2)}
    save_file(foreign, tmp_path / "foreign.safetensors")
    error = refused(capsys, tmp_path / "foreign.safetensors", tmp_path / "out", untold=True)
    assert (
        "for want of transformer_blocks.0.ff.down_proj.weight, patch_embed.weight. There" in error
        and "stem.weight" in error
        and "--rename" in error
    )
    rules = [[r"^stem\.", "patch_embed."], [r"\.w12\.", ".gate_up_proj."], [r"\.ff\.w3\.", ".ff.down_proj."]]
    (tmp_path / "table.json").write_text(json.dumps([*rules, [r"^vae\.", None]]))
    options = ["--rename", str(tmp_path / "table.json")]
    assert convert(tmp_path / "foreign.safetensors", tmp_path / "out", *options, untold=True) == 0
    there = KaleidoTransformer3DModel.from_pretrained(tmp_path / "out" / "transformer")
    assert_same(there.state_dict(), state)
    loaded = KaleidoTransformer3DModel.from_single_file(foreign, renames=read_renames(tmp_path / "table.json"))
    assert_same(loaded.state_dict(), state)


@pytest.mark.parametrize("text", ["{", "[1, 2]", '[["(", "a"]]', '[["a", "\\\\1"]]', '[["a", 3]]', "3"])
def test_tables_that_are_none(text, tmp_path):
    (tmp_path / "table.json").write_text(text)
    with pytest.raises(CheckpointError, match="table.json must be a list"):
        read_renames(tmp_path / "table.json")


RAW_PREFIXES = ["module", "_orig_mod", "model", "transformer", "state_dict"]


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([*RAW_PREFIXES, "ema"]), max_size=6),
    st.lists(st.sampled_from(["module", "_orig_mod", "base_layer"]), max_size=3),
    st.sampled_from(["transformer_blocks.0.attn.to_q", "patch_embed", "blocks.12.mlp.w1"]),
)
def test_nested_prefixes(before, inside, layer):
    key = ".".join([*before, *layer.split("."), *inside, "weight"])
    names, taken = select_weights([key, "optimizer.state.0.exp_avg"])
    assert names == {f"{layer}.weight": key}
    assert taken == ("ema" if "ema" in before else "raw")
    other = "raw" if taken == "ema" else "ema"
    with pytest.raises(CheckpointError, match=f"holds no {other} weights"):
        select_weights([key], other)


# What is refused


def altered(state, tmp_path, **changes) -> Path:
    """A copy with tensors replaced, or left out where `None`."""
    content = {**state, **{name.replace("__", "."): value for name, value in changes.items()}}
    save_file({name: value for name, value in content.items() if value is not None}, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


def test_every_tensor_that_does_not_fit_is_named(state, tmp_path, capsys):
    source = altered(
        state,
        tmp_path,
        blocks__1__extra=torch.ones(2),
        stranger=torch.ones(2),
        transformer_blocks__1__norm2__weight=None,
        proj_out__bias=None,
        transformer_blocks__2__ff__up_proj__weight=torch.ones(47, 128),
        norm_out__weight=torch.ones(128, dtype=torch.int64),
    )
    error = refused(capsys, source, tmp_path / "out", untold=True)
    assert (
        "not known: " in error
        and "blocks.1.extra (read as transformer_blocks.1.extra)" in error
        and "stranger" in error
    )
    assert "missing: transformer_blocks.1.norm2.weight, proj_out.bias;" in error
    assert "transformer_blocks.2.ff.up_proj.weight (is [47, 128] in float32, must be [48, 128]" in error
    assert "norm_out.weight (is [128] in int64" in error
    with pytest.raises(CheckpointError, match="stranger"):
        KaleidoTransformer3DModel.from_single_file(str(source))


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"transformer_blocks__0__attn__norm_q__weight": None},
            "for want of transformer_blocks.0.attn.norm_q.weight.",
        ),
        ({"transformer_blocks__0__attn__norm_q__weight": torch.ones(24)}, "do not divide the width 128"),
        ({"transformer_blocks__1__attn__to_qkv__weight": torch.ones(256, 128)}, "to_qkv.weight (beside"),
        ({"blocks__0__norm1__weight": torch.ones(128)}, "are both `transformer_blocks.0.norm1.weight`"),
        ({"model__norm_out__weight": torch.ones(128)}, "twice: norm_out.weight and model.norm_out.weight"),
        ({"patch_embed__weight": torch.ones(48)}, "for want of patch_embed.weight."),
    ],
)
def test_checkpoints_that_contradict_themselves(changes, message, state, tmp_path, capsys):
    error = refused(capsys, altered(state, tmp_path, **changes), tmp_path / "out", untold=True)
    assert message in error.replace(
        "model.norm_out.weight and norm_out.weight", "norm_out.weight and model.norm_out.weight"
    )


def test_fused_layers_of_a_wrong_size(state, tmp_path, capsys):
    fused = stacked(state, *QKV)
    fused["transformer_blocks.2.attn.qkv.weight"] = torch.ones(250, 128)
    error = refused(capsys, altered(fused, tmp_path), tmp_path / "out", untold=True)
    assert "transformer_blocks.2.attn.to_qkv.weight (is [250, 128], must be [256, 128])" in error
    assert "missing" not in error


@pytest.mark.filterwarnings("ignore:torch.distributed is")
@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "legacy.pth", "shards", "distributed", ".metadata"])
@pytest.mark.parametrize("damage", ["cut", "noise", "odd protocol"])
def test_damaged_files(name, damage, pipe, state, tmp_path, capsys):
    if name in CONTAINERS:
        path = CONTAINERS[name][0](tmp_path / name, pipe)
        broken = {"shards": "*00002-of*", "distributed": "*.distcp", "legacy.pth": None}[name]
        broken = path if broken is None else next((path if path.is_dir() else path.parent).glob(broken))
    elif name == ".metadata":
        path = as_distributed(tmp_path / "folder", pipe)
        broken = path / name
    else:
        path = broken = tmp_path / name
        save_file(state, path) if name == "x.safetensors" else torch.save(state, path)
    content = broken.read_bytes()
    noise = random.Random(name).randbytes(4096)
    broken.write_bytes(
        {"cut": content[: len(content) // 2], "noise": noise, "odd protocol": b"\x80\x07" + noise}[damage]
    )
    error = refused(capsys, path, tmp_path / "out", untold=True)
    assert "cannot be read, it may be truncated or damaged" in error or "is refused" in error
    if name == "distributed":
        assert "tensor `model." in error


def test_absent_and_foreign_things(state, tmp_path, capsys):
    assert "no such checkpoint" in refused(capsys, tmp_path / "none", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert "it holds none" in refused(capsys, tmp_path / "empty", tmp_path / "out")
    (tmp_path / "x.txt").touch()
    assert "weights are .safetensors" in refused(capsys, tmp_path / "x.txt", tmp_path / "out")
    torch.save(torch.ones(2), tmp_path / "x.pt")
    assert "holds a Tensor, not a dictionary" in refused(capsys, tmp_path / "x.pt", tmp_path / "out")
    save_file(state, tmp_path / "x.safetensors")
    error = refused(capsys, tmp_path / "x.safetensors", tmp_path / "out", "--weights", "ema")
    assert "holds no ema weights" in error
    (tmp_path / "there").mkdir()
    assert "there exists already" in refused(capsys, tmp_path / "x.safetensors", tmp_path / "there")
    index = tmp_path / "x.safetensors.index.json"
    for shard, message in (
        ("y.safetensors", "files that are missing: y.safetensors"),
        ("../y.safetensors", "outside of it: ../y.safetensors"),
        ("x.safetensors", "tensors that its files do not hold: stranger"),
    ):
        index.write_text(json.dumps({"weight_map": {"norm_out.weight": shard, "stranger": shard}}))
        assert message in refused(capsys, index, tmp_path / "out")
    index.write_text("[]")
    assert "is not an index of shards" in refused(capsys, index, tmp_path / "out")


class Touch:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("new_format", [True, False])
def test_pickles_that_run_code_are_refused(suffix, new_format, state, tmp_path, capsys):
    source, mark = tmp_path / f"x{suffix}", tmp_path / "mark"
    torch.save({**state, "evil": Touch(mark)}, source, _use_new_zipfile_serialization=new_format)
    error = refused(capsys, source, tmp_path / "out", untold=True)
    assert "system`, and a pickle that loads more than tensors can run any code" in error
    assert cli.main(["info", str(source)]) == 1
    with pytest.raises(CheckpointError, match="refused"):
        KaleidoTransformer3DModel.from_single_file(str(source))
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(source, folder / "diffusion_pytorch_model.bin")
    refused(capsys, folder, tmp_path / "out", untold=True)
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_distributed_folders_run_no_code(pipe, state, tmp_path, capsys):
    mark, source = tmp_path / "mark", tmp_path / "distributed"
    dcp.save({"model": pipe.transformer.state_dict(), "evil": Touch(mark)}, checkpoint_id=source)
    assert convert(source, tmp_path / "out", untold=True) == 0, "what is no tensor is never loaded"
    metadata = pickle.loads((source / ".metadata").read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = f"../{info.relative_path}"
    (source / ".metadata").write_bytes(pickle.dumps(metadata))
    assert "files outside of it" in refused(capsys, source, tmp_path / "two", untold=True)
    metadata.planner_data["evil"] = Touch(mark)
    (source / ".metadata").write_bytes(pickle.dumps(metadata))
    assert ".metadata is refused" in refused(capsys, source, tmp_path / "two", untold=True)
    assert cli.main(["info", str(source)]) == 1
    assert not mark.exists()


# kaleido info


def test_info_of_checkpoints(pipe, tmp_path, capsys):
    assert cli.main(["info", "bundled"]) == 0
    out = capsys.readouterr().out
    for words in (
        "num_layers           8",
        "float16 (",
        "licence              apache-2.0",
        "scored on",
        "Training: ",
        "PSNR",
    ):
        assert words in out, words
    pipe.save_pretrained(tmp_path / "folder")
    assert convert(tmp_path / "folder", tmp_path / "x.safetensors") == 0
    told = []
    for path in (tmp_path / "folder", tmp_path / "folder" / "transformer", tmp_path / "x.safetensors"):
        capsys.readouterr()
        assert cli.main(["info", str(path)]) == 0
        told.append(capsys.readouterr().out.splitlines())
    lines = [next(line for line in out if "fingerprint" in line) for out in told]
    assert len(set(lines)) == 1
    total = sum(parameter.numel() for parameter in pipe.transformer.parameters())
    assert f"  parameters           {total:,}" in told[0]
    assert any("SHA-256" in line for line in told[2]) and not any("(assumed)" in line for line in told[2])


def test_captures_are_no_checkpoints(tmp_path):
    assert not is_checkpoint(sample_capture()) and not is_checkpoint("sample")
    (tmp_path / "cameras.bin").touch()
    assert not is_checkpoint(str(tmp_path)), "a model of COLMAP"


# Memory

MEASURED = """
import sys
from kaleido_diffusers import cli
import kaleido_diffusers.cli.convert  # with all that it stands on
def peak():
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
before = peak()
assert cli.main(["convert", *sys.argv[1:]]) == 0
print(before, peak())
"""


def write_synthetic(source: Path, megabytes: int) -> int:
    """A checkpoint with enough layers to have that size; its bytes."""
    config = dict(num_attention_heads=16, num_key_value_heads=4, ffn_dim=3072)
    block = sum(x.numel() for x in KaleidoTransformer3DModel(num_layers=1, **config).transformer_blocks.parameters())
    model = KaleidoTransformer3DModel(num_layers=megabytes * 2**20 // (4 * block) + 1, **config)
    if source.suffix == ".safetensors":
        save_file(model.state_dict(), source)
    elif source.suffix == ".pt":
        torch.save({"state_dict": model.state_dict()}, source)
    else:
        dcp.save({"model": model.state_dict()}, checkpoint_id=source)
    return sum(parameter.numel() * 4 for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "distributed"])
@pytest.mark.parametrize("target, dtype", [("folder", "bfloat16"), ("single.safetensors", "keep")])
def test_peak_memory(name, target, dtype, tmp_path):
    """Of the conversion itself: what the interpreter and its libraries hold before does not count."""
    size = write_synthetic(tmp_path / name, int(os.environ.get("KALEIDO_TEST_MEGABYTES", 300)))
    command = [sys.executable, "-c", MEASURED, str(tmp_path / name), "--output", str(tmp_path / target)]
    result = subprocess.run([*command, "--dtype", dtype], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    before, peak = map(int, result.stdout.splitlines()[-1].split())
    print(f"{name} of {size / 1e6:.0f} MB to {target} in {dtype}: {(peak - before) / size:.2f} of its size")
    assert peak - before < 1.3 * size
