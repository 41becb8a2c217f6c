"""Being found by diffusers, each row in a fresh process."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from conftest import make_model, make_pipeline
from interpreters import run_alone
from safetensors.torch import save_file


PREAMBLE = """
import sys, torch
folder = sys.argv[1]
def run(pipe):
    pipe.set_progress_bar_config(disable=True)
    poses = torch.eye(4).repeat(3, 1, 1)
    poses[:, 0, 3] = torch.arange(3)
    images = [torch.linspace(0, 1, 192).reshape(3, 8, 8)] * 2
    return pipe(images, poses, fov=50.0, num_inference_steps=2, output_type="pt",
                generator=torch.Generator().manual_seed(0)).images
"""


def fresh(code: str, *arguments, env: dict | None = None) -> None:
    """Runs code in a new interpreter, offline."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", **(env or {})}
    run_alone(textwrap.dedent(PREAMBLE) + textwrap.dedent(code), *arguments, env=env)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    make_pipeline().save_pretrained(folder)
    return folder


def test_the_index_names_the_package(saved):
    index = json.loads((saved / "model_index.json").read_text())
    assert index["_class_name"] == "KaleidoViewSynthesisPipeline"
    assert index["transformer"] == ["kaleido_diffusers", "KaleidoTransformer3DModel"]
    assert index["scheduler"] == ["kaleido_diffusers", "RectifiedFlowViewScheduler"]
    assert index["vae"] == [None, None]
    assert index["prediction_type"] == "sample"


def test_a_saved_folder_loads_by_its_own_code(saved, tmp_path):
    """As pushed repositories do: with the package installed and not imported."""
    code = """
    from diffusers import DiffusionPipeline
    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    assert run(pipe).shape == (1, 3, 8, 8)
    """
    fresh(code, saved, env={"HF_HOME": str(tmp_path / "home")})


@pytest.mark.parametrize("loader", ["KaleidoViewSynthesisPipeline", "DiffusionPipeline"])
def test_pipelines_load(saved, loader, tmp_path):
    module = "kaleido_diffusers" if loader.startswith("Kaleido") else "diffusers"
    code = f"""
    import kaleido_diffusers
    from {module} import {loader}
    pipe = {loader}.from_pretrained(folder)
    assert type(pipe).__name__ == "KaleidoViewSynthesisPipeline"
    torch.save(run(pipe), sys.argv[2])
    """
    fresh(code, saved, tmp_path / "out.pt")
    expected = run_here(saved)
    torch.testing.assert_close(torch.load(tmp_path / "out.pt", weights_only=True), expected)


ALONE = """
import importlib.util, sys
from importlib.machinery import SourceFileLoader
import kaleido_diffusers
assert not {"torch", "diffusers", "numpy"} & set(sys.modules)
assert importlib.util.find_spec("diffusers").loader.get_filename().endswith("__init__.py")  # somebody only looks
import diffusers
from diffusers.loaders import single_file_model
assert "kaleido_diffusers.models.transformer_kaleido" not in sys.modules
assert "KaleidoTransformer3DModel" in single_file_model.SINGLE_FILE_LOADABLE_CLASSES
assert isinstance(single_file_model.__loader__, SourceFileLoader), "the loader is its own again"
assert type(diffusers.DiffusionPipeline.from_pretrained(sys.argv[1])) is diffusers.KaleidoViewSynthesisPipeline
assert not hasattr(diffusers, "KaleidoNothing") and diffusers.__version__
"""


def test_the_package_waits_for_nothing_and_diffusers_knows_it(saved):
    """Imported first, or after diffusers, or a module of it alone."""
    result = subprocess.run([sys.executable, "-c", ALONE, str(saved)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    for code in (
        "import diffusers, kaleido_diffusers, sys\n"
        "assert 'kaleido_diffusers.models.transformer_kaleido' not in sys.modules\n"
        "assert diffusers.KaleidoTransformer3DModel is kaleido_diffusers.KaleidoTransformer3DModel\n"
        "diffusers.DiffusionPipeline.from_pretrained(sys.argv[1])",
        "import sys, kaleido_diffusers.pipelines.pipeline_kaleido as ours, diffusers\n"
        "assert type(diffusers.DiffusionPipeline.from_pretrained(sys.argv[1])) is ours.KaleidoViewSynthesisPipeline",
    ):
        run_alone(code, saved)


def run_here(folder: Path) -> torch.Tensor:
    from kaleido_diffusers import KaleidoViewSynthesisPipeline

    namespace = {}
    exec(PREAMBLE.replace("folder = sys.argv[1]", ""), namespace)
    return namespace["run"](KaleidoViewSynthesisPipeline.from_pretrained(folder))


def test_from_the_hub_cache_offline(saved, tmp_path):
    """A repo in the Hub's cache layout, loaded by its id with the network off."""
    commit = "0" * 40
    repo = tmp_path / "hub" / "models--someone--scene"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "snapshots").mkdir()
    os.symlink(saved, repo / "snapshots" / commit)
    code = """
    import kaleido_diffusers
    from diffusers import AutoModel, DiffusionPipeline
    pipe = DiffusionPipeline.from_pretrained("someone/scene")
    assert run(pipe).shape == (1, 3, 8, 8)
    assert type(AutoModel.from_pretrained("someone/scene", subfolder="transformer")) is type(pipe.transformer)
    """
    fresh(code, saved, env={"HF_HUB_CACHE": str(tmp_path / "hub")})


def test_auto_model_and_single_files(saved, tmp_path):
    model = make_model()
    single = tmp_path / "kaleido.safetensors"
    save_file(model.state_dict(), single)
    code = """
    import kaleido_diffusers
    from diffusers import AutoModel
    from kaleido_diffusers import KaleidoTransformer3DModel
    first = AutoModel.from_pretrained(folder, subfolder="transformer")
    second = AutoModel.from_pretrained(folder + "/transformer")
    third = KaleidoTransformer3DModel.from_single_file(sys.argv[2], config=folder, subfolder="transformer")
    for model in (first, second, third):
        assert type(model) is KaleidoTransformer3DModel
        for a, b in zip(model.state_dict().values(), first.state_dict().values()):
            assert torch.equal(a, b)
    """
    fresh(code, saved, single)


def test_remote_code_needs_no_import_by_the_user(saved, tmp_path):
    """A Hub repo whose `pipeline.py` names our class loads with `trust_remote_code` alone."""
    import shutil

    repo = shutil.copytree(saved, tmp_path / "repo")
    (repo / "pipeline.py").write_text(
        "import kaleido_diffusers as _kaleido\n\n\n"
        "class KaleidoViewSynthesisPipeline(_kaleido.KaleidoViewSynthesisPipeline):\n    pass\n"
    )
    index = json.loads((repo / "model_index.json").read_text())
    index["_class_name"] = ["pipeline", "KaleidoViewSynthesisPipeline"]
    (repo / "model_index.json").write_text(json.dumps(index))
    code = """
    from diffusers import DiffusionPipeline
    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    assert run(pipe).shape == (1, 3, 8, 8)
    """
    fresh(code, repo, env={"HF_HOME": str(tmp_path / "home")})


def test_half_precision_variants_and_shards(tmp_path):
    pipe = make_pipeline()
    half, sharded = tmp_path / "half", tmp_path / "sharded"
    pipe.save_pretrained(sharded, max_shard_size="100KB")
    names = sorted(path.name for path in (sharded / "transformer").iterdir())
    assert any("-of-" in name for name in names) and "diffusion_pytorch_model.safetensors.index.json" in names
    pipe.to(torch.float16)
    pipe.save_pretrained(half, variant="fp16")
    assert (half / "transformer" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    code = """
    from kaleido_diffusers import KaleidoViewSynthesisPipeline
    full = run(KaleidoViewSynthesisPipeline.from_pretrained(sys.argv[2]))
    pipe = KaleidoViewSynthesisPipeline.from_pretrained(folder, variant="fp16", dtype=torch.float16)
    assert pipe.transformer.dtype == torch.float16
    assert (run(pipe) - full).abs().mean() < 0.02
    pipe = KaleidoViewSynthesisPipeline.from_pretrained(folder, variant="fp16")
    assert pipe.transformer.dtype == torch.float32
    assert (run(pipe) - full).abs().mean() < 0.02
    """
    fresh(code, half, sharded)


def test_registering_again_changes_nothing():
    import diffusers
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
    from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

    import kaleido_diffusers
    from kaleido_diffusers._registration import register

    before = (dict(LOADABLE_CLASSES), dict(SINGLE_FILE_LOADABLE_CLASSES))
    register()
    assert before == (dict(LOADABLE_CLASSES), dict(SINGLE_FILE_LOADABLE_CLASSES))
    for name in ("KaleidoViewSynthesisPipeline", "KaleidoTransformer3DModel", "RectifiedFlowViewScheduler"):
        assert getattr(diffusers, name) is getattr(kaleido_diffusers, name)
