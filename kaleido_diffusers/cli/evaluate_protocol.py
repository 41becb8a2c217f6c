"""`kaleido evaluate --protocol`: a published protocol, from a data set to a table beside the published numbers."""

from pathlib import Path
from typing import Any

from ..evaluation.benchmark import (
    BenchmarkRun,
    Plan,
    RunSettings,
    check_pixels,
    make_plan,
    merge_runs,
    part_of,
    remove_run,
)
from ..evaluation.benchmark_report import write_report
from ..evaluation.metrics import LPIPS
from ..evaluation.protocols import PROTOCOLS, Protocol, protocol_named
from ..files import refuse_existing
from .checks import check_views, errors_first
from .loading import load_pipeline
from .settings import ProtocolOptions


__all__ = ["list_protocols", "merge", "run_protocol"]


def list_protocols() -> None:
    """Prints every protocol with what it needs."""
    for protocol in PROTOCOLS.values():
        counts = ", ".join(str(count or "all") for count in protocol.references)
        size = "as stored" if protocol.size is None else f"{protocol.size[0]}x{protocol.size[1]}"
        print(f"{protocol.name}: {counts} references, {size}, SSIM {protocol.ssim}, LPIPS {protocol.lpips or '-'}")
        print(f"    split: {protocol.split} ({protocol.source}); needs {protocol.needs}")
        if protocol.note:
            print(f"    note: {protocol.note}")


def merge(folders: tuple[Path, ...], output: Path) -> None:
    """Brings parts together and writes the report.

    Args:
        folders (`tuple[Path, ...]`): of the parts.
        output (`Path`): of the whole.
    """
    merge_runs(folders, output)
    _report(output)


def run_protocol(
    options: ProtocolOptions,
    data: str,
    references: tuple[int, ...] | None,
    checkpoint: str,
    size: int | None,
    call: dict,
    lpips: Path | None,
    device: str,
    output: Path,
    lora: str | None = None,
    overwrite: bool = False,
) -> None:
    """
    Plans, checks, runs and reports.

    Args:
        options ([`ProtocolOptions`]): what to run.
        data (`str`): folder of the data set.
        references (`tuple[int, ...]`, *optional*): numbers of references; the protocol's when not given.
        checkpoint (`str`): what is scored; `none` for the nearest reference alone.
        size (`int`, *optional*): shorter side at which the model makes views; its own when not given.
        call (`dict`): options of the pipeline's call.
        lpips (`Path`, *optional*): weights of LPIPS.
        device (`str`): where to run.
        output (`Path`): folder of the run.
        lora (`str`, *optional*): adapter to add to the checkpoint.
        overwrite (`bool`, defaults to `False`): start anew where a run is.
    """
    if overwrite and options.part is not None:
        raise ValueError("--overwrite and --part: each part would remove the others. Remove the folder yourself.")
    if not overwrite and not (output / "run.json").is_file():
        refuse_existing(output / "scores.json")  # of `kaleido evaluate` without a protocol
    protocol, folder = protocol_named(options.protocol), Path(data)
    with errors_first():
        metric = None if lpips is None else LPIPS(lpips, protocol.lpips)
        plan = _plan(protocol, folder, references, options)
        pipe = None if checkpoint == "none" else load_pipeline(checkpoint, device, lora=lora)
        if pipe is not None:
            pipe.set_progress_bar_config(disable=True)
            size = size or pipe.default_sample_size
            check_views(pipe, size, size, call["guidance_scale"])
        scored = checkpoint if lora is None else f"{checkpoint} with {lora}"
        truth = (options.best_of_looking_at_the_truth, options.sweep_scale_looking_at_the_truth)
        settings = RunSettings(scored, size, options.seed, *truth, {**call, **_memory_options(options)})
        if overwrite:  # now that nothing speaks against this run
            remove_run(output)
        run = BenchmarkRun(protocol, plan, settings, output, None if metric is None else metric.net)
    if metric is None and protocol.lpips is not None:
        print(f"LPIPS is not taken: {protocol.name} wants --lpips with the weights of {protocol.lpips!r}.")
    if plan.problems:
        print(f"Partial: {_missing(plan.problems, '')}")
    run.run(pipe, folder, metric, options.part, options.masks, options.pictures)
    _report(output)


def _plan(protocol: Protocol, folder: Path, references: tuple[int, ...] | None, options: ProtocolOptions) -> Plan:
    """All that is to be done; raises `ValueError` where it cannot be."""
    if options.masks is not None and not options.masks.is_dir():
        raise ValueError(f"--masks {options.masks}: no such folder.")
    plan = make_plan(protocol, folder, references or protocol.references, options.splits, options.only)
    part_of(plan.items, options.part)
    check_pixels(protocol, folder, plan)
    if plan.problems and not options.allow_partial:
        raise ValueError(_missing(plan.problems, " (--allow-partial scores the rest)"))
    if not plan.items:
        raise ValueError(f"{folder}: nothing of {protocol.name} can be scored; it needs {protocol.needs}.")
    return plan


def _memory_options(options: ProtocolOptions) -> dict[str, Any]:
    """Of the pipeline's call, where they were given."""
    chosen = {"max_memory_views": options.max_memory_views, "joins_memory": options.joins_memory}
    return {name: value for name, value in chosen.items() if value is not None}


def _missing(problems: list[str], what_to_do: str) -> str:
    shown = "\n  ".join(problems[:20]) + (f"\n  and {len(problems) - 20} more" if len(problems) > 20 else "")
    return f"{len(problems)} things are missing{what_to_do}:\n  {shown}"


def _report(output: Path) -> None:
    written = write_report(output)
    print((output / "report.md").read_text(encoding="utf-8"))
    for path in written:
        print(f"wrote {path}")
