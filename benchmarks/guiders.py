"""What diffusers' guiders and step caches make of views of real captures: PSNR, LPIPS, gradient energy (the true
views' is 1), the operations of the first view as a share of those without a guider or step cache, and the seconds of
a CPU that each of the other views takes.

    python benchmarks/guiders.py --captures chair snowmiku --photos 2 --cached-steps 0 --lpips lpips_alex.pth
    python benchmarks/guiders.py --captures chair snowmiku --photos 2 --guided-steps 0 --lpips lpips_alex.pth

Every eighth photo of a capture is made from the references nearest to it, as in `seeing.py`, by the modular pipeline:
references are encoded once, for all rows of the table.
"""

import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from diffusers import (
    AdaptiveProjectedGuidance,
    AutoGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    FasterCacheConfig,
    FirstBlockCacheConfig,
    LayerSkipConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    SkipLayerGuidance,
    TaylorSeerCacheConfig,
)
from few_steps import step_cache
from measuring import show
from seeing import Config as Seeing
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from tqdm.auto import tqdm

from kaleido_diffusers import (
    KaleidoEncodeBlocks,
    KaleidoGuidance,
    KaleidoMemoryBlocks,
    KaleidoModularPipeline,
)
from kaleido_diffusers.cli.loading import load_pipeline
from kaleido_diffusers.evaluation.metrics import LPIPS, gradient_energy, psnr


COLUMNS = {
    "guider or step cache": "", "steps": "d", "psnr": ".2f", "lpips": ".3f", "gradient_energy": ".2f",
    "operations": ".2f", "seconds": ".2f", "views": "d",
}  # fmt: skip


@dataclass
class Config:
    checkpoint: str = "kaleido-tiny"
    """Folder or Hub id of a pipeline, or the name of a bundled checkpoint."""
    captures: tuple[Path, ...] = ()
    """Folders of captures."""
    photos: int = 6
    """Most held-out photos of a capture, evenly spread."""
    references: int = 6
    """References of each."""
    guided_steps: int = 10
    """Denoising steps of the guiders; 0 for none of them."""
    cached_steps: int = 25
    """Denoising steps of the step caches; 0 for none of them."""
    lpips: Path | None = None
    """State dict of LPIPS (AlexNet, version 0.1)."""
    output: Path | None = None
    """JSON of the rows."""

    def main(self) -> None:
        torch.set_grad_enabled(False)
        standard = load_pipeline(self.checkpoint)
        encoder, pipe = KaleidoEncodeBlocks().init_pipeline(), KaleidoMemoryBlocks().init_pipeline()
        encoder.update_components(transformer=standard.transformer, vae=standard.vae)
        pipe.update_components(**standard.components, prediction_type=standard.config.prediction_type)
        pipe.set_progress_bar_config(disable=True)
        size, cases = standard.default_sample_size, []
        for folder in self.captures:
            for images, cameras, truth, target in Seeing(photos=self.photos)._photos(folder, size):
                known = {"reference_images": images[: self.references], "poses": cameras[: self.references]}
                cases.append((encoder(**known, output="memory"), truth, target))
        lpips, rows = None if self.lpips is None else LPIPS(self.lpips), []
        for name, guider in tqdm(list(guiders()) if self.guided_steps else []):
            pipe.update_components(guider=guider)
            rows.append({"guider or step cache": name, **self._scored(pipe, lpips, cases, self.guided_steps)})
            self._write(rows)
        for scale in (1.0, 2.0) if self.cached_steps else ():
            pipe.update_components(guider=KaleidoGuidance(guidance_scale=scale))
            one_view = partial(self._scored, pipe, None, cases[:1], self.cached_steps)
            mag_cache = step_cache("MagCache", 0.06, self.cached_steps, one_view, pipe.transformer)
            for name, config in tqdm([("no step cache", None), *step_caches(pipe, mag_cache)]):
                if config is not None:
                    pipe.transformer.enable_cache(config)
                row = self._scored(pipe, lpips, cases, self.cached_steps)
                rows.append({"guider or step cache": f"{name}, guidance {scale:g}", **row})
                self._write(rows)
                if config is not None:
                    pipe.transformer.disable_cache()
        show(self._write(rows), COLUMNS, None)

    def _write(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows with operations as a share of the first row of as many steps; into the JSON as they come."""
        plain = {row["steps"]: row["operations"] for row in reversed(rows)}
        rows = [{**row, "operations": row["operations"] / plain[row["steps"]]} for row in rows]
        if self.output is not None:
            self.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        return rows

    def _scored(self, pipe: KaleidoModularPipeline, lpips: LPIPS | None, cases: list, steps: int) -> dict[str, Any]:
        scores, seconds, counter = [], [], FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
        for number, (memory, truth, target) in enumerate(cases):
            start = time.process_time()  # on a busy machine it says what a clock does on an idle one
            with nullcontext() if number else counter:
                views = pipe(
                    memory=memory,
                    target_poses=target,
                    num_inference_steps=steps,
                    generator=torch.Generator().manual_seed(number),
                    output_type="pt",
                    output="images",
                )
            seconds.append((time.process_time() - start) / len(views))
            perceptual = torch.full((len(views),), torch.nan) if lpips is None else lpips(views, truth)
            scores += torch.stack([psnr(views, truth), perceptual, *map(gradient_energy, (views, truth))], 1).tolist()
        means = torch.tensor(scores).mean(0).tolist()
        row = {"psnr": means[0], "lpips": means[1], "gradient_energy": means[2] / means[3]}
        row["seconds"] = sum(seconds[1:]) / max(len(seconds) - 1, 1)  # counting operations takes time as well
        return {"steps": steps, "operations": counter.get_total_flops(), "views": len(scores), **row}


def _attention(query_shape, key_shape, value_shape, *_args, **_options) -> int:
    return sdpa_flop_count(query_shape, key_shape, value_shape)


# torch counts the attention of GPUs, not that of its CPU kernel
CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}


def guiders() -> Iterator[tuple[str, Any]]:
    """By name; the first is none."""
    yield "none", KaleidoGuidance(guidance_scale=1.0)
    for scale in (1.5, 2.0):
        yield f"KaleidoGuidance {scale:g}", KaleidoGuidance(guidance_scale=scale)
    yield "ClassifierFreeGuidance 2", ClassifierFreeGuidance(guidance_scale=2.0)
    yield "KaleidoGuidance 2, steps 30 to 100 %", KaleidoGuidance(guidance_scale=2.0, start=0.3)
    yield "KaleidoGuidance 2, steps 0 to 50 %", KaleidoGuidance(guidance_scale=2.0, stop=0.5)
    yield "AdaptiveProjectedGuidance 2, eta 0", AdaptiveProjectedGuidance(guidance_scale=2.0, eta=0.0)
    zero_star = ClassifierFreeZeroStarGuidance(guidance_scale=2.0, zero_init_steps=0)
    yield "ClassifierFreeZeroStarGuidance 2, zero_init_steps 0", zero_star
    for layer, whole in ((4, True), (4, False)):
        skipped = LayerSkipConfig([layer], skip_ff=whole)
        options = {"skip_layer_guidance_stop": 1.0, "skip_layer_config": skipped, "skip_layer_guidance_scale": 0.5}
        what = f"layer {layer}{'' if whole else ', attention alone'}"
        yield f"SkipLayerGuidance 1.5 + 0.5, {what}", SkipLayerGuidance(guidance_scale=1.5, **options)
    weak = LayerSkipConfig([4])
    yield "AutoGuidance 1.5, without layer 4", AutoGuidance(guidance_scale=1.5, auto_guidance_config=weak, dropout=1.0)


def step_caches(pipe: KaleidoModularPipeline, mag_cache: MagCacheConfig) -> Iterator[tuple[str, Any]]:
    """By name, each with settings under which it saves about a third to two thirds."""
    told = {"current_timestep_callback": lambda: pipe.current_timestep}
    yield "FirstBlockCache 0.1", FirstBlockCacheConfig(threshold=0.1)
    yield "MagCache 0.06", mag_cache
    yield "TaylorSeer, every 3rd step", TaylorSeerCacheConfig(cache_interval=3, taylor_factors_dtype=torch.float32)
    attention = {"spatial_attention_block_skip_range": 2, "spatial_attention_timestep_skip_range": (100, 950)}
    yield "PyramidAttentionBroadcast, every 2nd step", PyramidAttentionBroadcastConfig(**attention, **told)
    distilled = {"is_guidance_distilled": True, "attention_weight_callback": lambda _: 0.5}
    yield "FasterCache, every 2nd step", FasterCacheConfig(**attention, **distilled, **told)
    yield "SeaCache 0.25", SeaCacheConfig(threshold=0.25)


if __name__ == "__main__":
    tyro.cli(Config, description=__doc__).main()
