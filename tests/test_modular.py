"""The pipeline in blocks: the views of the standard form to the bit, its memories, guiders, and how it is saved."""

import copy
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import make_pipeline
from diffusers import (
    AdaptiveProjectedGuidance,
    AutoGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    ComponentsManager,
    FlowMatchEulerDiscreteScheduler,
    LayerSkipConfig,
    ModularPipeline,
    PyramidAttentionBroadcastConfig,
    SkipLayerGuidance,
)
from diffusers.modular_pipelines.modular_pipeline import MODULAR_PIPELINE_MAPPING
from peft import LoraConfig, get_peft_model_state_dict
from test_pipeline import CLOSE, counted_views, generate, make_inputs, make_vae
from test_registration import fresh
from test_step_caches import CACHES, STEPS

from kaleido_diffusers import (
    KaleidoBlocks,
    KaleidoEncodeBlocks,
    KaleidoGuidance,
    KaleidoMemoryBlocks,
    KaleidoModularPipeline,
    KaleidoViewSynthesisPipeline,
    RectifiedFlowViewScheduler,
)


TEMPLATE = Path(__file__).parents[1] / "examples" / "modular_repository"


def modular(pipe: KaleidoViewSynthesisPipeline, blocks=None, guidance_scale: float = 1.0) -> KaleidoModularPipeline:
    """The modular form of a pipeline, or other blocks over its components."""
    twin = (KaleidoBlocks() if blocks is None else blocks).init_pipeline()
    parts = {name: part for name, part in pipe.components.items() if name in twin.component_names}
    if "guider" in twin.component_names:
        parts |= {"guider": KaleidoGuidance(guidance_scale)}
    twin.update_components(**parts)
    if "prediction_type" in twin.config:
        twin.update_components(prediction_type=pipe.config.prediction_type)
    twin.set_progress_bar_config(disable=True)
    return twin


def generate_modular(twin, images, cameras, *targets, seed: int = 0, steps: int = 3, **options):
    """As `generate`, which is in the standard form."""
    options = {"output_type": "pt", "views_per_group": 2, "num_inference_steps": steps, **options}
    if targets:
        options["target_poses"] = targets[0]
    generator = torch.Generator().manual_seed(seed)
    return twin(reference_images=images, poses=cameras, generator=generator, output="images", **options)


@pytest.fixture(scope="module")
def pipe() -> KaleidoViewSynthesisPipeline:
    return make_pipeline("velocity", layer_pattern=("global", "view"))


# The same bits


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_reference_cache": False},
        {"views_per_group": 5},
        {"num_samples": 2, "generation_order": "nearest"},
        {"max_memory_views": 2},
        {"joins_memory": "first", "generation_order": "anchors"},
        {"joins_memory": "none", "camera_scale": 1.5},
        {"sigmas": [1.0, 0.5, 0.2]},
        {"height": 12, "width": 8, "output_type": "latent"},
        {"output_type": "np"},
    ],
    ids=str,
)
def test_views_are_those_of_the_standard_form(pipe, options, guidance_scale):
    images, cameras = make_inputs()
    expected = torch.as_tensor(generate(pipe, images, cameras, guidance_scale=guidance_scale, **options))
    twin = modular(pipe, guidance_scale=guidance_scale)
    got = torch.as_tensor(generate_modular(twin, images, cameras, **options))
    assert got.shape == expected.shape and torch.equal(got, expected)


def test_batches_videos_noise_and_no_references(pipe):
    images, cameras = make_inputs()
    twin = modular(pipe, guidance_scale=2.0)
    scenes, several = [images, images[::-1]], [cameras, cameras]
    expected = generate(pipe, scenes, several, guidance_scale=2.0)
    assert torch.equal(generate_modular(twin, scenes, several), expected) and expected.shape[:2] == (2, 5)
    assert torch.equal(
        generate_modular(twin, None, None, cameras[3:]), generate(pipe, None, None, cameras[3:], guidance_scale=2.0)
    )
    times = {"frame_times": [0.0, 0.5, 1.0], "target_times": [0.2, 0.7, 0.9]}
    expected = generate(pipe, images, None, guidance_scale=2.0, **times)
    assert torch.equal(generate_modular(twin, images, None, **times), expected)
    noise = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    expected = generate(pipe, images, cameras, guidance_scale=2.0, latents=noise)
    assert torch.equal(generate_modular(twin, images, cameras, latents=noise), expected)


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        RectifiedFlowViewScheduler(use_dynamic_shifting=True, base_image_seq_len=2, solver="heun"),
        RectifiedFlowViewScheduler(solver="multistep"),
    ],
    ids=lambda scheduler: scheduler.config.get("solver", "FlowMatchEuler"),
)
def test_schedulers(scheduler):
    pipe = make_pipeline("velocity")
    pipe.scheduler = scheduler
    images, cameras = make_inputs()
    expected = generate(pipe, images, cameras, guidance_scale=1.5)
    assert torch.equal(generate_modular(modular(pipe, guidance_scale=1.5), images, cameras), expected)


def test_autoencoders_and_pil():
    pipe = make_pipeline("velocity", make_vae("kl"), in_channels=4)
    images, cameras = make_inputs(size=(16, 16))
    options = {"height": 16, "width": 16}
    twin = modular(pipe)
    assert twin.vae_scale_factor == 2 and twin.default_sample_size == 16
    assert torch.equal(generate_modular(twin, images, cameras), generate(pipe, images, cameras, **options))
    pictures = generate_modular(twin, images, cameras, output_type="pil")
    expected = generate(pipe, images, cameras, output_type="pil")
    assert [picture.tobytes() for picture in pictures] == [picture.tobytes() for picture in expected]


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@pytest.mark.parametrize("use_reference_cache", [True, False])
@pytest.mark.parametrize("cache", CACHES)
def test_step_caches(cache, guidance_scale, use_reference_cache):
    """Each form tells the step cache of its own timestep; the branches have other names in the modular form."""
    pipe = make_pipeline()
    images, cameras = make_inputs()
    twin = modular(pipe, guidance_scale=guidance_scale)
    config, _ = CACHES[cache]
    options = {"steps": STEPS, "use_reference_cache": use_reference_cache}
    pipe.transformer.enable_cache(config(pipe))
    expected = generate(pipe, images, cameras, guidance_scale=guidance_scale, **options)
    pipe.transformer.disable_cache()
    exact = generate(pipe, images, cameras, guidance_scale=guidance_scale, **options)
    assert not torch.allclose(exact, expected, atol=1e-4), "it did skip something"
    pipe.transformer.enable_cache(config(twin))
    for _ in range(2):
        assert torch.equal(generate_modular(twin, images, cameras, **options), expected)


def test_the_timestep_is_always_a_number():
    pipe = make_pipeline()
    twin, seen = modular(pipe), []
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        current_timestep_callback=lambda: seen.append(float(twin.current_timestep)) or seen[-1],
    )
    pipe.transformer.enable_cache(config)
    images, cameras = make_inputs()
    generate_modular(twin, images, cameras[:7], steps=STEPS)
    asked = [seen[place] for place in range(0, len(seen), 3)]
    assert asked == 2 * [1000, 1000, 750, 500, 250] and twin.current_timestep == 1000


# Memories and states


def test_references_are_encoded_once_for_many_paths(pipe):
    images, cameras = make_inputs()
    memory = pipe.encode_references(images, cameras[:3])
    expected = generate(pipe, None, None, cameras[3:], memory=memory)
    encoder, flyer = modular(pipe, KaleidoEncodeBlocks()), modular(pipe, KaleidoMemoryBlocks())
    with counted_views(pipe) as counts:
        known = encoder(reference_images=images, poses=cameras[:3], output="memory")
        assert counts == [3] and (known.height, known.width, known.is_batch) == (8, 8, False)
        for _ in range(2):
            counts.clear()
            views = generate_modular(flyer, None, None, cameras[3:], memory=known)
            assert torch.equal(views, expected)
            assert counts == 3 * [2] + [2] + 3 * [2] + [2] + 3 * [1]
    bare = generate_modular(flyer, None, None, cameras.world_from_camera[3:], memory=known)
    assert torch.equal(bare, expected), "the lens of the first reference"
    with pytest.raises(ValueError, match="`target_poses` must be given with this `memory`"):
        flyer(memory=known, target_times=[1.0])


def test_the_encoder_popped_off(pipe):
    """What is left takes the memory as an input; frame and unit are the memory's, also where one reference would have
    taken its unit from other targets."""
    images, cameras = make_inputs(num_references=1)
    blocks = KaleidoBlocks()
    encode = modular(pipe, KaleidoBlocks().sub_blocks.pop("encode_references"))
    prepare = modular(pipe, blocks.sub_blocks["prepare_views"])
    prepared = prepare(reference_images=images, poses=cameras)
    memory = encode(state=prepared, output="memory")
    blocks.sub_blocks.pop("encode_references")
    left = modular(pipe, blocks)
    assert [param.name for param in left.blocks.inputs if param.required] == ["memory"]
    expected = generate(pipe, images, cameras)
    assert torch.equal(generate_modular(left, images, cameras, memory=memory), expected)
    noise = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    whole = generate(pipe, images, cameras, latents=noise, joins_memory="none", views_per_group=1)
    near = generate_modular(
        left, images, cameras[:3], memory=memory, latents=noise[:2], joins_memory="none", views_per_group=1
    )
    torch.testing.assert_close(near, whole[:2], **CLOSE)


def test_a_state_runs_again_and_copies_no_model(pipe, monkeypatch):
    images, cameras = make_inputs()
    twin = modular(pipe)
    options = {"num_inference_steps": 2, "output_type": "pt", "views_per_group": 2}
    noise = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    state = twin(reference_images=images, poses=cameras, latents=noise, **options)

    def refuse(*_):
        raise AssertionError("a model was copied")

    monkeypatch.setattr(torch.nn.Module, "__deepcopy__", refuse, raising=False)
    assert torch.equal(twin(state=state, output="images"), state.images), "no input was replaced by an output"
    again = copy.deepcopy(state.memory)
    assert len(again.scenes[0]) == 3, "it has not grown"
    fewer = twin(state=state, target_poses=cameras[5:], poses=cameras[:3], latents=noise[2:], output="images")
    assert fewer.shape[0] == 3


@pytest.mark.parametrize(
    "change, message",
    [
        ({"output_type": "tensor"}, "`output_type` must be 'pil'"),
        ({"generation_order": "random"}, "`generation_order` must be one of"),
        ({"joins_memory": "some"}, "`joins_memory` must be one of"),
        ({"height": 10}, "multiples of 4, got 10 and 8"),
        ({"max_memory_views": 0}, "`max_memory_views` must be a positive integer"),
        ({"max_memory_views": 2, "use_reference_cache": False}, "needs the reference cache"),
        ({"num_samples": 0}, "`num_samples` must be a positive integer"),
        ({"latents": torch.zeros(1, 3, 8, 8)}, "`latents` must have shape"),
    ],
)
def test_arguments_that_do_not_fit(pipe, change, message):
    with pytest.raises(ValueError, match=message):
        generate_modular(modular(pipe), *make_inputs(), **change)


@pytest.mark.parametrize("kind", [KaleidoGuidance, AdaptiveProjectedGuidance])
def test_guidance_away_from_the_references_is_refused(pipe, kind):
    images, cameras = make_inputs()
    twin = modular(pipe)
    twin.update_components(guider=kind(guidance_scale=-0.5))
    with pytest.raises(ValueError, match="`guidance_scale` must be 0 or more"):
        generate_modular(twin, images, cameras)


def test_a_scheduler_that_misreads_the_model_is_refused():
    twin = modular(make_pipeline("sample"))
    twin.update_components(scheduler=FlowMatchEulerDiscreteScheduler())
    with pytest.raises(ValueError, match="take for a 'velocity'"):
        generate_modular(twin, *make_inputs())


# Guiders


SKIPPING = {"skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}


def test_guiders_of_diffusers_run(pipe):
    """From the one that is ours, which keeps to `lerp`: plain guidance is as near as rounding, and the others are
    somewhere else."""
    images, cameras = make_inputs()
    twin = modular(pipe, guidance_scale=2.0)
    ours = generate_modular(twin, images, cameras)
    twin.update_components(guider=ClassifierFreeGuidance(guidance_scale=2.0))
    torch.testing.assert_close(generate_modular(twin, images, cameras), ours, **CLOSE)
    for guider in (
        AdaptiveProjectedGuidance(guidance_scale=2.0, adaptive_projected_guidance_momentum=-0.5, eta=0.0),
        ClassifierFreeZeroStarGuidance(guidance_scale=2.0, zero_init_steps=1),
        SkipLayerGuidance(guidance_scale=2.0, skip_layer_config=LayerSkipConfig([1]), **SKIPPING),
        AutoGuidance(guidance_scale=2.0, auto_guidance_config=LayerSkipConfig(indices=[1]), dropout=1.0),
        KaleidoGuidance(guidance_scale=2.0, start=0.5),
        KaleidoGuidance(guidance_scale=2.0, guidance_rescale=0.7),
    ):
        twin.update_components(guider=guider)
        views = generate_modular(twin, images, cameras)
        assert views.isfinite().all() and not torch.allclose(views, ours, atol=1e-3), type(guider).__name__
        assert torch.equal(generate_modular(twin, images, cameras), views), "each group begins anew"
    twin.update_components(guider=KaleidoGuidance(guidance_scale=2.0))
    assert torch.equal(generate_modular(twin, images, cameras), ours), "no hook stays behind"


def test_skipping_attention_alone():
    """In the second of two steps, from sigma 0.5 to 0, by `x - 0.5 v` of the velocity `v = c + 3 (c - k)`, which
    plain guidance by 2 makes `u + 2 (c - u) + 3 (c - k)`: `k` of a transformer whose second layer gives its
    attention's input as its output. (In the first step, and without plain guidance, diffusers never skips.)"""
    pipe = make_pipeline("velocity")
    images, cameras = make_inputs(num_targets=1)
    noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    options = {"output_type": "latent", "use_reference_cache": False}

    def velocity(sample, sigma: float, **more):
        return (sample - generate(pipe, images, cameras, latents=sample, sigmas=[sigma], **more, **options)) / sigma

    half = noise - velocity(noise, 1.0, guidance_scale=2.0) / 2
    conditional, unconditional = velocity(half, 0.5), velocity(half, 0.5, guidance_scale=0.0)
    guided = unconditional + 2 * (conditional - unconditional)
    twin = modular(pipe)
    skipped = LayerSkipConfig(indices=[1], skip_attention=True, skip_ff=False)
    guider = SkipLayerGuidance(
        guidance_scale=2.0, skip_layer_guidance_scale=3.0, skip_layer_config=skipped, **SKIPPING
    )
    twin.update_components(guider=guider)
    got = generate_modular(twin, images, cameras, latents=noise, sigmas=[1.0, 0.5], **options)
    attention = pipe.transformer.transformer_blocks[1].attn
    attention.forward = lambda hidden_states, *args, **kwargs: hidden_states
    without = velocity(half, 0.5)
    torch.testing.assert_close(got, half - (guided + 3 * (conditional - without)) / 2, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(conditional, without, atol=1e-2)


# Registered, saved, loaded


@contextmanager
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What diffusers logs, which it keeps from the root's handlers."""
    messages, root = [], logging.getLogger("diffusers")
    root.addHandler(caplog.handler)
    caplog.clear()
    try:
        yield messages
    finally:
        root.removeHandler(caplog.handler)
        messages += [record.getMessage() for record in caplog.records]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder that the modular form has saved, with guidance, and moved away."""
    folder = tmp_path_factory.mktemp("saved") / "before"
    modular(make_pipeline(), guidance_scale=2.5).save_pretrained(folder)
    return folder.rename(folder.with_name("after"))


def test_what_is_saved(saved):
    names = {path.name for path in saved.iterdir()}
    indexes = {"model_index.json", "modular_model_index.json"}
    assert names == {"guider", "pipeline.py", "scheduler", "transformer"} | indexes
    index = json.loads((saved / "modular_model_index.json").read_text())
    assert index["_class_name"] == "KaleidoModularPipeline" and index["_blocks_class_name"] == "KaleidoBlocks"
    assert index["prediction_type"] == "sample"
    assert index["transformer"][:2] == ["kaleido_diffusers", "KaleidoTransformer3DModel"]
    assert index["transformer"][2]["pretrained_model_name_or_path"] is None, "no place of this machine"
    assert index["vae"][:2] == [None, None] and index["vae"][2]["type_hint"] == ["diffusers", "AutoencoderKL"]
    assert str(saved.parent) not in (saved / "modular_model_index.json").read_text()


def test_each_form_loads_what_the_other_has_saved(saved, tmp_path, caplog):
    images, cameras = make_inputs()
    standard = KaleidoViewSynthesisPipeline.from_pretrained(saved)
    standard.set_progress_bar_config(disable=True)
    assert standard.config.prediction_type == "sample"
    expected = generate(standard, images, cameras, guidance_scale=2.5)
    loaded = KaleidoModularPipeline.from_pretrained(str(saved))
    loaded.load_components()
    assert loaded.guider.guidance_scale == 2.5 and loaded.vae is None
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(generate_modular(loaded, images, cameras), expected)
    standard.save_pretrained(tmp_path / "standard")
    (tmp_path / "standard").rename(tmp_path / "moved")
    again = ModularPipeline.from_pretrained(str(tmp_path / "moved"))
    with logged(caplog) as messages:
        again.load_components()
    assert not [text for text in messages if "Traceback" in text], "the absent autoencoder"
    again.set_progress_bar_config(disable=True)
    assert again.guider.guidance_scale == 1.0 and again.config.prediction_type == "sample"
    assert torch.equal(generate_modular(again, images, cameras), generate(standard, images, cameras))
    alone = tmp_path / "alone"  # without the modular index, as folders from before have it
    shutil.copytree(tmp_path / "moved", alone, ignore=lambda *_: ["modular_model_index.json"])
    old = KaleidoBlocks().init_pipeline(str(alone))
    old.load_components(["transformer", "scheduler"])
    old.set_progress_bar_config(disable=True)
    assert torch.equal(generate_modular(old, images, cameras), generate(standard, images, cameras))


def test_autoencoders_are_saved_too(tmp_path):
    pipe = make_pipeline("velocity", make_vae("tiny"), in_channels=4)
    images, cameras = make_inputs(size=(16, 16))
    modular(pipe).save_pretrained(tmp_path / "saved")
    loaded = KaleidoModularPipeline.from_pretrained(str(tmp_path / "saved"))
    loaded.load_components()
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(generate_modular(loaded, images, cameras), generate(pipe, images, cameras))


def test_fresh_processes_give_the_same_views(saved, tmp_path):
    """Imported, and by the shim of the template for those who do not import it, which asks them for their trust;
    without it diffusers has not heard of the class that the index names."""
    other = tmp_path / "repository"
    shutil.copytree(saved, other)
    for name in ("modular_config.json", "kaleido_blocks.py"):
        shutil.copy(TEMPLATE / name, other)
    code = """
    call = dict(reference_images=[torch.linspace(0, 1, 192).reshape(3, 8, 8)] * 2, fov=50.0, num_inference_steps=2,
                output_type="pt", output="images")
    def run_modular(pipe):
        pipe.load_components()
        poses = torch.eye(4).repeat(3, 1, 1)
        poses[:, 0, 3] = torch.arange(3)
        return pipe(poses=poses, generator=torch.Generator().manual_seed(0), **call)
    """
    by_shim = """
    import pytest
    from diffusers import ModularPipeline
    with pytest.raises(AttributeError, match="KaleidoModularPipeline"):
        ModularPipeline.from_pretrained(sys.argv[3])
    with pytest.raises(ValueError, match="trust_remote_code"):
        ModularPipeline.from_pretrained(folder)
    torch.save(run_modular(ModularPipeline.from_pretrained(folder, trust_remote_code=True)), sys.argv[2])
    """
    imported = """
    import kaleido_diffusers
    from diffusers import ModularPipeline
    torch.save(run_modular(ModularPipeline.from_pretrained(folder)), sys.argv[2])
    """
    standard = """
    from kaleido_diffusers import KaleidoViewSynthesisPipeline
    pipe = KaleidoViewSynthesisPipeline.from_pretrained(folder)
    poses = torch.eye(4).repeat(3, 1, 1)
    poses[:, 0, 3] = torch.arange(3)
    views = pipe([torch.linspace(0, 1, 192).reshape(3, 8, 8)] * 2, poses, fov=50.0, num_inference_steps=2,
                 output_type="pt", guidance_scale=2.5, generator=torch.Generator().manual_seed(0)).images
    torch.save(views, sys.argv[2])
    """
    views = []
    for number, (text, folder) in enumerate([(by_shim, other), (imported, saved), (standard, saved)]):
        fresh(code + text, folder, tmp_path / f"{number}.pt", saved)
        views.append(torch.load(tmp_path / f"{number}.pt"))
    assert torch.equal(views[0], views[2]) and torch.equal(views[1], views[2])


def test_registered_by_name():
    import diffusers

    assert MODULAR_PIPELINE_MAPPING["kaleido"](None) == "KaleidoModularPipeline"
    for cls in (KaleidoBlocks, KaleidoEncodeBlocks, KaleidoMemoryBlocks, KaleidoModularPipeline):
        assert getattr(diffusers, cls.__name__) is cls
    assert type(KaleidoMemoryBlocks().init_pipeline()) is KaleidoModularPipeline


# Composed


def test_blocks_declare_what_they_read_and_run_alone(pipe):
    """Each block in a pipeline of its own, the state going from one to the next."""
    images, cameras = make_inputs()
    expected = generate(pipe, images, cameras)
    given = {"reference_images": images, "poses": cameras, "views_per_group": 2, "num_inference_steps": 3}
    given |= {"generator": torch.Generator().manual_seed(0), "output_type": "pt"}
    state = None
    for name, block in KaleidoBlocks().sub_blocks.items():
        assert block.description and block.model_name == "kaleido", name
        known = {key: value for key, value in given.items() if key in block.input_names}
        state = modular(pipe, block)(state=state, **known)
    assert torch.equal(state.images, expected)
    assert "guidance_scale" not in KaleidoBlocks().input_names and "guider" in KaleidoBlocks().component_names


def test_components_are_shared_by_a_manager(pipe, tmp_path):
    modular(pipe).save_pretrained(tmp_path / "saved")
    manager = ComponentsManager()
    encoder = KaleidoEncodeBlocks().init_pipeline(str(tmp_path / "saved"), components_manager=manager, collection="a")
    encoder.load_components()
    flyer = KaleidoMemoryBlocks().init_pipeline(components_manager=manager, collection="b")
    flyer.update_components(transformer=encoder.transformer, scheduler=pipe.scheduler)
    flyer.update_components(prediction_type="velocity")
    flyer.set_progress_bar_config(disable=True)
    images, cameras = make_inputs()
    known = encoder(reference_images=images, poses=cameras[:3], output="memory")
    views = generate_modular(flyer, None, None, cameras[3:], memory=known)
    memory = pipe.encode_references(images, cameras[:3])
    assert torch.equal(views, generate(pipe, None, None, cameras[3:], memory=memory))


def test_adapters(tmp_path):
    pipe = make_pipeline("velocity")
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    pipe.transformer.add_adapter(config, "one")
    pipe.save_lora_weights(
        tmp_path, transformer_lora_layers=get_peft_model_state_dict(pipe.transformer, adapter_name="one")
    )
    images, cameras = make_inputs()
    expected = generate(pipe, images, cameras)
    other = make_pipeline("velocity")
    twin = modular(other)
    plain = generate_modular(twin, images, cameras)
    twin.load_lora_weights(str(tmp_path), adapter_name="one")
    torch.testing.assert_close(generate_modular(twin, images, cameras), expected, **CLOSE)
    halved = generate_modular(twin, images, cameras, attention_kwargs={"scale": 0.0})
    torch.testing.assert_close(halved, plain, **CLOSE)
