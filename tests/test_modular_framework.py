"""What the modular form rests on in diffusers, whose modular pipelines, guiders and hooks still change: how blocks are
declared, put together and run, how folders load, how guiders are driven."""

import ast
import importlib
import inspect
import json
import shutil
import warnings
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from conftest import make_pipeline
from diffusers import (
    ClassifierFreeGuidance,
    LayerSkipConfig,
    ModularPipeline,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
)
from diffusers.modular_pipelines import InputParam, ModularPipelineBlocks, OutputParam
from test_modular import SKIPPING, TEMPLATE, generate_modular, logged, modular
from test_pipeline import CLOSE, generate, make_inputs
from test_step_caches import CACHES, STEPS

from kaleido_diffusers import (
    KaleidoBlocks,
    KaleidoEncodeBlocks,
    KaleidoGuidance,
    KaleidoMemoryBlocks,
    KaleidoModularPipeline,
    KaleidoViewSynthesisPipeline,
)
from kaleido_diffusers.pipelines.modular.state import KaleidoState


BLOCKS = (KaleidoBlocks, KaleidoEncodeBlocks, KaleidoMemoryBlocks)


@pytest.fixture(scope="module")
def pipe() -> KaleidoViewSynthesisPipeline:
    return make_pipeline("velocity", layer_pattern=("global", "view"))


# Blocks: declared, put together


@pytest.mark.parametrize("blocks", BLOCKS)
def test_no_output_is_named_as_an_input_of_the_user(blocks):
    """A state has one flat namespace: a run from the state of another would take its outputs for inputs."""
    made = {output.name for block in blocks().sub_blocks.values() for output in block.intermediate_outputs}
    assert made and not made & set(blocks().input_names)


def test_defaults_are_those_of_the_standard_form():
    """What both forms call by one name has one default in them."""
    theirs = inspect.signature(KaleidoViewSynthesisPipeline.__call__).parameters
    blocks = KaleidoBlocks()
    every = [blocks, *blocks.sub_blocks.values(), *blocks.sub_blocks["denoise"].sub_blocks.values()]
    known = {(param.name, param.default) for block in every for param in block.inputs if param.name in theirs}
    known = {(name, default) for name, default in known if name != "memory"}  # of blocks without references
    assert {name for name, _ in known} >= set(theirs) - {
        "self",
        "images",  # `reference_images`
        "guidance_scale",  # of the guider
        "memory",
        "return_dict",
        "callback_on_step_end",
        "callback_on_step_end_tensor_inputs",
        "share_groups",
    }
    for name, default in known:
        assert default == theirs[name].default, name
    assert not [param.name for param in blocks.inputs if param.required], "references may be left out likewise"


def test_what_blocks_read_and_write_has_one_type():
    """A state has one flat namespace, whose names and types `KaleidoState` lists."""
    types, declared = get_type_hints(KaleidoState), set()
    for blocks in BLOCKS:
        inside = blocks().sub_blocks
        loop = [step for block in inside.values() for step in getattr(block, "sub_blocks", {}).values()]
        for block in [*inside.values(), *loop]:
            for param in [*block.inputs, *block.intermediate_outputs]:
                declared.add(param.name)
                hint = param.type_hint
                if inspect.isclass(hint) and hint.__module__ != "builtins" and types[param.name] is not Any:
                    assert hint in (types[param.name], *get_args(types[param.name])), (type(block), param.name)
    assert declared | {"geometry"} == set(types), "`geometry` is that of the loop"


def test_blocks_are_given_by_classes_and_named_once():
    for blocks in BLOCKS:
        assert all(inspect.isclass(block) for block in blocks.block_classes)
        assert len(set(blocks.block_names)) == len(blocks.block_names) == len(blocks.block_classes)
        assert blocks().model_name == "kaleido"


def test_blocks_know_neither_form_of_a_pipeline():
    """They import nothing of `diffusers.pipelines` nor of the standard form, and call no private method of what they
    run in; the standard form imports of them how the index is written."""
    package = importlib.import_module("kaleido_diffusers.pipelines.modular").__path__[0]
    for name in ("encoders", "before_denoise", "denoise", "decoders", "modular_blocks_kaleido"):
        tree = ast.parse((Path(package) / f"{name}.py").read_text())
        imported = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert not [module for module in imported if module.startswith("diffusers.pipelines")], name
        assert not [module for module in imported if "pipeline_kaleido" in module], name
        called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        private = {call.attr for call in called if isinstance(call, ast.Attribute) and call.attr.startswith("_")}
        assert private <= {"_predict", "_reset_stateful_cache"}, name  # its own, and that of diffusers' models
    standard = ast.parse((Path(package).parent / "pipeline_kaleido.py").read_text())
    imported = [node for node in ast.walk(standard) if isinstance(node, ast.ImportFrom)]
    of_blocks = [alias.name for node in imported if "modular" in str(node.module) for alias in node.names]
    assert of_blocks == ["write_modular_index"]


def test_a_pipeline_without_a_folder():
    pipe = make_pipeline("velocity")
    assert type(KaleidoModularPipeline().blocks) is KaleidoBlocks
    twin = KaleidoModularPipeline.of(pipe.components, pipe.config.prediction_type)
    assert twin.transformer is pipe.transformer and twin.vae is None and twin.config.prediction_type == "velocity"
    twin.set_progress_bar_config(disable=True)
    images, cameras = make_inputs()
    assert torch.equal(generate_modular(twin, images, cameras), generate(pipe, images, cameras))


class EveryOther(ModularPipelineBlocks):
    """Every other photo of a capture."""

    model_name = "kaleido"
    inputs = [InputParam("photos", required=True)]
    intermediate_outputs = [OutputParam("reference_images")]

    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        block_state.reference_images = block_state.photos[::2]
        self.set_block_state(state, block_state)
        return components, state


class Watch(ModularPipelineBlocks):
    """A block within the loop over groups: it sees what a group came to, and may change it."""

    model_name = "kaleido"
    intermediate_outputs = []

    @property
    def inputs(self) -> list[InputParam]:
        return [InputParam("seen", required=True)]

    def __call__(self, components, block_state, number, **_):
        block_state.seen.append((number, tuple(block_state.latents.shape), block_state.geometry.poses.shape[1]))
        block_state.latents = block_state.latents.clamp(-0.5, 0.5)
        return components, block_state


def test_blocks_are_inserted_before_and_within_the_loop(pipe):
    images, cameras = make_inputs()
    blocks, seen = KaleidoBlocks(), []
    blocks.sub_blocks.insert("pick", EveryOther(), 0)
    blocks.sub_blocks["denoise"].sub_blocks.insert("watch", Watch(), 2)
    assert "reference_images" not in blocks.input_names, "another block makes them"
    assert {param.name for param in blocks.inputs if param.required} == {"photos", "seen"}
    twin = modular(pipe, blocks)
    known = {"photos": [images[0], images[2], images[1]], "seen": seen, "output_type": "latent"}
    two = cameras[[0, 1, 3, 4, 5]]
    generator = torch.Generator().manual_seed(0)
    latents = twin(poses=two, views_per_group=2, num_inference_steps=3, generator=generator, output="images", **known)
    expected = generate(pipe, images[:2], two, output_type="latent")
    assert seen == [(0, (1, 2, 3, 8, 8), 2), (1, (1, 1, 3, 8, 8), 1)]
    assert torch.equal(latents[:2], expected[:2].clamp(-0.5, 0.5)), "the first group of the second call"
    assert latents.abs().amax() == 0.5
    assert not torch.equal(latents[2], expected[2].clamp(-0.5, 0.5)), "what it remembers is clamped"


def test_blocks_are_copied_and_keep_nothing_of_a_run(pipe):
    """`init_pipeline` and `.blocks` copy them: what a block kept would be lost, or be of another run."""
    blocks = KaleidoBlocks()
    twin = modular(pipe, blocks)
    blocks.sub_blocks.pop("decode")
    twin.blocks.sub_blocks.pop("decode")
    assert "decode" in twin.blocks.sub_blocks, "that of the pipeline is its own"
    inside = twin._blocks.sub_blocks
    every = [*inside.values(), *inside["denoise"].sub_blocks.values()]
    before = [dict(vars(block)) for block in every]
    components = dict(twin.components)
    images, cameras = make_inputs()
    generate_modular(twin, images, cameras)
    assert [dict(vars(block)) for block in every] == before
    assert all(twin.components[name] is part for name, part in components.items()), "no component was replaced"


def test_progress_is_shown_for_all_groups_or_not_at_all(pipe, capsys):
    """Only blocks at the top know whether it is to be shown, so the loop over groups is one of these."""
    images, cameras = make_inputs()
    twin = modular(pipe)
    generate_modular(twin, images, cameras)
    assert not capsys.readouterr().err
    twin.set_progress_bar_config(disable=False)
    generate_modular(twin, images, cameras)
    assert "9/9" in capsys.readouterr().err, "three groups of three steps"


def test_what_is_missing_is_named(pipe):
    images, cameras = make_inputs()
    with pytest.raises(ValueError, match="Required input 'memory' is missing"):
        generate_modular(modular(pipe, KaleidoMemoryBlocks()), None, None, cameras[3:])


# Folders


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder of the standard form, with the indexes of both."""
    folder = tmp_path_factory.mktemp("framework") / "saved"
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def old(saved) -> Path:
    """The same without the index of the modular form."""
    return Path(shutil.copytree(saved, saved.with_name("old"), ignore=lambda *_: ["modular_model_index.json"]))


def test_an_absent_autoencoder_is_no_error_in_the_log(saved, old, caplog):
    """`load_components` logs what fails, and goes on: in `model_index.json` an absent part has no type."""
    loaded = ModularPipeline.from_pretrained(str(saved))
    with logged(caplog) as messages:
        loaded.load_components()
    assert loaded.vae is None and not [text for text in messages if "Traceback" in text]
    loaded = KaleidoBlocks().init_pipeline(str(old))
    with logged(caplog) as messages:
        loaded.load_components()
    assert loaded.transformer is not None and [text for text in messages if "Traceback" in text]


def test_a_folder_with_the_index_of_the_standard_form_alone(old):
    with pytest.raises(ValueError, match="No pipeline blocks could be resolved"):
        ModularPipeline.from_pretrained(str(old))
    loaded = KaleidoModularPipeline(pretrained_model_name_or_path=str(old))
    loaded.load_components(["transformer", "scheduler"])
    assert type(loaded.blocks) is KaleidoBlocks and loaded.config.prediction_type == "sample"
    assert loaded.scheduler.config.prediction_type == "sample"


def test_the_template_asks_everyone_for_trust(saved, tmp_path):
    """Those who have imported the package too, so no folder gets it by `save_pretrained`; its components load."""
    folder = Path(shutil.copytree(saved, tmp_path / "repository"))
    for name in ("modular_config.json", "kaleido_blocks.py"):
        shutil.copy(TEMPLATE / name, folder)
    for loader in (ModularPipeline, KaleidoModularPipeline):
        with pytest.raises(ValueError, match="trust_remote_code"):
            loader.from_pretrained(str(folder))
    loaded = KaleidoBlocks().init_pipeline(str(folder))
    loaded.load_components()
    assert type(loaded) is KaleidoModularPipeline and loaded.transformer is not None


def test_a_folder_that_is_saved_anew_does_not_point_at_the_one_it_came_from(saved, tmp_path):
    """By `overwrite_modular_index`, which is said, for diffusers warns where it is not."""
    first = shutil.copytree(saved, tmp_path / "first")
    loaded = ModularPipeline.from_pretrained(str(first))
    loaded.load_components()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        loaded.save_pretrained(tmp_path / "second")
    shutil.rmtree(first)
    again = ModularPipeline.from_pretrained(str(tmp_path / "second"))
    again.load_components()
    for one, other in zip(loaded.transformer.parameters(), again.transformer.parameters(), strict=True):
        assert torch.equal(one, other)
    index = json.loads((tmp_path / "second" / "modular_model_index.json").read_text())
    assert all(index[name][2]["pretrained_model_name_or_path"] is None for name in ("transformer", "scheduler"))


# Guiders


class Noting(KaleidoGuidance):
    """Guidance that notes where it is told that the sampling is."""

    def set_state(self, step: int, num_inference_steps: int, timestep: torch.Tensor) -> None:
        self.__dict__.setdefault("told", []).append((step, num_inference_steps, float(timestep)))
        super().set_state(step, num_inference_steps, timestep)


def test_guiders_begin_anew_with_each_group(pipe):
    """Their ranges and momentum go by the number of the step."""
    images, cameras = make_inputs()
    twin = modular(pipe)
    twin.update_components(guider=Noting(2.0))
    generate_modular(twin, images, cameras, sigmas=[1.0, 0.5])
    assert twin.guider.told == 3 * [(0, 2, 1000.0), (1, 2, 500.0)]


@pytest.mark.parametrize("steps, start", [(4, 0.5), (3, 0.4)])
def test_guidance_for_some_steps_is_that_of_each_group_alone(pipe, steps, start):
    images, cameras = make_inputs(num_targets=4)
    twin = modular(pipe)
    twin.update_components(guider=KaleidoGuidance(2.0, start=start))
    noise = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    options = {"joins_memory": "none", "steps": steps}
    together = generate_modular(twin, images, cameras[:3], cameras[3:], latents=noise, **options)
    for part in (slice(0, 2), slice(2, 4)):
        alone = generate_modular(twin, images, cameras[:3], cameras[3:][part], latents=noise[part], **options)
        torch.testing.assert_close(together[part], alone, **CLOSE)


def test_perturbed_attention_does_nothing_here(pipe):
    """diffusers leaves attention with other keys than queries as it is, such as ours with a memory."""
    images, cameras = make_inputs()
    twin = modular(make_pipeline("velocity"))
    options = {"guidance_scale": 2.0, "perturbed_guidance_start": 0.0, "perturbed_guidance_stop": 1.0}
    views = []
    for guider in (
        ClassifierFreeGuidance(guidance_scale=2.0),
        PerturbedAttentionGuidance(perturbed_guidance_layers=[1], **options),
    ):
        twin.update_components(guider=guider)
        views.append(generate_modular(twin, images, cameras))
    torch.testing.assert_close(*views, **CLOSE)


class Uncounted(SkipLayerGuidance):
    """Guidance with a third branch, without a layer, that is computed and counts for nothing."""

    def forward(self, pred_cond, pred_uncond=None, pred_cond_skip=None):
        if pred_cond_skip is not None:
            self.__dict__.setdefault("apart", []).append((pred_cond_skip - pred_cond).abs().max().item())
            pred_cond_skip = pred_cond
        return super().forward(pred_cond, pred_uncond, pred_cond_skip)


@pytest.mark.parametrize("cache", CACHES)
def test_step_caches_keep_a_third_branch_apart(cache):
    """No branch takes what a step cache has computed for another one: the two that count are as without the third."""
    pipe = make_pipeline()
    twin = modular(pipe)
    images, cameras = make_inputs()
    pipe.transformer.enable_cache(CACHES[cache][0](twin))
    views = []
    for guider in (
        ClassifierFreeGuidance(guidance_scale=2.0),
        Uncounted(guidance_scale=2.0, skip_layer_config=LayerSkipConfig([1]), **SKIPPING),
    ):
        twin.update_components(guider=guider)
        views.append(generate_modular(twin, images, cameras, steps=STEPS, output_type="latent"))
    assert torch.equal(*views)
    assert len(guider.apart) == 9 and min(guider.apart) > 1e-3, "all steps of three groups, but for the first"
