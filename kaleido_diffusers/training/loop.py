"""The one training loop: video and 3D, scratch and fine-tuning differ in their settings alone."""

import json
import math
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import broadcast, set_seed
from diffusers.models.modeling_utils import ModelMixin
from diffusers.training_utils import EMAModel
from filelock import FileLock, Timeout
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from ..captures.images import save_image
from ..evaluation.metrics import psnr
from ..evaluation.report import contact_sheet
from ..files import folder_written_whole
from ..geometry.views import Views
from ..loaders.adapter_files import AdapterInfo, save_adapter
from ..loaders.alignment import align_weights
from ..loaders.lora_settings import make_lora_config
from ..models.latents import compression, decode_views, encode_views, latent_channels, load_autoencoder
from ..models.operations import forward_operations
from ..models.precision import fast_dtype
from ..models.transformer_kaleido import KaleidoTransformer3DModel
from ..pipelines.pipeline_kaleido import KaleidoViewSynthesisPipeline
from ..schedulers.scheduling_rectified_flow_view import RectifiedFlowViewScheduler
from .batches import StepBatches, TrainingStep, open_sources, validation_samples
from .config import TrainConfig
from .objective import ViewPartition, rectified_flow_loss
from .optimizer import make_optimizers


__all__ = ["Trainer", "latest_checkpoint", "set_damaged_aside"]

_PARTITIONS = 64  # of views into groups, for each of which compiled blocks are compiled


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest `checkpoint-N` of a run, which is complete.

    Args:
        folder (`Path`): of the run.
    """
    numbers = _checkpoints(folder)
    return folder / f"checkpoint-{numbers[-1]}" if numbers else None


def set_damaged_aside(folder: Path) -> None:
    """Renames the newest checkpoints of the run in `folder` that cannot be read to `checkpoint-N.damaged`, with a
    warning, down to the first that can."""
    while (newest := latest_checkpoint(folder)) is not None:
        try:
            torch.load(newest / "state" / "state.pt", map_location="cpu", weights_only=True, mmap=True)
            for name in ("transformer", "transformer_ema"):
                files = sorted((newest / name).glob("*.safetensors"))
                if not files:
                    raise FileNotFoundError(f"{name} holds no weights")
                for file in files:
                    safe_open(file, "pt").__enter__()
            return
        except Exception as error:  # whatever a damaged file makes its reader raise
            aside, number = newest.with_name(f"{newest.name}.damaged"), 1
            while aside.exists():
                aside, number = newest.with_name(f"{newest.name}.damaged-{number}"), number + 1
            os.rename(newest, aside)
            before = latest_checkpoint(folder)
            goes_on = f"training goes on from {before.name}" if before else "training starts anew"
            reason = (str(error).splitlines() or [""])[0]
            warnings.warn(f"{newest} is damaged ({reason}) and now called {aside.name}: {goes_on}.", stacklevel=3)


def _checkpoints(folder: Path) -> list[int]:
    """Steps of the complete checkpoints of a run."""
    names = [path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")]
    return sorted(int(name) for name in names if name.isdigit())


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
        self.dtype = _dtype(config.dtype)
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # else processes without accelerators would not know each other
            log_with=None if config.tracker == "none" else config.tracker,
            project_dir=str(config.output),
        )
        if self.accelerator.distributed_type == DistributedType.FSDP:
            raise ValueError(
                "Sharded training (FSDP) is not supported yet: averages and checkpoints need whole weights."
            )
        self.is_main = self.accelerator.is_main_process
        config.output.mkdir(parents=True, exist_ok=True)
        if self.is_main:
            set_damaged_aside(config.output)
        self.accelerator.wait_for_everyone()
        self.checkpoint = latest_checkpoint(config.output)
        set_seed(config.seed)
        self.vae = self._make_autoencoder()
        self.transformer, self.scheduler = self._make_model()
        self.ema = self._make_ema()
        optimizers = make_optimizers(
            self.transformer, config.matrix_lr, config.other_lr, config.weight_decay, config.optimizer
        )
        self.model, *self.optimizers = self.accelerator.prepare(self.transformer, *optimizers)
        if self.accelerator.device.type == "cpu":
            # The fused kernel's backward pass is slow there: plain products train 1.3 times as fast
            self.transformer.set_attention_backend("_native_math")
        if config.compile:
            torch._dynamo.config.recompile_limit = max(_PARTITIONS, torch._dynamo.config.recompile_limit)
            self.transformer.compile_repeated_blocks(dynamic=False)
        self._base_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.step, self.best_step, self.best_score, self.operations = 0, 0, -math.inf, 0
        self._started, self._minutes_before = time.monotonic(), 0.0
        if self.checkpoint is not None:
            self._load_state(self.checkpoint)
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
        if config.tracker != "none":
            accelerator.init_trackers("kaleido")
        bar = tqdm(total=config.steps, initial=self.step, disable=not self.is_main, dynamic_ncols=True)
        batches, watch, losses, counted = self._batches(), _Stopwatch(), [], self.operations
        watch.restart()
        while self.step < config.steps and not stops:
            with watch.aside("waiting"):
                item = next(batches)
            logs, saves, validates = (
                (self.step + 1) % every == 0 or self.step + 1 == config.steps
                for every in (config.log_every, config.save_every, config.validate_every)
            )
            with self._activation_maxima(logs) as maxima:
                loss, norm = self._train_step(item)
            losses.append(loss)
            self.step += 1
            bar.update()
            stops = self._is_over() or self._is_interrupted(logs)
            if (logs or saves or stops) and not torch.stack([*losses, norm.detach()]).isfinite().all():
                raise FloatingPointError(f"Training diverged before step {self.step}; what was saved before is whole.")
            if logs:
                scores = {"loss": torch.stack(losses).mean().item(), "grad_norm": norm.item()}
                scores |= {**watch.per_step(len(losses)), "rate": self._rate(self.step)}
                scores |= {"operations": self.operations}
                scores["tflops"] = (self.operations - counted) / len(losses) / scores["seconds"] / 1e12
                counted = self.operations
                self._log(scores | {name: value.item() for name, value in maxima.items()})
                bar.set_postfix(loss=f"{scores['loss']:.4f}")
                losses.clear()
                watch.restart()
            with watch.aside("pauses"):
                if validates:
                    stops |= self._judge(self.validate())
                if saves:
                    self.save()
                    saved = self.step
        if saved < self.step:
            self.save()
        bar.close()
        if self._is_stopped and self.step < config.steps:
            raise KeyboardInterrupt(f"Step {self.step} is saved; the same command goes on from there.")
        folder = config.output / ("adapter" if config.lora.rank else "pipeline")
        if self.is_main:
            self._write_result(folder)
        accelerator.wait_for_everyone()
        accelerator.end_training()
        return folder

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
                raise KeyboardInterrupt(f"What {self.config.output} holds is whole; the same command goes on.")
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
        batch = item.batch.to(accelerator.device)
        with torch.autocast(accelerator.device.type, self.dtype, enabled=self.dtype != torch.float32):
            if not item.encoded:
                batch = replace(batch, pixels=encode_views(self.vae, batch.pixels).float())
            loss = self.loss(batch, item.partition, item.noise(config.seed))
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(_trained(self.model), config.max_grad_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.ema.step(_trained(self.model))
        self.operations += self._operations(item.partition, *batch.pixels.shape[-2:])
        return accelerator.reduce(loss.detach(), "mean"), norm

    def loss(self, batch: Views, partition: ViewPartition, generators: Sequence[torch.Generator]) -> torch.Tensor:
        """What a step brings down, see [`rectified_flow_loss`]; a recipe with another objective overrides it.

        Args:
            batch (`Views`): views of the rows of this process.
            partition (`ViewPartition`): references and target groups.
            generators (`Sequence[torch.Generator]`): source of the noise of each row.
        """
        return rectified_flow_loss(self.model, self.scheduler, batch, partition, generators)

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
        if self.is_main and score > self.best_score:
            self.best_score, self.best_step = score, self.step
            if not (final := self.config.output / f"best-{self.step}").exists():
                with folder_written_whole(final) as part:
                    self._save_weights(self.pipeline().transformer, part)
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

    def _make_model(self) -> tuple[KaleidoTransformer3DModel, RectifiedFlowViewScheduler]:
        """From the newest checkpoint of the run, from another pipeline, or with random weights."""
        config = self.config
        options = {
            "prediction_type": config.prediction_type,
            "training_distribution": config.training_distribution,
            "logit_mean": config.logit_mean,
            "logit_std": config.logit_std,
        }
        source = config.init_from if self.checkpoint is None or config.lora.rank else self.checkpoint
        if config.lora.rank and source is None:
            raise ValueError("An adapter needs weights that it adapts: pass --init-from.")
        if source is not None:
            transformer = KaleidoTransformer3DModel.from_pretrained(source, subfolder="transformer")
            if transformer.config.in_channels != latent_channels(self.vae):
                what = "pixels" if self.vae is None else f"latents of {latent_channels(self.vae)} channels"
                raise ValueError(
                    f"{source} works on views of {transformer.config.in_channels} channels, but training sees {what}:"
                    " pass the autoencoder that it was trained with by --vae."
                )
            stored = RectifiedFlowViewScheduler.from_pretrained(source, subfolder="scheduler").config
            options["prediction_type"] = stored.prediction_type
            scheduler = RectifiedFlowViewScheduler.from_config(stored, **options)
        else:
            overrides = {key: value for key, value in vars(config.model).items() if value is not None}
            preset = overrides.pop("preset")
            patch_size = 8 if self.vae is None else 2
            overrides = {"patch_size": patch_size, **overrides, "in_channels": latent_channels(self.vae)}
            overrides["sample_size"] = config.size // compression(self.vae)
            transformer = KaleidoTransformer3DModel.from_preset(preset, **overrides)
            scheduler = RectifiedFlowViewScheduler(**options)
        if config.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        transformer = self._with_adapter(transformer.float())
        if config.lora.rank and self.checkpoint is not None:
            self._load_weights(transformer, self.checkpoint / "transformer")
        return transformer.train(), scheduler

    def _make_autoencoder(self) -> ModelMixin | None:
        """The one that is named, or that of the pipeline that training starts from; none for pixels."""
        config = self.config
        if config.vae is not None:
            return load_autoencoder(config.vae).to(self.accelerator.device)
        if config.init_from is not None and (config.init_from / "vae").is_dir():
            return load_autoencoder(config.init_from).to(self.accelerator.device)
        return None

    def _operations(self, partition: ViewPartition, height: int, width: int) -> int:
        """Floating-point operations of one step of all processes, with the backward pass (twice the forward one)."""
        memory = () if partition.drop_references else tuple(map(len, partition.references))
        targets = tuple(map(len, partition.targets))
        once = forward_operations(self.transformer.config, memory, targets, height=height, width=width)
        return 3 * once * self.config.batch

    def _with_adapter(self, transformer: KaleidoTransformer3DModel) -> KaleidoTransformer3DModel:
        """The model, frozen below a new adapter, where one is trained."""
        if self.config.lora.rank:
            transformer.requires_grad_(False)
            transformer.add_adapter(make_lora_config(**vars(self.config.lora)))
        return transformer

    def _blank(self) -> KaleidoTransformer3DModel:
        """A model like the one that is trained, without its weights."""
        return self._with_adapter(KaleidoTransformer3DModel.from_config(self.transformer.config))

    def _copy(self) -> KaleidoTransformer3DModel:
        copy = self._blank()
        copy.load_state_dict(self._unwrapped().state_dict())
        return copy.to(self.accelerator.device)

    def _unwrapped(self) -> KaleidoTransformer3DModel:
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def _make_ema(self) -> EMAModel:
        source = self.transformer
        if self.checkpoint is not None:
            source = self._blank()
            self._load_weights(source, self.checkpoint / "transformer_ema")
        ema = EMAModel(_trained(source), decay=self.config.ema_decay, use_ema_warmup=True, power=3 / 4, foreach=True)
        ema.to(self.accelerator.device)
        return ema

    def pipeline(self) -> KaleidoViewSynthesisPipeline:
        """The averaged weights as a pipeline; an adapter is attached."""
        transformer = self._copy()
        self.ema.copy_to(_trained(transformer))
        pipe = KaleidoViewSynthesisPipeline(transformer.eval(), self.scheduler, self.vae)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def result(self) -> KaleidoViewSynthesisPipeline:
        """The pipeline to keep: the averaged weights, or those that did best in validation, where it decides."""
        pipe = self.pipeline()
        best = self.config.output / f"best-{self.best_step}"
        if self.config.patience is not None and best.is_dir():
            self._load_weights(pipe.transformer, best)
        return pipe

    def adapter_info(self) -> AdapterInfo:
        """What the trained adapter belongs to, and how it came about."""
        config = self.config
        about = {"capture": Path(config.data[0].partition("=")[0]).resolve().name, "size": config.size}
        about["steps"] = self.step if config.patience is None else self.best_step
        base = config.init_from  # a Hub id stays whole; of a folder the name says enough
        return AdapterInfo.of(self._unwrapped(), base_name=base.name if base.is_dir() else str(base), **about)

    def _write_result(self, folder: Path) -> None:
        if self.config.lora.rank:
            save_adapter(folder, self.result().transformer, self.adapter_info())
        else:
            with folder_written_whole(folder, replaces=True) as part:
                self.result().save_pretrained(part)

    # ------------------------------------------------------------------------------------------------ checkpoints

    def save(self) -> None:
        """Writes `checkpoint-N`: it is complete, or it is not there."""
        self.accelerator.wait_for_everyone()
        if self.is_main:
            output = self.config.output
            state = {
                "step": self.step,
                "ema_step": self.ema.optimization_step,
                "best": (self.best_step, self.best_score),
                "minutes": self.minutes,
                "operations": self.operations,
                "config": _decisive(self.config),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            }
            if not (output / f"checkpoint-{self.step}").exists():
                with folder_written_whole(output / f"checkpoint-{self.step}", needs=self._size(state)) as part:
                    self._save_weights(self._unwrapped(), part / "transformer")
                    self._save_weights(self.pipeline().transformer, part / "transformer_ema")
                    self.scheduler.save_pretrained(part / "scheduler")
                    (part / "state").mkdir()
                    torch.save(state, part / "state" / "state.pt")
            for number in _checkpoints(output)[: -self.config.keep]:
                old = output / f".checkpoint-{number}.old.part"
                os.rename(output / f"checkpoint-{number}", old)  # a kill leaves no half of it under its name
                shutil.rmtree(old)
            for best in output.glob("best-*"):
                if best.name != f"best-{self.best_step}":
                    shutil.rmtree(best)
        self.accelerator.wait_for_everyone()

    def _size(self, state: dict) -> int:
        """Bytes of a checkpoint: weights twice, and what the optimizers keep."""
        tensors = [
            tensor for part in state["optimizers"] for entry in part["state"].values() for tensor in entry.values()
        ]
        tensors += 2 * (_trained(self.transformer) if self.config.lora.rank else [*self.transformer.parameters()])
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

    def _load_state(self, checkpoint: Path) -> None:
        state = torch.load(checkpoint / "state" / "state.pt", map_location="cpu", weights_only=True)
        changed = [key for key, value in _decisive(self.config).items() if state["config"].get(key) != value]
        if changed:
            was = ", ".join(f"{key}={state['config'].get(key)}" for key in changed)
            raise ValueError(
                f"{checkpoint} was trained with {was}. Resume it with these settings, or start another run with"
                " --init-from."
            )
        self.step, self._minutes_before = state["step"], state["minutes"]
        self.best_step, self.best_score = state["best"]
        self.operations = state.get("operations", 0)
        self.ema.optimization_step = state["ema_step"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)

    # ------------------------------------------------------------------------------------------------ scores

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Generates views of unseen scenes, from three references where there are as many; writes a picture."""
        if not self.is_main:
            return {}
        config = self.config
        if self._validation is None:
            self._validation = validation_samples(config)
        pipe, given, made, truth = self.pipeline(), [], [], []
        for number, (sample, count) in enumerate(self._validation):
            views = _pixels(self.vae, sample.pixels)
            times = {}
            if sample.times is not None:
                times = {"frame_times": sample.times[:count], "target_times": sample.times[count:]}
            generated = pipe(
                views[:count],
                sample.cameras,
                **times,
                height=config.size,
                width=config.size,
                num_inference_steps=config.validation_steps,
                views_per_group=1,
                generator=torch.Generator().manual_seed(number),
                output_type="pt",
            ).images
            given.append(views[:count])
            made.append(generated)
            truth.append(views[count:])
        if not made:
            return {}
        made, truth = torch.cat(made), torch.cat(truth)
        rows = {"generated": made, "truth": truth, "difference": (made - truth).abs()}
        sheet = contact_sheet(torch.cat(given), rows, tile=96)
        save_image(sheet, config.output / f"validation-{self.step:07d}.png")
        return {"validation_psnr": psnr(made, truth).mean().item()}

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


class _Stopwatch:
    """Seconds of training steps, pauses for other work taken out."""

    def restart(self) -> None:
        self._started, self._aside = time.monotonic(), {"waiting": 0.0, "pauses": 0.0}

    @contextmanager
    def aside(self, what: str) -> Iterator[None]:
        """Around `"waiting"` for data, or around `"pauses"`, which are no part of a step."""
        started = time.monotonic()
        yield
        self._aside[what] += time.monotonic() - started

    def per_step(self, steps: int) -> dict[str, float]:
        """Seconds a step since the restart, and the share of them that went into waiting for data."""
        seconds = time.monotonic() - self._started - self._aside["pauses"]
        return {"seconds": seconds / steps, "data_share": self._aside["waiting"] / seconds}


def _decisive(config: TrainConfig) -> dict[str, str]:
    """The settings that decide what the steps do, which a resumed run must share."""
    free = ("output", "max_minutes", "steps", "save_every", "keep", "log_every", "validate_every", "validation")
    free += ("validation_scenes", "validation_steps", "workers", "tracker", "compile", "in_memory", "init_from")
    free += ("dtype", "threads", "data", "cooldown", "scenes")
    return {key: str(value) for key, value in vars(config).items() if key not in free}


def _dtype(name: str) -> torch.dtype:
    """Of matrix products, by the name of the setting."""
    if name != "auto":
        return getattr(torch, name)
    device = torch.accelerator.current_accelerator()
    return fast_dtype("cpu" if device is None else device.type)


def _pixels(vae: ModelMixin | None, views: torch.Tensor) -> torch.Tensor:
    """Views `[V, 3, H, W]` in [0, 1] of a sample, decoded where it holds latents."""
    if views.dtype == torch.uint8:
        return views.float() / 255
    return (decode_views(vae, views) / 2 + 0.5).clamp(0, 1)


def _trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _single_thread(_worker: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's, which still wants a batch or two
