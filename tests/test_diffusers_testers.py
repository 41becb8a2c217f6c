"""diffusers' own testers on our model, scheduler and pipeline. They lie in the `tests/` of its repository and not in
the wheel: `DIFFUSERS_SOURCE` names a checkout, of about the version that is installed. Skipped without it."""

import importlib
import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, Views, make_model, random_poses, randomize

from kaleido_diffusers import KaleidoTransformer3DModel, KaleidoViewSynthesisPipeline, RectifiedFlowViewScheduler


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
pipelines = _of_diffusers("pipelines.testing_utils")


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
        noise = torch.Generator().manual_seed(0)
        return {
            "images": [torch.rand(3, 8, 8, generator=noise)],
            "poses": random_poses(2, generator=noise),
            "fov": 60.0,
            "num_inference_steps": 2,
            "generator": self.get_generator(0),
            "output_type": "pt",
        }

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


del schedulers  # the tests of its module are diffusers' own
