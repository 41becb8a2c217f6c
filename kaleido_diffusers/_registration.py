"""Makes diffusers find our classes: in `model_index.json` under this package's name, from `DiffusionPipeline`,
`AutoModel` and `from_single_file`. Runs on import; running it again changes nothing.

Neither diffusers nor our classes are imported for it, which would take seconds: each module of diffusers is told once
it has been imported, and what it is told are names. (What the block caches ask of the model's blocks stands beside
those, in `models/transformer_kaleido.py`.)
"""

import importlib.abc
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType


__all__ = ["register"]

OURS = (
    "AutoencoderTAEF2",
    "KaleidoBlocks",
    "KaleidoEncodeBlocks",
    "KaleidoMemoryBlocks",
    "KaleidoModularPipeline",
    "KaleidoTransformer3DModel",
    "KaleidoViewSynthesisPipeline",
    "RectifiedFlowViewScheduler",
)

_PACKAGE = __name__.split(".")[0]
_SAVE_LOAD = ["save_pretrained", "from_pretrained"]


def register() -> None:
    """Registers with diffusers."""
    for name, tell in _TOLD.items():
        if name in sys.modules:
            tell(sys.modules[name])
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def _tell_diffusers(diffusers: ModuleType) -> None:
    """`DiffusionPipeline.from_pretrained`, `AutoModel` and `from_single_file` look for attributes of diffusers."""
    others = vars(diffusers).get("__getattr__")
    if getattr(others, "__module__", None) == __name__:
        return

    def lend(name: str):
        if name in OURS:
            return getattr(import_module(_PACKAGE), name)
        if others is not None:
            return others(name)
        raise AttributeError(f"module 'diffusers' has no attribute {name!r}")  # diffusers' own lazy names follow

    diffusers.__getattr__ = lend


def _tell_pipelines(utils: ModuleType) -> None:
    """`model_index.json` then records our package, not a module path, and loading looks for these bases in it."""
    utils.LOADABLE_CLASSES[_PACKAGE] = {"ModelMixin": _SAVE_LOAD, "SchedulerMixin": _SAVE_LOAD}
    utils.ALL_IMPORTABLE_CLASSES.update(utils.LOADABLE_CLASSES[_PACKAGE])


def _tell_single_files(loader: ModuleType) -> None:
    loader.SINGLE_FILE_LOADABLE_CLASSES["KaleidoTransformer3DModel"] = {
        "checkpoint_mapping_fn": _state_dict_as_it_is,
        "default_subfolder": "transformer",
    }


def _tell_modular(modular: ModuleType) -> None:
    """Blocks whose `model_name` is "kaleido" make a pipeline of our class."""
    modular.MODULAR_PIPELINE_MAPPING["kaleido"] = lambda config=None: "KaleidoModularPipeline"


def _state_dict_as_it_is(checkpoint: dict, **kwargs) -> dict:
    """`KaleidoSingleFileMixin` has converted it before diffusers asks."""
    return checkpoint


_TOLD: dict[str, Callable[[ModuleType], None]] = {
    "diffusers": _tell_diffusers,
    "diffusers.pipelines.pipeline_loading_utils": _tell_pipelines,
    "diffusers.loaders.single_file_model": _tell_single_files,
    "diffusers.modular_pipelines.modular_pipeline": _tell_modular,
}


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds the modules above as the other finders do, and sees when they have been imported."""

    def find_spec(self, fullname, path, target=None):
        if fullname not in _TOLD:
            return None
        others = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in others if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _TellingLoader(spec, spec.loader)
        return spec


class _TellingLoader(importlib.abc.Loader):
    """A loader that tells the module, and is then gone from it."""

    def __init__(self, spec: ModuleSpec, loader: importlib.abc.Loader):
        self._spec, self._loader = spec, loader

    def __getattr__(self, name: str):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        self._spec.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        name = self._spec.name
        _TOLD[name](sys.modules[name])  # diffusers puts a lazy module in its own place
