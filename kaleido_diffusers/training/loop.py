"""The one training loop: video and 3D, scratch and fine-tuning differ in their settings alone."""

import json
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import broadcast, broadcast_object_list, set_seed
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from diffusers.models.attention_dispatch import attention_backend
from diffusers.models.modeling_utils import ModelMixin
from diffusers.training_utils import EMAModel
from filelock import FileLock, Timeout
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from ..captures.images import save_image
from ..files import OR_OVERWRITE, DiskFullError, folder_updated_whole, folder_written_whole, same_command
from ..geometry.views import Views
from ..loaders.adapter_files import AdapterInfo, save_adapter
from ..loaders.alignment import align_weights
from ..models.latents import compression, encode_views, load_autoencoder
from ..models.precision import fast_dtype
from ..models.transformer_kaleido import KaleidoTransformer3DModel
from ..pipelines.pipeline_kaleido import KaleidoViewSynthesisPipeline
from .batches import StepBatches, TrainingStep, open_sources, validation_samples
from .building import make_scheduler, make_transformer, with_adapter
from .checkpoints import (
    ShardWriter,
    is_sharded,
    latest_checkpoint,
    load_shards,
    read_progress,
    remove_old,
    remove_run,
    set_damaged_aside,
    whole_states,
)
from .config import TrainConfig
from .hardware import card_at_hand
from .layout import Layout
from .meter import Meter, step_operations, step_tokens
from .objective import ViewPartition, denoise_targets
from .optimizer import make_optimizers, optimizer_states
from .perceptual import PerceptualLoss
from .validation import generate_scenes, judge_scenes


__all__ = ["Trainer"]

_PARTITIONS = 64  # of views into groups, for each of which compiled blocks are compiled


class Trainer:
    """
    Trains a model as its settings say, and resumes a run that was stopped or killed to the same numbers.

    Args:
        config (`TrainConfig`): the settings.
    """

    def __init__(self, config: TrainConfig):
        self.config = config
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # else processes without accelerators would not know each other
            log_with=None if config.tracker == "none" else config.tracker,
            project_dir=str(config.output),
        )
        # On CPUs accelerate falls back to whole copies without a word
        if self.accelerator.distributed_type == DistributedType.FSDP or _is_true(
            os.environ.get("ACCELERATE_USE_FSDP")
        ):
            raise ValueError(
                "Sharding is this trainer's own: pass --data-parallel-shard-degree and launch without FSDP."
            )
        self.is_main = self.accelerator.is_main_process
        config.output.mkdir(parents=True, exist_ok=True)
        if self.is_main and not config.overwrite:
            set_damaged_aside(config.output)
        self.accelerator.wait_for_everyone()
        self.checkpoint = None if config.overwrite else latest_checkpoint(config.output)
        self.dtype = self._precision()
        self.layout = Layout(self.accelerator, config, self.dtype)
        set_seed(config.seed)
        self.vae = self._make_autoencoder()
        self.perceptual = None
        if config.perceptual.weights is not None:
            self.perceptual = PerceptualLoss(config.perceptual, self.vae).to(self.accelerator.device)
        self._make_model()
        multiple = self.transformer.config.patch_size * compression(self.vae)
        if config.size % multiple:
            raise ValueError(f"`size` must be a multiple of {multiple} for this model, got {config.size}.")
        self._base_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.step, self.best_step, self.best_score, self.operations = 0, 0, -math.inf, 0
        self._started, self._minutes_before = time.monotonic(), 0.0
        self._writer = ShardWriter(config.output, self.is_main) if self.layout.is_sharded else None
        if self.checkpoint is not None:
            self._load(self.checkpoint)
        self._validation: list | None = None

    # ------------------------------------------------------------------------------------------------ the run

    def train(self) -> Path:
        """Runs to the last step, until the minutes are over, or until validation has stopped rising. Returns the
        folder of the averaged pipeline, or that of the adapter. Ctrl-C ends the step, saves and raises
        `KeyboardInterrupt`; a second one raises it at once. `ValueError` while another trainer works in the folder."""
        with self._folder_locked(), self._interrupts_noted():
            return self._train()

    def _train(self) -> Path:
        config, accelerator = self.config, self.accelerator
        self._started, saved, stops = time.monotonic(), self.step, self._is_exhausted()
        batches, losses = self._batches(), []
        self.check()
        if config.tracker != "none":
            accelerator.init_trackers("kaleido")
        bar = tqdm(total=config.steps, initial=self.step, disable=not self.is_main, dynamic_ncols=True)
        if config.overwrite and self.step == 0:  # now that nothing speaks against this run
            self._remove_earlier()
        meter = Meter(accelerator.num_processes, card_at_hand(self.dtype).peak)
        while self.step < config.steps and not stops:
            with meter.aside("waiting"):
                item = next(batches)
            logs, saves, validates = (
                (self.step + 1) % every == 0 or self.step + 1 == config.steps
                for every in (config.log_every, config.save_every, config.validate_every)
            )
            with self._activation_maxima(logs) as maxima:
                loss, norm = self._train_step(item)
            losses.append(loss)
            meter.count(*(count := self._counts(item)))
            self.operations += count[0]
            self.step += 1
            bar.update()
            stops = self._is_over() or self._is_interrupted(logs)
            if (logs or saves or stops) and not torch.stack([*losses, norm.detach()]).isfinite().all():
                raise FloatingPointError(f"Training diverged before step {self.step}; what was saved before is whole.")
            if logs:
                scores = {"loss": torch.stack(losses).mean().item(), "grad_norm": norm.item()}
                scores |= meter.scores() | {"rate": self._rate(self.step), "operations": self.operations}
                self._log(scores | {name: value.item() for name, value in maxima.items()})
                bar.set_postfix(loss=f"{scores['loss']:.4f}")
                losses.clear()
                meter.restart()
            with meter.aside("pauses"):
                if validates:
                    stops |= self._judge(self.validate())
                if saves:
                    self.save()
                    saved = self.step
        if saved < self.step:
            self.save()
        if self._writer is not None:
            self._writer.finish()
        bar.close()
        if self._is_stopped and self.step < config.steps:
            raise KeyboardInterrupt(
                f"Step {self.step} is saved; {same_command(self.config.overwrite)} goes on from there."
            )
        folder = self.result_folder
        if self.is_main or self.layout.is_sharded:
            self._write_result(folder)
        accelerator.wait_for_everyone()
        accelerator.end_training()
        return folder

    def has_made(self, name: str | None = None) -> bool:
        """Whether no step is left, and what was made of the last one is there already.

        Args:
            name (`str`, *optional*): a file of the result, such as one that is written after the others; its index,
                or the weights of an adapter, when not given.
        """
        file = self.result_folder / (name or (LORA_WEIGHT_NAME_SAFE if self.config.lora.rank else "model_index.json"))
        is_over = self.step >= self.config.steps or self._is_exhausted()
        if not is_over or self.checkpoint is None or not file.is_file():
            return False
        return file.stat().st_mtime >= self.checkpoint.stat().st_mtime

    @property
    def result_folder(self) -> Path:
        """Where the averaged pipeline, or the adapter, is written."""
        return self.config.output / ("adapter" if self.config.lora.rank else "pipeline")

    def check(self) -> None:
        """Raises before the first step what would end the run later: no room for its checkpoints, validation that
        cannot be. `ValueError`, `CaptureError` or `DiskFullError`. Done once, and not where no step is left."""
        config = self.config
        if self._validation is not None or self.step >= config.steps or self._is_exhausted():
            return
        if self.is_main:
            self._check_room()
        self._validation = validation_samples(config)
        if self._validation:
            self._generated(self._validation[:1], replace(config, validation_steps=1))
        elif config.patience is not None:
            raise ValueError("`patience` needs scores, but there is nothing to validate on: name it by `validation`.")

    def _remove_earlier(self) -> None:
        if self.is_main:
            remove_run(self.config.output)
        self.accelerator.wait_for_everyone()

    def _check_room(self) -> None:
        """Raises `DiskFullError` where the checkpoints that are to come, and the result, do not fit."""
        config, there = self.config, len([*self.config.output.glob("checkpoint-*[0-9]")])
        saves = -(-(config.steps - self.step) // config.save_every)
        weights = sum(tensor.numel() * tensor.element_size() for tensor in self.trained)
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        sizes = ((1 + ("betas" in group), tensor) for group in groups for tensor in group["params"])
        one = 2 * weights + sum(moments * tensor.numel() * tensor.element_size() for moments, tensor in sizes)
        count = max(0, min(config.keep + 1, there + saves) - there)
        needed = count * one + weights * (1 + (config.patience is not None))
        free = shutil.disk_usage(config.output).free
        if needed > free:
            raise DiskFullError(
                f"The disk of {config.output} is too full for this run: {count} checkpoints of {one / 1e6:.1f} MB"
                f" (`keep` and one more) and the result need {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free. Make"
                " room, or lower `keep`."
            )

    @contextmanager
    def _folder_locked(self) -> Iterator[None]:
        """Two trainers in one folder would take each other's checkpoints away."""
        if not self.is_main:
            yield
            return
        try:
            with FileLock(self.config.output / ".lock", timeout=0):
                for rest in self.config.output.glob(".*.part"):  # of a killed run: their room may be needed
                    shutil.rmtree(rest, ignore_errors=True)
                yield
        except Timeout as error:
            raise ValueError(
                f"Another trainer works in {self.config.output}: wait for it, or name another."
            ) from error

    @contextmanager
    def _interrupts_noted(self) -> Iterator[None]:
        self._interrupts, self._is_stopped = 0, False
        if threading.current_thread() is not threading.main_thread():  # where signals do not arrive
            yield
            return

        def note(_number, _frame):
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt(
                    f"What {self.config.output} holds is whole; {same_command(self.config.overwrite)} goes on."
                )
            print("\nCtrl-C: saving after this step; once more to stop at once.", file=sys.stderr)

        before = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _is_interrupted(self, asks: bool) -> bool:
        """Whether Ctrl-C was pressed. Several processes ask each other now and then: all stop at the same step."""
        alone = self.accelerator.num_processes == 1
        self._is_stopped = self._interrupts > 0 if alone else asks and self._agreed(self._interrupts > 0)
        return self._is_stopped

    def _train_step(self, item: TrainingStep) -> tuple[torch.Tensor, torch.Tensor]:
        config, accelerator = self.config, self.accelerator
        rate = self._rate(self.step)
        for optimizer, rates in zip(self.optimizers, self._base_rates):
            for group, base in zip(optimizer.param_groups, rates):
                group["lr"] = base * rate
        parts, loss = config.gradient_accumulation_steps, 0.0
        for part in range(parts):
            with self.layout.part_of_step(self.model, last=part + 1 == parts):
                share = self._share(item, slice(part, None, parts)) / parts
                accelerator.backward(share)
            loss += share.detach()
        norm = self.layout.clip(self.trained)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.ema.step(self.trained)
        return accelerator.reduce(loss, "mean"), norm

    def _share(self, item: TrainingStep, rows: slice) -> torch.Tensor:
        """The loss of some of the rows of this process."""
        device = self.accelerator.device
        batch = item.batch.rows(rows).to(device)
        with torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
            if not item.encoded:
                batch = replace(batch, pixels=encode_views(self.vae, batch.pixels).float())
            return self.loss(batch, item.partition, item.noise(self.config.seed)[rows])

    def loss(self, batch: Views, partition: ViewPartition, generators: Sequence[torch.Generator]) -> torch.Tensor:
        """What a step brings down: the error of the velocity, see [`Denoised`], and the perceptual loss
        where there is one. A recipe with another objective overrides it.

        Args:
            batch (`Views`): views of the rows of this process.
            partition (`ViewPartition`): references and target groups.
            generators (`Sequence[torch.Generator]`): source of the noise of each row.
        """
        lens = self.transformer.config.max_focal_length
        denoised = denoise_targets(self.model, self.scheduler, batch, partition, generators, lens)
        if self.perceptual is None:
            return denoised.loss
        return denoised.loss + self.config.perceptual.scale * self.perceptual(denoised, generators[0])

    @contextmanager
    def _activation_maxima(self, wanted: bool) -> Iterator[dict[str, torch.Tensor]]:
        """Largest |activation| behind each block in this process, for the log. Hooks would have compiled blocks
        compiled again, so those are left alone."""
        maxima = {}
        blocks = self.transformer.transformer_blocks if wanted and not self.config.compile else ()
        hooks = [
            block.register_forward_hook(
                lambda *call, name=f"activation_{number}": maxima.update({name: call[2].detach().abs().max()})
            )
            for number, block in enumerate(blocks)
        ]
        yield maxima
        for hook in hooks:
            hook.remove()

    def _is_over(self) -> bool:
        """Whether the minutes of this call are over."""
        if self.config.max_minutes is None:
            return False
        return self._agreed(time.monotonic() - self._started > 60 * self.config.max_minutes)

    def _agreed(self, flag: bool) -> bool:
        """What the main process says: all stop at the same step."""
        return bool(broadcast(torch.tensor(int(flag), device=self.accelerator.device)))

    @property
    def minutes(self) -> float:
        """That this run has taken, with the calls before this one."""
        return self._minutes_before + (time.monotonic() - self._started) / 60

    def _judge(self, scores: dict[str, float]) -> bool:
        """Keeps the best weights, where the settings say so; whether there have been no better ones for too long."""
        self._log(scores)
        if self.config.patience is None:
            return False
        score = scores.get("validation_psnr", -math.inf)
        if score > self.best_score:
            self.best_score, self.best_step = score, self.step
            pipe = self.pipeline() if self.is_main or self.layout.is_sharded else None
            if self.is_main and not (final := self.config.output / f"best-{self.step}").exists():
                with folder_written_whole(final) as part:
                    self._save_weights(pipe.transformer, part)
        return self._agreed(self._is_exhausted())

    def _is_exhausted(self) -> bool:
        patience = self.config.patience
        return patience is not None and self.step - self.best_step >= max(patience, 1) * self.config.validate_every

    def _rate(self, step: int) -> float:
        """Factor of the learning rate: linear rise, plateau, linear fall."""
        config = self.config
        rise = (step + 1) / max(config.warmup_steps, 1)
        fall = (config.steps - step) / max(config.cooldown * config.steps, 1)
        return max(0.0, min(1.0, rise, fall))

    def _batches(self) -> Iterator[TrainingStep]:
        config, accelerator = self.config, self.accelerator
        show = (lambda items: tqdm(items, desc="scenes")) if self.is_main else None
        sources, weights = open_sources(config, show)
        dataset = StepBatches(config, sources, weights, accelerator.process_index, accelerator.num_processes)
        loader = torch.utils.data.DataLoader(
            dataset,
            batch_size=None,
            sampler=range(self.step, config.steps),
            num_workers=config.workers,
            prefetch_factor=4 if config.workers else None,
            worker_init_fn=_single_thread,
        )
        return iter(loader)

    # ------------------------------------------------------------------------------------------------ the model

    def _make_model(self) -> None:
        """The model in its place, its optimizers and its average."""
        config, layout = self.config, self.layout
        self.scheduler = make_scheduler(config, self.checkpoint)
        whole = make_transformer(config, self.vae, self.checkpoint, layout.holds_whole)
        self.transformer = self._blank(whole.config, "meta") if layout.is_sharded else whole
        self.transformer.train()
        if config.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        if self.accelerator.device.type == "cpu":
            # The fused kernel's backward pass is slow there: plain products train 1.3 times as fast
            with attention_backend("native"):  # ends with the backend of the process as it was: others keep theirs
                self.transformer.set_attention_backend("_native_math")
        if config.compile:  # before it is sharded, which changes the classes by which blocks are found
            torch._dynamo.config.recompile_limit = max(_PARTITIONS, torch._dynamo.config.recompile_limit)
            self.transformer.compile_repeated_blocks(dynamic=False)
        self.model = layout.place(whole, self.transformer)
        named = {name: p for name, p in self.transformer.named_parameters() if p.requires_grad}
        self.trained, self._names = [*named.values()], {p: name for name, p in named.items()}
        rates = (config.matrix_lr, config.other_lr, config.weight_decay)
        self.optimizers = make_optimizers(
            self.transformer, *rates, config.optimizer, getattr(torch, config.muon_dtype)
        )
        if not layout.is_sharded:
            self.optimizers = [self.accelerator.prepare(optimizer) for optimizer in self.optimizers]
        self.ema = EMAModel(self.trained, decay=config.ema_decay, use_ema_warmup=True, power=3 / 4, foreach=True)
        self.ema.to(self.accelerator.device)

    def _blank(self, architecture: Mapping[str, Any], device: str = "cpu") -> KaleidoTransformer3DModel:
        """A model like the one that is trained, without its weights."""
        with torch.device(device):
            return with_adapter(self.config, KaleidoTransformer3DModel.from_config(architecture))

    def _make_autoencoder(self) -> ModelMixin | None:
        """The one that is named, or that of the pipeline that training starts from; none for pixels."""
        config = self.config
        if config.vae is not None:
            return load_autoencoder(config.vae).to(self.accelerator.device)
        if config.init_from is not None and (config.init_from / "vae").is_dir():
            return load_autoencoder(config.init_from).to(self.accelerator.device)
        return None

    def _counts(self, item: TrainingStep) -> tuple[int, int]:
        """Operations and tokens of a step, all processes together."""
        ratio = 1 if item.encoded else compression(self.vae)
        height, width = (side // ratio for side in item.batch.pixels.shape[-2:])
        seen = (self.transformer.config, item.partition, self.config.batch, height, width)
        return step_operations(*seen), step_tokens(*seen)

    def pipeline(self) -> KaleidoViewSynthesisPipeline | None:
        """The averaged weights as a pipeline; an adapter is attached. Of a sharded model every process calls it, and
        the main one gets it, in the system's memory; the others get `None`."""
        average = dict(zip(self._names.values(), self.ema.shadow_params))
        weights = self.layout.gather({**dict(self.transformer.named_parameters()), **average})
        if not self.layout.holds_whole:
            return None
        transformer = self._blank(self.transformer.config)
        transformer.load_state_dict(weights)
        if not self.layout.is_sharded:
            transformer.to(self.accelerator.device)
        pipe = KaleidoViewSynthesisPipeline(transformer.eval(), self.scheduler, self.vae)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def result(self) -> KaleidoViewSynthesisPipeline | None:
        """The pipeline to keep: the averaged weights, or those that did best in validation, where it decides. `None`
        as for [`~Trainer.pipeline`]."""
        pipe = self.pipeline()
        best = self.config.output / f"best-{self.best_step}"
        if pipe is not None and self.config.patience is not None and best.is_dir():
            self._load_weights(pipe.transformer, best)
        return pipe

    def adapter_info(self) -> AdapterInfo:
        """What the trained adapter belongs to, and how it came about."""
        config = self.config
        about = {"capture": Path(config.data[0].partition("=")[0]).resolve().name, "size": config.size}
        about["steps"] = self.step if config.patience is None else self.best_step
        base = config.init_from  # a Hub id stays whole; of a folder the name says enough
        return AdapterInfo.of(self.transformer, base_name=base.name if base.is_dir() else str(base), **about)

    def _write_result(self, folder: Path) -> None:
        result = self.result()
        if not self.is_main:
            return
        if self.config.lora.rank:
            with folder_updated_whole(folder) as part:
                save_adapter(part, result.transformer, self.adapter_info())
        else:
            with folder_written_whole(folder, replaces=True) as part:
                result.save_pretrained(part)

    # ------------------------------------------------------------------------------------------------ checkpoints

    def save(self) -> None:
        """Writes `checkpoint-N`: it is complete, or it is not there. That of a sharded model is written while training
        goes on."""
        if self._writer is not None:
            self._writer.save(self.step, self._tensors(), self._progress(), self._describe)
        self.accelerator.wait_for_everyone()
        if self.is_main:
            output = self.config.output
            if self._writer is None and not (output / f"checkpoint-{self.step}").exists():
                self._save_whole(output / f"checkpoint-{self.step}")
            remove_old(output, self.config.keep, best=f"best-{self.best_step}")
        self.accelerator.wait_for_everyone()

    def _save_whole(self, folder: Path) -> None:
        state = {**self._progress(), "optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}
        with folder_written_whole(folder, needs=self._size(state)) as part:
            self._save_weights(self.transformer, part / "transformer")
            self._save_weights(self.pipeline().transformer, part / "transformer_ema")
            self.scheduler.save_pretrained(part / "scheduler")
            (part / "state").mkdir()
            torch.save(state, part / "state" / "state.pt")

    def _describe(self, part: Path) -> None:
        """What a sharded checkpoint has beside its tensors, to be read as a model."""
        self.scheduler.save_pretrained(part / "scheduler")
        self._blank(self.transformer.config, "meta").save_config(part / "transformer")  # sharding renames the class

    def _precision(self) -> torch.dtype:
        """Of matrix products. What was measured where the run began holds for all processes, and after it is resumed
        on a device of that kind: another measurement might say otherwise, and the bits would differ."""
        device, name = self.accelerator.device.type, self.config.dtype
        if name == "auto":
            progress = {} if self.checkpoint is None else read_progress(self.checkpoint)
            measured_on, name = progress.get("precision", ("", ""))
            if measured_on != device:
                (name,) = broadcast_object_list([str(fast_dtype(device)).removeprefix("torch.")])
        return getattr(torch, name)

    def _progress(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "ema_step": self.ema.optimization_step,
            "best": (self.best_step, self.best_score),
            "minutes": self.minutes,
            "operations": self.operations,
            "config": _decisive(self.config),
            "precision": (self.accelerator.device.type, str(self.dtype).removeprefix("torch.")),
        }

    def _tensors(self) -> dict[str, Any]:
        """All that training changes, by name. What is written into these tensors counts."""
        names = self._names.values()
        return {
            "model": dict(zip(names, self.trained)),
            "ema": dict(zip(names, self.ema.shadow_params)),
            "optimizer": optimizer_states(self.optimizers, self._names),
        }

    def _size(self, state: dict) -> int:
        """Bytes of a checkpoint: weights twice, and what the optimizers keep."""
        tensors = [
            tensor for part in state["optimizers"] for entry in part["state"].values() for tensor in entry.values()
        ]
        tensors += 2 * self.trained
        return sum(tensor.nbytes for tensor in tensors if torch.is_tensor(tensor))

    def _save_weights(self, transformer: KaleidoTransformer3DModel, folder: Path) -> None:
        """What is trained: the whole model, or the adapter."""
        if not self.config.lora.rank:
            transformer.save_pretrained(folder)
            return
        folder.mkdir(parents=True)
        save_file(get_peft_model_state_dict(transformer), folder / "adapter.safetensors")

    def _load_weights(self, transformer: KaleidoTransformer3DModel, folder: Path) -> None:
        if self.config.lora.rank:
            set_peft_model_state_dict(transformer, load_file(folder / "adapter.safetensors"))
            align_weights(transformer)
        else:
            transformer.load_state_dict(KaleidoTransformer3DModel.from_pretrained(folder).state_dict())

    def _load(self, checkpoint: Path) -> None:
        """Goes on where a checkpoint is, which a run over other processes may have written."""
        state = read_progress(checkpoint)
        before = state["config"]  # of a run that began before a setting was known, its default
        changed = [key for key, value in _decisive(self.config).items() if before.get(key, value) != value]
        if changed:
            was = ", ".join(f"{key}={before[key]}" for key in changed)
            raise ValueError(
                f"{checkpoint} was trained with {was}. Go on with these settings, or start from it by --init-from"
                f" elsewhere. For another run: {OR_OVERWRITE}"
            )
        self.step, self._minutes_before = state["step"], state["minutes"]
        self.best_step, self.best_score = state["best"]
        self.operations = state.get("operations", 0)
        self.ema.optimization_step = state["ema_step"]
        if is_sharded(checkpoint):
            load_shards(checkpoint, self._tensors(), is_alone=not self.layout.is_sharded)
        else:
            self._load_whole(checkpoint, state["optimizers"])

    def _load_whole(self, checkpoint: Path, optimizers: list[dict]) -> None:
        """Weights, average and optimizers of a whole model, by whichever process wants whole tensors."""
        tensors = self._tensors()
        for part, name in (("model", "transformer"), ("ema", "transformer_ema")):
            found = {}
            if self.layout.holds_whole:
                source = self._blank(self.transformer.config)
                self._load_weights(source, checkpoint / name)
                found = dict(source.named_parameters())
            for key, tensor in tensors[part].items():
                self.layout.fill(tensor, found.get(key))
        for saved, state in zip(whole_states(optimizers, self.optimizers), tensors["optimizer"].values()):
            for key, tensor in state.items():
                if key in saved:  # no gradient has come yet to what has no state
                    self.layout.fill(tensor, saved[key])

    # ------------------------------------------------------------------------------------------------ scores

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Generates views of unseen scenes, from three references where there are as many; writes a picture. All
        processes call it and take their share."""
        config = self.config
        if self._validation is None:
            self._validation = validation_samples(config)
        if not self._validation:
            return {}
        score, sheet = judge_scenes(self._generated(self._validation, config))
        if self.is_main:
            save_image(sheet, config.output / f"validation-{self.step:07d}.png")
        return {"validation_psnr": score}

    @torch.no_grad()
    def _generated(self, samples: list, config: TrainConfig) -> list:
        """What the averaged weights make of validation scenes, see [`generate_scenes`]."""
        device = self.accelerator.device
        processes = (self.accelerator.process_index, self.accelerator.num_processes)
        half = torch.autocast(device.type, self.dtype, enabled=self.layout.is_sharded and self.dtype != torch.float32)
        eager = torch.compiler.set_stance("force_eager")  # sampling has shapes of its own
        self.transformer.eval()
        with self.layout.averaged(self.model, self.trained, self.ema.shadow_params), half, eager:
            pipe = KaleidoViewSynthesisPipeline(self.transformer, self.scheduler, self.vae)
            pipe.set_progress_bar_config(disable=True)
            scenes = generate_scenes(pipe, samples, config, *processes)
        self.transformer.train()
        return scenes

    def _log(self, scores: dict[str, float]) -> None:
        if not self.is_main or not scores:
            return
        line = {
            "step": self.step,
            "minutes": round(self.minutes, 3),
            **{key: round(value, 6) for key, value in scores.items()},
        }
        with open(self.config.output / "log.jsonl", "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        if self.config.tracker != "none":
            self.accelerator.log(scores, step=self.step)


def _decisive(config: TrainConfig) -> dict[str, str]:
    """The settings that decide what the steps do, which a resumed run must share."""
    free = ("output", "max_minutes", "steps", "save_every", "keep", "log_every", "validate_every", "validation")
    free += ("validation_scenes", "validation_steps", "workers", "tracker", "compile", "in_memory", "init_from")
    free += ("dtype", "threads", "data", "cooldown", "scenes", "gradient_checkpointing", "gradient_accumulation_steps")
    free += ("data_parallel_replicate_degree", "data_parallel_shard_degree", "reshard_after_forward")
    free += ("cache", "cache_gigabytes", "skip_broken", "overwrite")
    free += ("plan", "card", "cards", "mfu")  # of the command
    return {key: str(value) for key, value in vars(config).items() if key not in free}


def _is_true(word: str | None) -> bool:
    return word is not None and word.lower() in ("1", "true", "yes")


def _single_thread(_worker: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's, which still wants a batch or two
