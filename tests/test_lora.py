"""LoRA adapters: their files and bases, what diffusers users do with them, and the reference caches that they void."""

import copy
import json
import os

import pytest
import torch
from conftest import Views, make_model, make_pipeline, random_poses
from interpreters import run_alone
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kaleido_diffusers import Cameras, KaleidoReferenceCache, KaleidoTransformer3DModel, KaleidoViewSynthesisPipeline
from kaleido_diffusers.loaders import adapter_files
from kaleido_diffusers.loaders.adapter_files import AdapterInfo, read_adapter_info, save_adapter
from kaleido_diffusers.loaders.base_weights import base_architecture, base_fingerprint
from kaleido_diffusers.loaders.lora_settings import LORA_TARGETS, make_lora_config


FILE = "pytorch_lora_weights.safetensors"
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
SMALL = {"num_layers": 2, "layer_pattern": ("global", "view")}
KINDS = {
    "plain": {"rank": 3, "alpha": 6.0},
    "dora": {"rank": 2, "dora": True},
    "rslora": {"rank": 4, "alpha": 3.0, "rslora": True, "targets": ("attention",)},
}


def adapt(model, name: str = "default", seed: int = 1, **options):
    """Adds an adapter, every weight of it random."""
    model.add_adapter(make_lora_config(**{"rank": 2, **options}), name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if f".{name}." in key and ("lora_A" in key or "lora_B" in key):
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
            elif f".{name}." in key and "magnitude" in key:
                weight.mul_(1 + 0.2 * torch.rand(weight.shape, generator=generator))
    return model


def write(folder, seed: int = 1, model=None, **options):
    """The folder of a random adapter of a model."""
    model = adapt(make_model(**SMALL) if model is None else model, seed=seed, **options)
    save_adapter(folder, model, AdapterInfo.of(model, base_name="the base", capture="room", steps=7, size=8))
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(["red", "blue", "green"]):
        write(folder / name, seed=seed + 1, rank=seed + 2, alpha=5.0 - seed)
    write(folder / "pink", seed=9, rank=2, alpha=5.0)
    return folder


@pytest.fixture
def pipe(adapters) -> KaleidoViewSynthesisPipeline:
    pipe = make_pipeline(**SMALL)
    for name in ("red", "blue"):
        pipe.load_lora_weights(adapters / name, adapter_name=name)
    pipe.set_adapters("red")
    return pipe


def generate(pipe, **options) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, 8, 8, generator=generator) for _ in range(2)]
    cameras = Cameras.from_fov(random_poses(4, generator=generator), 55.0, [8, 8])
    options = {"num_inference_steps": 2, "output_type": "pt", "views_per_group": 1, **options}
    return pipe(images, cameras, generator=torch.Generator().manual_seed(0), **options).images


@pytest.fixture(scope="module")
def base_views() -> torch.Tensor:
    return generate(make_pipeline(**SMALL))


def differ(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a - b).abs().max() > 1e-3


# Settings


def test_targets_are_layers_of_the_model():
    names = [name for name, _ in make_model(num_layers=1).named_modules()]
    for suffixes in LORA_TARGETS.values():
        for suffix in suffixes:
            assert any(name.endswith(f".{suffix}") for name in names), suffix
    model = adapt(make_model(num_layers=1), rank=3, targets=("ffn",))
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    assert adapted == {f"transformer_blocks.0.ff.{name}" for name in LORA_TARGETS["ffn"]}
    assert model.transformer_blocks[0].ff.up_proj.scaling == {"default": 1.0}, "alpha is the rank"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rank": 0}, "`rank` must be a positive integer, got 0"),
        ({"rank": 2.5}, "`rank` must be a positive integer"),
        ({"rank": 2, "targets": ("attention", "norms")}, "'attention', 'ffn'.*norms"),
        ({"rank": 2, "targets": "attention"}, "`targets` must name"),
        ({"rank": 2, "targets": ()}, "`targets` must name"),
    ],
)
def test_settings_that_make_no_adapter(options, message):
    with pytest.raises(ValueError, match=message):
        make_lora_config(**options)


# Files


def test_adapters_load_in_a_fresh_process(tmp_path):
    base = make_pipeline(**SMALL)
    base.save_pretrained(tmp_path / "base")
    for seed, (kind, options) in enumerate(KINDS.items()):
        pipe = make_pipeline(**SMALL)
        write(tmp_path / kind, seed, pipe.transformer, **options)
        torch.save(generate(pipe), tmp_path / f"{kind}.pt")
    code = """
    import sys, torch
    sys.path.insert(0, sys.argv[1])
    from test_lora import KINDS, generate, differ
    from kaleido_diffusers import KaleidoViewSynthesisPipeline
    pipe = KaleidoViewSynthesisPipeline.from_pretrained(sys.argv[2] + "/base")
    pipe.set_progress_bar_config(disable=True)
    base = generate(pipe)
    for kind in KINDS:
        pipe.load_lora_weights(f"{sys.argv[2]}/{kind}")
        expected = torch.load(f"{sys.argv[2]}/{kind}.pt", weights_only=True)
        assert torch.equal(generate(pipe), expected) and differ(expected, base), kind
        pipe.unload_lora_weights()
        assert torch.equal(generate(pipe), base), kind
    """
    folder = os.path.dirname(__file__)
    run_alone(code, folder, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_what_loads_saves_the_same(kind, tmp_path):
    write(tmp_path / "first", **KINDS[kind])
    pipe = make_pipeline(**SMALL)
    pipe.load_lora_weights(tmp_path / "first", adapter_name="mine")
    info = read_adapter_info(tmp_path / "first")
    save_adapter(tmp_path / "second", pipe.transformer, info, "mine")
    first, second = (load_file(tmp_path / name / FILE) for name in ("first", "second"))
    assert first.keys() == second.keys() and all(key.startswith("transformer.") for key in first)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any("lora_magnitude_vector" in key for key in first) == (kind == "dora")
    assert generate(pipe).equal(generate(loaded(make_pipeline(**SMALL), tmp_path / "second")))


def loaded(pipe, folder, **options):
    pipe.load_lora_weights(folder, **options)
    return pipe


def test_the_header_is_that_of_diffusers_and_ours(tmp_path):
    """A file written by diffusers' own `save_lora_weights` differs in our entry alone."""
    model = adapt(make_model(**SMALL), **KINDS["plain"])
    info = AdapterInfo.of(model, capture="room", steps=7, size=64, scores={"psnr": 21.5})
    assert save_adapter(tmp_path / "ours", model, info) == tmp_path / "ours" / FILE
    model.save_lora_adapter(tmp_path / "theirs")
    headers = []
    for name in ("ours", "theirs"):
        with safe_open(tmp_path / name / FILE, framework="pt") as file:
            headers.append(file.metadata())
    ours, theirs = (json.loads(header["lora_adapter_metadata"]) for header in headers)
    theirs["target_modules"].sort()
    assert ours == {f"transformer.{key}": value for key, value in theirs.items()}
    assert set(headers[0]) - set(headers[1]) == {"kaleido_adapter"}
    assert not list((tmp_path / "ours").glob("*.part"))
    with pytest.raises(ValueError, match="no adapter 'other'.*'default'"):
        save_adapter(tmp_path, model, info, "other")


def test_information_survives(tmp_path):
    model = adapt(make_model(**SMALL), **KINDS["rslora"])
    info = AdapterInfo.of(model, base_name="someone/base", capture="room", steps=7, size=64, scores={"psnr": 21.5})
    path = save_adapter(tmp_path, model, info)
    assert read_adapter_info(path) == read_adapter_info(tmp_path) == info
    assert (info.rank, info.alpha, info.targets, info.base_name) == (4, 3.0, ["attention"], "someone/base")
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    later = {**json.loads(header["kaleido_adapter"]), "of_a_later_version": 1}
    assert AdapterInfo.from_header({"kaleido_adapter": json.dumps(later)}) == info
    assert AdapterInfo.from_header({"format": "pt"}) is None
    with pytest.raises(ValueError, match="cannot be read.*base_name"):
        AdapterInfo.from_header({"kaleido_adapter": json.dumps({"rank": 2})})


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write(tmp_path)
    before = (tmp_path / FILE).read_bytes()

    def broken(weights, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(adapter_files, "save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path, seed=2)
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize("kind", KINDS)
def test_plain_peft_loads_the_folder(kind, tmp_path):
    """As the module's docstring says."""
    original = adapt(make_model(**SMALL), **KINDS[kind])
    save_adapter(tmp_path, original, AdapterInfo.of(original))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", FILE]

    transformer = make_model(**SMALL)
    views = {**Views(3).clean(2).kwargs(), "num_targets": 1}
    views = {key: value.float() if torch.is_tensor(value) else value for key, value in views.items()}
    with torch.no_grad():
        base = transformer(**views).sample
        model = PeftModel(transformer, PeftConfig.from_pretrained(tmp_path))
        weights = load_file(tmp_path / FILE)
        weights = {key.replace("transformer.", "base_model.model.", 1): x for key, x in weights.items()}
        result = set_peft_model_state_dict(model, weights)
        assert not result.unexpected_keys and not [key for key in result.missing_keys if "lora" in key]
        assert torch.equal(model(**views).sample, original(**views).sample)
        assert differ(model(**views).sample, base)


def test_hub_ids_are_checked_too(tmp_path, adapters):
    commit = "0" * 40
    repo = tmp_path / "models--someone--adapter"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "snapshots").mkdir()
    os.symlink(adapters / "red", repo / "snapshots" / commit)
    options = {"weight_name": FILE, "cache_dir": tmp_path, "local_files_only": True}
    pipe = loaded(make_pipeline(**SMALL), "someone/adapter", **options)
    assert torch.equal(generate(pipe), generate(loaded(make_pipeline(**SMALL), adapters / "red" / FILE)))
    with pytest.raises(ValueError, match="for the base the base"):
        make_pipeline(seed=5, **SMALL).load_lora_weights("someone/adapter", **options)


# Bases


@pytest.mark.parametrize(
    "config, message",
    [
        ({"seed": 5}, "the base, not for this KaleidoTransformer3DModel: the weights differ"),
        ({"ffn_dim": 64}, "ffn_dim 48 there, 64 here"),
        ({"patch_size": 2}, "patch_size 4 there, 2 here"),
        ({"sample_size": 16}, "sample_size 8 there, 16 here"),
        ({"camera_encoding": "gta"}, "camera_encoding prope there, gta here"),
    ],
)
def test_adapters_of_another_base_are_refused(config, message, adapters):
    pipe = make_pipeline(**{**SMALL, **config})
    before = generate(pipe)
    with pytest.raises(ValueError, match=message):
        pipe.load_lora_weights(adapters / "red")
    assert torch.equal(generate(pipe), before) and not pipe.get_list_adapters()
    if "ffn_dim" not in config:
        assert differ(generate(loaded(pipe, adapters / "red", check_base=False)), before), "it can be had regardless"
    else:
        with pytest.raises(ValueError, match="cannot be loaded.*size mismatch"):
            pipe.load_lora_weights(adapters / "red", check_base=False)


def test_files_of_others_load_as_in_diffusers(tmp_path, adapters):
    save_file(load_file(adapters / "red" / FILE), tmp_path / "plain.safetensors")
    assert read_adapter_info(tmp_path / "plain.safetensors") is None
    other = make_pipeline(seed=5, **SMALL)
    before = generate(other)
    assert differ(generate(loaded(other, tmp_path, weight_name="plain.safetensors")), before)
    weights = load_file(adapters / "red" / FILE)
    assert differ(generate(loaded(make_pipeline(seed=5, **SMALL), weights)), before)
    assert next(iter(weights)).startswith("transformer."), "the dictionary stays as it was"

    saved = adapt(make_model(**SMALL))
    KaleidoViewSynthesisPipeline.save_lora_weights(tmp_path / "theirs", get_peft_model_state_dict(saved))
    pipe = loaded(make_pipeline(**SMALL), tmp_path / "theirs")
    original = make_pipeline(**SMALL)
    original.transformer = saved
    assert torch.equal(generate(pipe), generate(original))


@pytest.mark.parametrize("stored", [torch.float16, torch.float32])
def test_a_base_is_known_in_every_dtype(stored, tmp_path):
    make_model(**SMALL).to(stored).save_pretrained(tmp_path / "base")
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    models = {dtype: KaleidoTransformer3DModel.from_pretrained(tmp_path / "base", dtype=dtype) for dtype in dtypes}
    for dtype, model in models.items():
        assert model.transformer_blocks[0].attn.to_q.weight.dtype == dtype
    if stored == torch.float16:
        assert len({base_fingerprint(model) for model in models.values()}) == 1
    write(tmp_path / "adapter", model=copy.deepcopy(models[torch.float32]))
    for model in models.values():
        pipe = make_pipeline(**SMALL)
        pipe.transformer = model
        pipe.load_lora_weights(tmp_path / "adapter")
        assert generate(pipe).isfinite().all()
    strange = make_pipeline(seed=5, **SMALL)
    for dtype in dtypes:
        with pytest.raises(ValueError, match="the weights differ"):
            strange.to(dtype).load_lora_weights(tmp_path / "adapter")


def test_fingerprints_are_those_of_the_base(adapters):
    model = make_model(**SMALL)
    expected = base_fingerprint(model)
    assert expected != base_fingerprint(make_model(seed=5, **SMALL))
    assert expected == base_fingerprint(adapt(make_model(**SMALL), dora=True))
    model.fuse_qkv_projections()
    assert base_fingerprint(model) == expected
    model.unfuse_qkv_projections()
    pipe = make_pipeline(**SMALL)
    pipe.load_lora_weights(adapters / "red", adapter_name="red")
    for change in (pipe.fuse_lora, pipe.unfuse_lora, pipe.fuse_lora):
        change()
        assert base_fingerprint(pipe.transformer) == expected
    pipe.unload_lora_weights()
    assert base_fingerprint(pipe.transformer) != expected, "fused for good"
    with torch.no_grad():
        model.proj_out.bias[0] += 0.1
    assert base_fingerprint(model) != expected
    architecture = json.loads(base_architecture(model))
    assert architecture["rope_axes_dim"] == [6, 6, 4] and architecture["out_channels"] == 3


@pytest.mark.parametrize("change", ["cast", "meta"])
def test_bases_that_cannot_be_read_are_not_checked(change, adapters, monkeypatch):
    pipe = make_pipeline(seed=5, **SMALL)
    if change == "cast":
        pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    else:
        pipe.transformer.to("meta")
    assert base_fingerprint(pipe.transformer) == "unknown"
    warnings = []
    monkeypatch.setattr(adapter_files.logger, "warning", warnings.append)
    read_adapter_info(adapters / "red").check_base(pipe.transformer)
    assert len(warnings) == 1 and "cannot be told" in warnings[0]
    wide = make_model(**{**SMALL, "ffn_dim": 64}).to("meta")
    with pytest.raises(ValueError, match="ffn_dim"):
        read_adapter_info(adapters / "red").check_base(wide)


# What diffusers users do


@pytest.mark.parametrize("how", ["set_adapters", "attention_kwargs"])
def test_scale_zero_is_the_base(how, pipe, base_views):
    assert differ(generate(pipe), base_views)
    if how == "set_adapters":
        pipe.set_adapters("red", 0.0)
        assert torch.equal(generate(pipe), base_views)
    else:
        assert torch.equal(generate(pipe, attention_kwargs={"scale": 0.0}), base_views)


def test_scales_of_a_call_leave_nothing_behind(pipe):
    pipe.set_adapters(["red", "blue"], [0.7, 0.3])
    expected = generate(pipe)
    for scale in (0.0, 0.3, 1 / 3):
        assert differ(generate(pipe, attention_kwargs={"scale": scale}), expected)
        assert torch.equal(generate(pipe), expected)
    pipe.set_adapters("red", 0.5)
    half = generate(pipe)
    pipe.set_adapters("red")
    assert torch.equal(generate(pipe, attention_kwargs={"scale": 0.5}), half)
    with pytest.raises(TypeError):
        generate(pipe, attention_kwargs={"scale": 0.5, "nonsense": 1})
    pipe.set_adapters("red", 0.5)
    assert torch.equal(generate(pipe), half)


def test_adapters_go_and_come_back(pipe, base_views):
    adapted = generate(pipe)
    assert differ(adapted, base_views)
    pipe.disable_lora()
    assert torch.equal(generate(pipe), base_views)
    pipe.enable_lora()
    assert torch.equal(generate(pipe), adapted)
    pipe.delete_adapters("blue")
    assert torch.equal(generate(pipe), adapted)
    pipe.unload_lora_weights()
    assert torch.equal(generate(pipe), base_views)
    assert not pipe.get_list_adapters()


@pytest.mark.parametrize("kind", KINDS)
def test_fused_is_unfused(kind, tmp_path, base_views):
    pipe = loaded(make_pipeline(**SMALL), write(tmp_path, **KINDS[kind]))
    adapted = generate(pipe)
    pipe.fuse_lora()
    assert pipe.num_fused_loras == 1
    torch.testing.assert_close(generate(pipe), adapted, **CLOSE)
    scaled = generate(pipe, attention_kwargs={"scale": 0.5})
    torch.testing.assert_close(scaled, adapted, **CLOSE)
    pipe.unfuse_lora()
    torch.testing.assert_close(generate(pipe), adapted, **CLOSE)
    pipe.fuse_lora()
    pipe.disable_lora()  # PEFT takes it out in the next pass
    torch.testing.assert_close(generate(pipe, attention_kwargs={"scale": 0.5}), base_views, **CLOSE)
    pipe.unload_lora_weights()
    torch.testing.assert_close(generate(pipe), base_views, **CLOSE)
    assert differ(adapted, base_views)


def test_two_adapters_are_swapped_and_mixed(pipe, adapters):
    alone = {name: generate(loaded(make_pipeline(**SMALL), adapters / name)) for name in ("red", "blue")}
    assert differ(*alone.values())
    for name in ("red", "blue", "red"):
        pipe.set_adapters(name)
        assert torch.equal(generate(pipe), alone[name])
    pipe.set_adapters(["red", "blue"], [0.5, 0.25])

    mixed = make_pipeline(**SMALL)
    state = mixed.transformer.state_dict()
    for name, weight in (("red", 0.5), ("blue", 0.25)):
        info, weights = read_adapter_info(adapters / name), load_file(adapters / name / FILE)
        for key in [key for key in weights if "lora_A" in key]:
            update = weights[key.replace("lora_A", "lora_B")] @ weights[key]
            state[key.split(".lora_A")[0].removeprefix("transformer.") + ".weight"] += (
                weight * info.alpha / info.rank * update
            )
    torch.testing.assert_close(generate(pipe), generate(mixed), **CLOSE)


@pytest.mark.parametrize("prepared", [False, True])
def test_hot_swap_is_a_fresh_load(prepared, adapters, tmp_path):
    """Ranks and alphas differ."""
    pipe = make_pipeline(**SMALL)
    if prepared:
        pipe.enable_lora_hotswap(target_rank=6)
    for name in ("red", "blue", "green", "red"):
        pipe.load_lora_weights(adapters / name, adapter_name="x", hotswap=bool(pipe.get_list_adapters()))
        fresh = loaded(make_pipeline(**SMALL), adapters / name, adapter_name="x")
        torch.testing.assert_close(generate(pipe), generate(fresh), **CLOSE)
        options = {"attention_kwargs": {"scale": 0.4}}
        torch.testing.assert_close(generate(pipe, **options), generate(fresh, **options), **CLOSE)
        save_adapter(tmp_path, pipe.transformer, AdapterInfo.of(pipe.transformer, "x"), "x")
        torch.testing.assert_close(generate(loaded(make_pipeline(**SMALL), tmp_path)), generate(fresh), **CLOSE)
    pipe.load_lora_weights(adapters / "blue", adapter_name="x", hotswap=True)
    fresh = loaded(make_pipeline(**SMALL), adapters / "blue", adapter_name="x")
    for each in (pipe, fresh):
        each.set_adapters("x", 0.5)
    torch.testing.assert_close(generate(pipe), generate(fresh), **CLOSE)


def test_a_hot_swap_that_cannot_be_keeps_the_old(pipe, tmp_path, adapters):
    expected = generate(pipe)
    write(tmp_path / "dora", dora=True)
    with pytest.raises(ValueError, match="DoRA adapters cannot be hot-swapped"):
        pipe.load_lora_weights(tmp_path / "dora", adapter_name="red", hotswap=True)
    write(tmp_path / "other", model=make_model(seed=5, **SMALL))
    with pytest.raises(ValueError, match="the weights differ"):
        pipe.load_lora_weights(tmp_path / "other", adapter_name="red", hotswap=True)
    assert torch.equal(generate(pipe), expected)
    pipe.load_lora_weights(adapters / "green", adapter_name="red2")
    for name in ("red", "red2"):
        pipe.set_adapters(name)
        expected = generate(pipe)
        with pytest.raises(ValueError, match="'red' cannot be hot-swapped beside others.*red2"):
            swap(pipe, adapters / "pink")
        assert torch.equal(generate(pipe), expected)


def test_checkpoints_with_adapters_around(pipe, tmp_path, base_views, adapters):
    with pytest.raises(ValueError, match="holds adapters"):
        pipe.save_pretrained(tmp_path / "refused")
    adapted = generate(pipe)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path / "fused", variant="mine")
    assert list((tmp_path / "fused" / "transformer").glob("*.mine.safetensors"))
    reloaded = KaleidoViewSynthesisPipeline.from_pretrained(tmp_path / "fused", variant="mine")
    torch.testing.assert_close(generate(reloaded), adapted, **CLOSE)
    with pytest.raises(ValueError, match="the weights differ"):
        reloaded.load_lora_weights(adapters / "blue")

    base = make_pipeline(**SMALL)
    base.save_pretrained(tmp_path / "base")
    reloaded = KaleidoViewSynthesisPipeline.from_pretrained(tmp_path / "base")
    torch.testing.assert_close(generate(loaded(reloaded, adapters / "red")), adapted, **CLOSE)
    reloaded.unload_lora_weights()
    reloaded.save_pretrained(tmp_path / "again")
    again = KaleidoViewSynthesisPipeline.from_pretrained(tmp_path / "again")
    assert torch.equal(generate(again), base_views)


def test_fused_projections_and_adapters_exclude_each_other(pipe, adapters):
    with pytest.raises(ValueError, match="would drop adapters"):
        pipe.transformer.fuse_qkv_projections()
    pipe.unload_lora_weights()
    pipe.transformer.fuse_qkv_projections()
    with pytest.raises(ValueError, match="unfuse_qkv_projections"):
        pipe.load_lora_weights(adapters / "red")
    with pytest.raises(ValueError, match="unfuse_qkv_projections"):
        pipe.transformer.add_adapter(make_lora_config(2))


# Reference caches


VIEWS = {key: value.float() for key, value in Views(4).clean(2).kwargs().items()}
MEMORY = {key: value[:, :2] for key, value in VIEWS.items() if key != "timestep"}
TARGETS = {key: value[:, 2:] for key, value in VIEWS.items()}


def swap(pipe, folder, name: str = "red"):
    pipe.load_lora_weights(folder, adapter_name=name, hotswap=True)


def encode(pipe, **options) -> KaleidoReferenceCache:
    with torch.no_grad():
        return pipe.transformer.encode_views(**MEMORY, **options)


def predict(pipe, cache, **options) -> torch.Tensor:
    with torch.no_grad():
        return pipe.transformer(**TARGETS, cache=cache, **options).sample


CHANGES = {
    "another adapter": (
        lambda pipe, folder: pipe.set_adapters("blue"),
        r"made with adapter 'red'.*now.*adapter 'blue'",
    ),
    "another weight": (lambda pipe, folder: pipe.set_adapters("red", 0.5), r"'red' \(2.5\).*'red' \(1.25\)"),
    "one more": (lambda pipe, folder: pipe.set_adapters(["red", "blue"]), "now there is adapter 'blue' .* and 'red'"),
    "by block": (
        lambda pipe, folder: pipe.set_adapters("red", {"transformer": {"transformer_blocks.1": 0.5}}),
        "1.25",
    ),
    "disabled": (lambda pipe, folder: pipe.disable_lora(), "now there is no adapter"),
    "unloaded": (lambda pipe, folder: pipe.unload_lora_weights(), "now there is no adapter"),
    "deleted": (lambda pipe, folder: pipe.delete_adapters("red"), "'blue'"),
    "fused": (lambda pipe, folder: pipe.fuse_lora(), "'red' (fused)"),
    "fused for good": (lambda pipe, folder: (pipe.fuse_lora(), pipe.unload_lora_weights()), "for good"),
    "fused, then deleted": (lambda pipe, folder: (pipe.fuse_lora(), pipe.delete_adapters("red")), "for good"),
    "hot-swapped": (lambda pipe, folder: swap(pipe, folder / "green"), "'red'"),
    "other weights of that name": (
        lambda pipe, folder: (pipe.unload_lora_weights(), loaded(pipe, folder / "pink", adapter_name="red")),
        "weights or the layers of adapter 'red' .* have changed",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_caches_of_other_adapters_are_refused(change, pipe, adapters):
    cache = encode(pipe)
    predict(pipe, cache)
    function, message = CHANGES[change]
    function(pipe, adapters)
    with pytest.raises(ValueError, match="`cache` does not fit the transformer's adapters.*new cache") as error:
        predict(pipe, cache)
    assert error.match(message.replace("(fused)", r"\(fused\)"))
    for derived in (cache.select([1]), cache.moved(dtype=torch.float64)):
        with pytest.raises(ValueError, match="does not fit"):
            predict(pipe, derived)
    with pytest.raises(ValueError, match="does not fit"):
        encode(pipe, cache=cache)
    predict(pipe, encode(pipe))
    encode(pipe, cache=cache.select([]))


NO_CHANGES = {
    "disabled and enabled": lambda pipe, folder: (pipe.disable_lora(), pipe.enable_lora()),
    "another and back": lambda pipe, folder: (pipe.set_adapters("blue", 0.1), pipe.set_adapters("red")),
    "scaled in between": lambda pipe, folder: [
        generate(pipe, attention_kwargs={"scale": scale}) for scale in (0.0, 0.3)
    ],
    "one more at weight 0": lambda pipe, folder: pipe.set_adapters(["blue", "red"], [0.0, 1.0]),
    "one more, not active": lambda pipe, folder: (
        loaded(pipe, folder / "green", adapter_name="green"),
        pipe.set_adapters("red"),
    ),
    "one less, not active": lambda pipe, folder: pipe.delete_adapters("blue"),
    "fused and unfused": lambda pipe, folder: (pipe.fuse_lora(), pipe.unfuse_lora()),
    "swapped there and back": lambda pipe, folder: (swap(pipe, folder / "pink"), swap(pipe, folder / "red")),
    "loaded again": lambda pipe, folder: (
        pipe.unload_lora_weights(),
        loaded(pipe, folder / "red", adapter_name="red"),
    ),
    "cast and back": lambda pipe, folder: pipe.to(torch.float64).to(torch.float32),
    "training mode": lambda pipe, folder: pipe.transformer.train(),
    "gradient checkpointing": lambda pipe, folder: pipe.transformer.enable_gradient_checkpointing(),
}


@pytest.mark.parametrize("change", NO_CHANGES)
def test_caches_of_the_same_adapters_are_not_refused(change, pipe, adapters):
    cache = encode(pipe)
    expected = predict(pipe, cache)
    NO_CHANGES[change](pipe, adapters)
    torch.testing.assert_close(predict(pipe, cache), expected, **CLOSE)
    encode(pipe, cache=cache)


def test_the_scale_of_a_call_counts(pipe):
    half = {"attention_kwargs": {"scale": 0.5}}
    cache = encode(pipe, **half)
    expected = predict(pipe, cache, **half)
    with pytest.raises(ValueError, match=r"'red' \(1.25\).*'red' \(2.5\)"):
        predict(pipe, cache)
    pipe.set_adapters("red", 0.5)
    assert torch.equal(predict(pipe, cache), expected), "the same by other means"


def test_no_adapter_is_no_adapter(adapters):
    pipe = make_pipeline(**SMALL)
    cache = encode(pipe)
    expected = predict(pipe, cache)
    pipe.load_lora_weights(adapters / "red", adapter_name="red")
    with pytest.raises(ValueError, match="made with no adapter, and now there is adapter 'red'"):
        predict(pipe, cache)
    for options in ({"attention_kwargs": {"scale": 0.0}}, {}):
        assert torch.equal(predict(pipe, cache, **options), expected)
        pipe.disable_lora()


def test_how_strongly_an_adapter_was_fused_counts(pipe):
    pipe.fuse_lora()
    cache = encode(pipe)
    predict(pipe, cache, attention_kwargs={"scale": 0.5})
    pipe.unfuse_lora()
    pipe.fuse_lora()
    predict(pipe, cache)
    pipe.unfuse_lora()
    pipe.fuse_lora(lora_scale=0.5)
    with pytest.raises(ValueError, match="weights or the layers of adapter 'red'"):
        predict(pipe, cache)


@pytest.mark.parametrize("first", [False, True], ids=["then offloaded", "then loaded"])
def test_offloading_is_no_change(first, pipe):
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_module

    model = pipe.transformer
    if first:
        cpu_offload(model, torch.device("cpu"))
        assert model.proj_out.weight.is_meta
    cache = encode(pipe)
    expected = predict(pipe, cache)
    if first:
        remove_hook_from_module(model, recurse=True)
    else:
        cpu_offload(model, torch.device("cpu"))
    assert model.proj_out.weight.is_meta != first
    torch.testing.assert_close(predict(pipe, cache), expected, **CLOSE)


def test_caches_of_one_batch_share_their_adapters(pipe):
    caches = [encode(pipe), encode(pipe)]
    joined = KaleidoReferenceCache.cat(caches)
    assert joined.adapters == caches[0].adapters == caches[0].select([0]).adapters == caches[0].moved("cpu").adapters
    pipe.disable_lora()
    with pytest.raises(ValueError, match="same adapters.*adapter 'red' .* and one with no adapter"):
        KaleidoReferenceCache.cat([caches[0], encode(pipe)])


def test_a_callback_that_changes_adapters_is_told_what_to_do(pipe):
    def change(pipe, step, timestep, tensors):
        pipe.set_adapters("blue" if step else "red")
        return tensors

    with pytest.raises(ValueError, match="use_reference_cache=False"):
        generate(pipe, callback_on_step_end=change, num_inference_steps=3)
    pipe.set_adapters("red")
    generate(pipe, callback_on_step_end=change, num_inference_steps=3, use_reference_cache=False)


def test_training_makes_its_own_caches():
    model = adapt(make_model(**SMALL).requires_grad_(False)).train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.01)
    losses = []
    for _ in range(3):
        loss = model(**TARGETS, cache=model.encode_views(**MEMORY)).sample.square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    state = model.adapter_state()
    assert copy.deepcopy(model).adapter_state() == state


def test_the_whole_transformer_compiles_with_adapters(pipe):
    cache = encode(pipe)
    expected = predict(pipe, cache)
    compiled = torch.compile(pipe.transformer, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(**TARGETS, cache=cache).sample, expected, **CLOSE)
        half = compiled(**TARGETS, cache=cache, attention_kwargs={"scale": 0.5}).sample
    assert differ(half, expected)
    torch.testing.assert_close(predict(pipe, cache), expected, **CLOSE)
