"""diffusers' own testers on our model, scheduler and pipeline. They lie in the `tests/` of its repository and not in
the wheel: `DIFFUSERS_SOURCE` names a checkout, of about the version that is installed. Skipped without it."""

import atexit
import importlib
import importlib.util
import json
import os
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import TINY, Views, make_model, random_poses, randomize
from diffusers import ModularPipeline

from kaleido_diffusers import (
    KaleidoBlocks,
    KaleidoModularPipeline,
    KaleidoTransformer3DModel,
    KaleidoViewSynthesisPipeline,
    RectifiedFlowViewScheduler,
)


SOURCE = os.environ.get("DIFFUSERS_SOURCE")
if not SOURCE:
    pytest.skip("DIFFUSERS_SOURCE names no checkout of diffusers", allow_module_level=True)


def _of_diffusers(module: str):
    """A module of diffusers' tests, under another name for their package: ours is called `tests` as well."""
    name, folder = "diffusers_tests", Path(SOURCE) / "tests"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return importlib.import_module(f"{name}.{module}")


models, schedulers = _of_diffusers("models.testing_utils"), _of_diffusers("schedulers.test_schedulers")
pipelines, modular = _of_diffusers("pipelines.testing_utils"), _of_diffusers("modular_pipelines.testing_utils")


@cache
def _saved_folder() -> str:
    """A folder that the standard form has saved, for as long as the tests run."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    KaleidoViewSynthesisPipeline(make_model(), RectifiedFlowViewScheduler()).save_pretrained(folder.name)
    return folder.name


class Model(models.BaseModelTesterConfig):
    model_class = KaleidoTransformer3DModel
    output_shape = (1, 3, 8, 8)
    main_input_name = "hidden_states"
    uses_custom_attn_processor = True
    model_split_percents = [0.7, 0.6, 0.6]

    def get_init_dict(self) -> dict:
        return dict(TINY)

    def get_dummy_inputs(self, *_, **__) -> dict[str, torch.Tensor | int]:
        views = {name: x.float() for name, x in Views(3, batch=1).clean(2).kwargs().items()}
        return {**views, "num_targets": 1}


class TestModel(Model, models.ModelTesterMixin):
    pass


class TestTraining(Model, models.TrainingTesterMixin):
    pass


class TestMemory(Model, models.MemoryTesterMixin):
    pass


class TestAttention(Model, models.AttentionTesterMixin):
    pass


class Filled(KaleidoTransformer3DModel):
    """With weights everywhere: step caches and adapters change nothing where the last layer is zero, as at first."""

    def __init__(self, **config):
        super().__init__(**config)
        randomize(self)


class FilledModel(Model):
    model_class = Filled


class TestLora(FilledModel, models.LoraTesterMixin):
    def test_logs_info_when_no_lora_keys_found(self):
        """An error with us: an adapter that fits nothing is not what was asked for."""
        with pytest.raises(ValueError):
            self.model_class(**self.get_init_dict()).load_lora_adapter(
                {"lora_foo": torch.ones(1)}, prefix="transformer"
            )


class TestFirstBlockCache(FilledModel, models.FirstBlockCacheTesterMixin):
    pass


class TestMagCache(FilledModel, models.MagCacheTesterMixin):
    pass


class TestTaylorSeerCache(FilledModel, models.TaylorSeerCacheTesterMixin):
    pass


class TestPyramidAttentionBroadcast(FilledModel, models.PyramidAttentionBroadcastTesterMixin):
    pass


class TestScheduler(schedulers.SchedulerCommonTest):
    scheduler_classes = (RectifiedFlowViewScheduler,)
    forward_default_kwargs = (("num_inference_steps", 10),)

    def get_scheduler_config(self, **config) -> dict:
        return {"num_train_timesteps": 1000, "shift": 2.0, **config}

    @pytest.mark.skip("a flow has no betas")
    def test_trained_betas(self):
        pass


def _inputs(images: str, generator: torch.Generator) -> dict:
    """One reference, which the two forms call by other names, and one target."""
    noise = torch.Generator().manual_seed(0)
    return {
        images: [torch.rand(3, 8, 8, generator=noise)],
        "poses": random_poses(2, generator=noise),
        "fov": 60.0,
        "num_inference_steps": 2,
        "generator": generator,
        "output_type": "pt",
    }


class TestPipeline(pipelines.BasePipelineTesterConfig, pipelines.PipelineTesterMixin):
    pipeline_class = KaleidoViewSynthesisPipeline
    required_input_params_in_call_signature = frozenset(["images", "poses", "height", "width", "guidance_scale"])
    batch_input_params = frozenset(["images", "poses"])
    callback_cfg_params = frozenset()
    optional_input_params = frozenset(
        ["num_inference_steps", "num_samples", "generator", "latents", "output_type", "return_dict"]
    )
    output_shape = (3, 8, 8)

    def get_dummy_components(self) -> dict:
        return {"transformer": make_model(), "scheduler": RectifiedFlowViewScheduler(), "vae": None}

    def get_dummy_inputs(self) -> dict:
        return _inputs("images", self.get_generator(0))

    def test_inference_batch_single_identical(self):
        """As diffusers', which compares a scene of a batch with a view: views of a scene have a dimension here."""
        pipe, inputs = self.get_pipeline(), self.get_dummy_inputs()
        batch = {name: 3 * [inputs[name]] for name in self.batch_input_params}
        batch["generator"] = [self.get_generator(seed) for seed in range(3)]
        together, alone = (
            pipe(**{**inputs, **batch}).images,
            pipe(**inputs | {"generator": self.get_generator(0)}).images,
        )
        assert together.shape == (3, *alone.shape)
        torch.testing.assert_close(together[0], alone, rtol=0, atol=1e-4)
        assert not torch.allclose(together[1], alone, atol=1e-2), "other noise, another view"


class ModularPipelineConfig(modular.BaseModularPipelineTesterConfig):
    pipeline_class = KaleidoModularPipeline
    pipeline_blocks_class = KaleidoBlocks
    params = frozenset(["reference_images", "poses", "height", "width"])
    batch_params = frozenset(["reference_images", "poses"])
    optional_params = frozenset(["num_inference_steps", "num_samples", "output_type"])
    not_params = frozenset(["guidance_scale"])  # of the guider

    @property
    def pretrained_model_name_or_path(self) -> str:
        """A folder that the standard form has saved."""
        return _saved_folder()

    def get_dummy_inputs(self, seed: int = 0) -> dict:
        return _inputs("reference_images", self.get_generator(seed))


class TestModularPipeline(ModularPipelineConfig, modular.ModularPipelineTesterMixin):
    def test_inference_batch_single_identical(self):
        """As diffusers', see `TestPipeline`."""
        pipe, inputs = self.get_pipeline(), self.get_dummy_inputs()
        batch = {name: 2 * [inputs[name]] for name in self.batch_params}
        batch["generator"] = [self.get_generator(seed) for seed in range(2)]
        together = pipe(**{**inputs, **batch}, output="images")
        alone = pipe(**inputs | {"generator": self.get_generator(0)}, output="images")
        assert together.shape == (2, *alone.shape)
        torch.testing.assert_close(together[0], alone, rtol=0, atol=1e-4)


class TestModularGuider(ModularPipelineConfig, modular.ModularGuiderTesterMixin):
    pass


class TestModularLoading(ModularPipelineConfig, modular.ModularLoadingTesterMixin):
    def test_load_expected_components_from_save_pretrained(self, tmp_path):
        """As diffusers', which goes by the parts whose place the index names. Ours names none: the folder may be
        moved, and holds them all."""
        pipe, folder = self.get_pipeline(), tmp_path / "saved"
        pipe.save_pretrained(folder)
        loaded = ModularPipeline.from_pretrained(str(folder))
        loaded.load_components()
        ids = {name: getattr(part, "_diffusers_load_id", "null") for name, part in loaded.components.items()}
        from_files = {name for name, load_id in ids.items() if load_id != "null"}
        assert from_files == {path.name for path in folder.iterdir() if path.is_dir()}
        assert from_files == {"guider", "scheduler", "transformer"}

    def test_modular_index_consistency(self, tmp_path):
        """As diffusers', but for the place of the parts, see above."""
        pipe = self.get_pipeline()
        pipe.save_pretrained(tmp_path)
        index = json.loads((tmp_path / "modular_model_index.json").read_text())
        assert {"_blocks_class_name", "_class_name", "_diffusers_version"} <= set(index)
        for name in ("guider", "scheduler", "transformer"):
            spec = index[name][2]
            place = [spec[key] for key in ("pretrained_model_name_or_path", "revision", "subfolder")]
            assert place == [None, None, name]


class TestModularMemory(ModularPipelineConfig, modular.ModularMemoryTesterMixin):
    pass


del schedulers  # the tests of its module are diffusers' own
