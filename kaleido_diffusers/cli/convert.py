"""`kaleido convert`: checkpoints of training and of other codes to diffusers' format, and back to a single file."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from huggingface_hub import StateDictSplit, split_torch_state_dict_into_shards

from ..bundled import resolve_checkpoint
from ..files import folder_written_whole, refuse_existing, write_json
from ..loaders.base_weights import base_architecture
from ..loaders.checkpoints import CONFIG_KEY, SCHEDULER_KEY, Checkpoint, read_checkpoint
from ..loaders.fitting import convert_weights, load_transformer
from ..loaders.names import read_renames
from ..loaders.writing import write_safetensors
from ..models.latents import load_autoencoder
from ..models.onnx_export import export_onnx
from ..models.transformer_kaleido import KaleidoTransformer3DModel
from ..pipelines.hub import write_code
from ..pipelines.pipeline_kaleido import KaleidoViewSynthesisPipeline
from ..schedulers.scheduling_rectified_flow_view import RectifiedFlowViewScheduler
from .checkpoint_info import is_checkpoint
from .checks import check_folder
from .loading import say_next
from .settings import ConvertSettings


__all__ = ["Convert"]

CARRIED = ("README.md", "LICENSE", "scores.json")  # of a pipeline folder, beside its components


class Convert(ConvertSettings):
    def run(self) -> None:
        source = resolve_checkpoint(self.source)
        self._check_output(Path(source))
        renames = None if self.rename is None else read_renames(self.rename)
        checkpoint = read_checkpoint(source, self.weights, renames)
        pipe = self._pipeline(checkpoint, f"{source}: {len(checkpoint.tensors)} tensors, {checkpoint.weights} weights")
        self.output.absolute().parent.mkdir(parents=True, exist_ok=True)
        if self.onnx:
            self._write_onnx(pipe, Path(source))
        elif self.output.suffix == ".safetensors":
            self._write_file(pipe)
        elif self.format == "distributed":
            self._write_distributed(pipe)
        else:
            self._write_folder(pipe, Path(source))
        if not self.onnx and (Path(source) / "vae").is_dir() and not (self.output / "vae").is_dir():
            print("  the VAE of the pipeline stays behind: what was written holds the transformer alone")
        print(f"wrote {self.output}")
        say_next("info", self.output)

    def _check_output(self, source: Path) -> None:
        check_folder(self.output.absolute().parent)
        self._shards({})
        if not self.overwrite:
            refuse_existing(self.output)
        elif source.resolve().is_relative_to(self.output.resolve()):
            raise ValueError(f"--output {self.output} holds what is to be converted: name another.")
        elif self.output.exists() and not self.output.is_file() and not _is_written_here(self.output):
            raise ValueError(
                f"--output {self.output} is no checkpoint, which alone --overwrite replaces: name another."
            )

    def _pipeline(self, checkpoint: Checkpoint, title: str) -> KaleidoViewSynthesisPipeline:
        """The pipeline of a checkpoint, without a VAE; says, below a title, what is known and what is assumed."""
        given: dict[str, Any] = {key: value for key, value in vars(self.config).items() if value is not None}
        prediction = {"prediction_type": given.pop("prediction_type")} if "prediction_type" in given else {}
        converted = convert_weights(KaleidoTransformer3DModel, checkpoint, given, self.channels_last_patches)
        transformer = load_transformer(KaleidoTransformer3DModel, converted)
        scheduler = RectifiedFlowViewScheduler.from_config(checkpoint.scheduler or {}, **prediction)
        shown = {**json.loads(base_architecture(transformer)), "prediction_type": scheduler.config.prediction_type}
        assumed = [*converted.assumed, *(() if checkpoint.scheduler or prediction else ["prediction_type"])]
        print(title)
        for key, value in shown.items():
            print(f"  {key:<20} {value}" + (" (assumed)" if key in assumed else ""))
        return KaleidoViewSynthesisPipeline(transformer, scheduler)

    def _write_onnx(self, pipe: KaleidoViewSynthesisPipeline, source: Path) -> None:
        transformer = pipe.transformer
        for name, parameter in transformer.named_parameters():
            parameter.data = parameter.data.to(self._dtype_of(name, "float32" if self.dtype == "keep" else self.dtype))
        vae = load_autoencoder(source).float() if (source / "vae").is_dir() else None
        print("  tracing, which takes minutes")
        with folder_written_whole(self.output, replaces=self.overwrite) as part:
            transformer.save_config(part)
            pipe.scheduler.save_config(part)
            for file in export_onnx(part, transformer, vae):
                print(f"  {file.name}")

    def _write_file(self, pipe: KaleidoViewSynthesisPipeline) -> None:
        tensors = pipe.transformer.state_dict()
        header = {
            CONFIG_KEY: base_architecture(pipe.transformer),
            SCHEDULER_KEY: json.dumps(dict(pipe.scheduler.config)),
        }
        write_safetensors(self.output, tensors, self._dtypes(tensors), {"format": "pt", **header})

    def _write_folder(self, pipe: KaleidoViewSynthesisPipeline, source: Path) -> None:
        with folder_written_whole(self.output, replaces=self.overwrite) as part:
            pipe.save_config(part)
            pipe.scheduler.save_pretrained(part / "scheduler")
            pipe.transformer.save_config(part / "transformer")
            self._write_shards(pipe.transformer.state_dict(), part / "transformer")
            write_code(part)
            _carry_over(source, part)

    def _write_distributed(self, pipe: KaleidoViewSynthesisPipeline) -> None:
        from torch.distributed.checkpoint.state_dict_saver import save

        tensors = pipe.transformer.state_dict()
        dtypes = self._dtypes(tensors)
        weights = {name: tensor.to(dtypes[name]) for name, tensor in tensors.items()}
        with folder_written_whole(self.output, replaces=self.overwrite) as part:
            pipe.scheduler.save_pretrained(part / "scheduler")
            pipe.transformer.save_config(part / "transformer")
            save({"model": weights}, checkpoint_id=part / "state", no_dist=True)

    def _write_shards(self, tensors: dict[str, torch.Tensor], folder: Path) -> None:
        """As `save_pretrained`, without holding a shard in memory."""
        dtypes = self._dtypes(tensors)
        sizes = {name: torch.empty(x.shape, dtype=dtypes[name], device="meta") for name, x in tensors.items()}
        shards = self._shards(sizes)
        for file, names in shards.filename_to_tensors.items():
            write_safetensors(folder / file, {name: tensors[name] for name in names}, dtypes, {"format": "pt"})
        if shards.is_sharded:
            index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
            write_json(folder / f"{SAFETENSORS_WEIGHTS_NAME}.index.json", index)

    def _shards(self, sizes: dict[str, torch.Tensor]) -> StateDictSplit:
        """Which tensors go into which file."""
        pattern = SAFETENSORS_WEIGHTS_NAME.replace(".", "{suffix}.")
        try:
            return split_torch_state_dict_into_shards(
                sizes, filename_pattern=pattern, max_shard_size=self.max_shard_size
            )
        except ValueError as error:
            raise ValueError(f"--max-shard-size is such as 10GB, got {self.max_shard_size!r} ({error})") from error

    def _dtypes(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.dtype]:
        """Precision of each tensor, by the rule of `from_pretrained`."""
        if self.dtype == "keep":
            return {name: tensor.dtype for name, tensor in tensors.items()}
        return {name: self._dtype_of(name, self.dtype) for name in tensors}

    @staticmethod
    def _dtype_of(name: str, dtype: str) -> torch.dtype:
        kept = set(KaleidoTransformer3DModel._keep_in_fp32_modules) & set(name.split("."))
        return torch.float32 if kept else getattr(torch, dtype)


def _is_written_here(folder: Path) -> bool:
    """Whether a folder holds what this verb writes."""
    return is_checkpoint(str(folder)) or (folder / "transformer.onnx").is_file() or not any(folder.iterdir())


def _carry_over(source: Path, folder: Path) -> None:
    """What a pipeline folder holds beside the transformer: its VAE, its card, its licence, its scores."""
    if not (source / "model_index.json").is_file():
        return
    for name in CARRIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if (source / "vae").is_dir():
        shutil.copytree(source / "vae", folder / "vae")
        index, theirs = (json.loads((place / "model_index.json").read_text()) for place in (folder, source))
        write_json(folder / "model_index.json", {**index, "vae": theirs["vae"]})
