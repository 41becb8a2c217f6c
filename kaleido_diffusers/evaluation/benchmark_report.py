"""What a run of a protocol says: tables beside published numbers, a page with pictures, a model card's results."""

import base64
import html
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from .protocols import PROTOCOLS, Protocol
from .published import differences, published_beside
from .report import contact_sheet, markdown_table


__all__ = ["model_index", "read_run", "summarize", "write_report"]

METRICS = ("psnr", "ssim", "lpips", "psnr_masked", "ssim_masked")
TITLES = {"psnr": ".2f", "ssim": ".3f", "lpips": ".3f", "psnr_masked": ".2f", "ssim_masked": ".3f"}


def read_run(folder: Path) -> tuple[dict, list[dict]]:
    """
    `run.json` and the scores so far, in the order of the plan.

    Args:
        folder (`Path`): of the run.
    """
    file = Path(folder) / "run.json"
    if not file.is_file():
        raise ValueError(f"{file}: no run of a protocol.")
    run, lines = json.loads(file.read_text(encoding="utf-8")), []
    for label, *_ in run["items"]:
        scores = Path(folder) / "scores" / f"{label}.jsonl"
        if scores.is_file():
            lines += [json.loads(line) for line in scores.read_text(encoding="utf-8").splitlines()]
    return run, lines


def summarize(run: dict, lines: Sequence[dict]) -> list[dict]:
    """
    Means of each method and number of references: by the protocol's averaging, over images, and of the pooled error
    (`psnr_pooled`: PSNR of each scene's mean squared error, then over scenes). `partial` says what is missing, and is
    empty for a whole run.

    Args:
        run (`dict`): `run.json`.
        lines (`Sequence[dict]`): the scores.
    """
    groups: dict[tuple[str, int], list[dict]] = {}
    for line in lines:
        groups.setdefault((line["method"], line["references"]), []).append(line)
    rows = []
    for (method, references), group in groups.items():
        row = {"method": method, "references": references, "views": len(group)}
        scenes: dict[str, list[dict]] = {}
        for line in group:
            scenes.setdefault(line["scene"], []).append(line)
        row["scenes"] = len(scenes)
        over_items = run["protocol"]["averaging"] == "item"
        for metric in METRICS:
            row[f"{metric}_images"] = _mean([line.get(metric) for line in group])
            by_scene = _mean([_mean([line.get(metric) for line in part]) for part in scenes.values()])
            row[metric] = row[f"{metric}_images"] if over_items else by_scene
        errors = [sum(line["mse"] for line in part) / len(part) for part in scenes.values()]
        row["psnr_pooled"] = _mean([-10 * math.log10(error) for error in errors if error > 0])
        row["partial"] = _partial(run, references, len(scenes), len(group))
        rows.append(row)
    return sorted(rows, key=lambda row: (row["references"], row["method"]))


def _mean(values: Sequence[float | None]) -> float:
    """Of those that were taken; `NaN` if none were. `fsum` does not hang on the order."""
    taken = [value for value in values if value is not None and math.isfinite(value)]
    return math.fsum(taken) / len(taken) if taken else math.nan


def _partial(run: dict, references: int, scenes: int, views: int) -> str:
    planned = [item for item in run["items"] if item[2] == references]
    expected, targets = run["expected_scenes"], sum(item[3] for item in planned)
    if scenes < expected:
        return f"{scenes} of {expected} scenes"
    if views < targets or run["problems"]:
        return f"{views} views, {len(run['problems'])} problems" if run["problems"] else f"{views} of {targets} views"
    return ""


def beside(run: dict, rows: Sequence[dict]) -> list[dict]:
    """Published numbers for the run's counts, each with `comparable`: "yes", or what differs.

    Args:
        run (`dict`): `run.json`.
        rows (`Sequence[dict]`): of [`summarize`].
    """
    protocol, found = PROTOCOLS[run["protocol"]["name"]], []
    partial = {row["references"]: row["partial"] for row in rows}
    for entry in published_beside(protocol, partial):
        different = differences(entry, protocol, entry.references, run["lpips"])
        if partial[entry.references]:
            different.append(f"scenes (here a partial mean: {partial[entry.references]})")
        verdict = f"not comparable: {'; '.join(different)}" if different else "yes"
        numbers = {name: math.nan if (value := getattr(entry, name)) is None else value for name in METRICS[:3]}
        found.append({"method": entry.method, "references": entry.references, **numbers, "mean": entry.note,
                      "comparable": verdict})  # fmt: skip
    return found


def by_distance(lines: Sequence[dict], bins: int = 4) -> list[dict]:
    """Mean PSNR of each method by the distance from target to nearest reference, in equally full bins.

    Args:
        lines (`Sequence[dict]`): the scores.
        bins (`int`, defaults to `4`): how many.
    """
    distances = torch.tensor([line["distance"] for line in lines], dtype=torch.float64)
    edges = torch.quantile(distances, torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1])
    places, groups = torch.bucketize(distances, edges).tolist(), {}
    for place, line in zip(places, lines):
        groups.setdefault((place, line["method"]), []).append(line)
    return [
        {"method": method, "views": len(part)}
        | {name: _mean([v[name] for v in part]) for name in ("distance", "psnr")}
        for (_, method), part in sorted(groups.items())
    ]


def cost(folder: Path, run: dict) -> list[dict]:
    """Seconds a view and most memory for each number of references: of this machine, so no part of the scores.

    Args:
        folder (`Path`): of the run.
        run (`dict`): `run.json`.
    """
    groups: dict[int, list[dict]] = {}
    for label, _, references, _ in run["items"]:
        file = Path(folder) / "cost" / f"{label}.json"
        if file.is_file():
            groups.setdefault(references, []).append(json.loads(file.read_text(encoding="utf-8")))
    return [
        {
            "references": references,
            "seconds a view": sum(part["seconds"] for part in parts) / sum(part["views"] for part in parts),
            "peak MiB": max(part["bytes"] for part in parts) / 2**20,
        }
        for references, parts in sorted(groups.items())
    ]


def write_report(folder: Path) -> list[Path]:
    """
    Writes `scores.json` and `report.md` (which hold nothing that a second run would change), `cost.md`, `report.html`
    and `model-index.yaml`; returns their paths.

    Args:
        folder (`Path`): of the run.
    """
    folder = Path(folder)
    run, lines = read_run(folder)
    if not lines:
        raise ValueError(f"{folder}: no scene is done yet.")
    rows = summarize(run, lines)
    text, costs = _markdown(run, rows, lines), cost(folder, run)
    forms = {"references": "d", "seconds a view": ".2f", "peak MiB": ".0f"}
    written = {"scores.json": json.dumps(_plain({"run": run, "summary": rows}), indent=1, allow_nan=False) + "\n"}
    written |= {"report.md": text, "cost.md": markdown_table(costs, forms), "model-index.yaml": model_index(run, rows)}
    written["report.html"] = _page(text + "\n## Cost on this machine\n\n" + written["cost.md"], folder, run, lines)
    for name, content in written.items():
        part = folder / f".{name}.{os.getpid()}"
        part.write_text(content, encoding="utf-8")
        os.replace(part, folder / name)
    return [folder / name for name in written]


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _markdown(run: dict, rows: list[dict], lines: list[dict]) -> str:
    protocol = PROTOCOLS[run["protocol"]["name"]]
    shown = {name: form for name, form in TITLES.items() if any(math.isfinite(row[name]) for row in rows)}
    columns = {"method": "", "references": "d", **shown, "psnr_images": ".2f", "psnr_pooled": ".2f"}
    text = f"# {protocol.name}: {run['settings']['checkpoint']}\n\n{_recipe(protocol, run)}\n\n"
    if any(row["partial"] for row in rows):
        text += "**Partial means**: not all of the protocol was scored; the last column says what was.\n\n"
    text += markdown_table(rows, columns | {"scenes": "d", "views": "d", "partial": ""})
    known = beside(run, rows)
    if known:
        forms = {"method": "", "references": "d", **{name: TITLES[name] for name in METRICS[:3]}}
        text += f"\n## Published\n\n{markdown_table(known, forms | {'mean': '', 'comparable': ''})}"
    else:
        text += "\nNo published number is known for this protocol and these views.\n"
    forms = {"method": "", "distance": ".2f", "psnr": ".2f", "views": "d"}
    text += (
        f"\n## By the distance of the target from the nearest reference\n\n{markdown_table(by_distance(lines), forms)}"
    )
    if run["problems"]:
        text += "\n## Missing\n\n" + "".join(f"- {problem}\n" for problem in run["problems"])
    return text


def _recipe(protocol: Protocol, run: dict) -> str:
    """The protocol in a paragraph."""
    size = "as stored" if protocol.size is None else f"{protocol.size[0]} x {protocol.size[1]}"
    split = run["split"]
    words = [f"Split: {split['from']} ({split['source']})"]
    words += [f"SHA-256 {split['sha256'][:16]}"] if "sha256" in split else []
    words += [f"file and formula {'agree' if split['agrees'] else 'DISAGREE'}"] if "agrees" in split else []
    words += [f"scored at {size}, SSIM {protocol.ssim!r}, LPIPS {run['lpips'] or 'not taken'}"]
    made = run["settings"]["size"]
    words += [f"made at {made} on the shorter side and resized"] if made else []
    words += [f"seed {run['settings']['seed']}, one sample a target"]
    words += [protocol.note] if protocol.note else []
    return "; ".join(words) + "."


def model_index(run: dict, rows: Sequence[dict]) -> str:
    """
    The run's means as the YAML of a model card, by huggingface_hub; partial means say so in the data set's name.

    Args:
        run (`dict`): `run.json`.
        rows (`Sequence[dict]`): of [`summarize`].
    """
    from huggingface_hub import EvalResult, ModelCardData

    protocol, results = PROTOCOLS[run["protocol"]["name"]], []
    for row in rows:
        if row["method"] != "kaleido":
            continue
        name = f"{protocol.name}, {row['references'] or 'all'} references"
        name += f" (partial: {row['partial']})" if row["partial"] else ""
        titles = {"psnr": "PSNR", "ssim": f"SSIM {protocol.ssim}", "lpips": f"LPIPS {run['lpips']}"}
        for metric, title in titles.items():
            if math.isfinite(row[metric]):
                shared: dict[str, Any] = {"task_type": "image-to-image", "task_name": "Novel view synthesis"}
                shared |= {"dataset_type": protocol.name, "dataset_name": name}
                value = round(row[metric], 4)
                results.append(EvalResult(metric_type=metric, metric_name=title, metric_value=value, **shared))
    name = Path(run["settings"]["checkpoint"]).name or "kaleido"
    return (ModelCardData(model_name=name, eval_results=results) if results else ModelCardData()).to_yaml() + "\n"


def _page(text: str, folder: Path, run: dict, lines: list[dict]) -> str:
    """One HTML file, pictures inside."""
    parts, table = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            table.append([cell.strip() for cell in line.strip("|").split("|")])
            continue
        if table:
            parts.append(_table(table))
            table = []
        level = len(line) - len(line.lstrip("#"))
        if level:
            parts.append(f"<h{level}>{html.escape(line[level:].strip())}</h{level}>")
        elif line:
            parts.append(f"<p>{html.escape(line).replace('**', '')}</p>")
    parts += _pictures(folder, lines)
    style = "body{font:15px sans-serif;max-width:70em;margin:2em auto}td,th{padding:.2em .7em;border:1px solid #ccc}"
    style += "table{border-collapse:collapse}img{max-width:100%}"
    head = f"<!doctype html><meta charset=utf-8><title>{html.escape(run['protocol']['name'])}</title>"
    return f"{head}<style>{style}</style>\n" + "\n".join(parts) + "\n"


def _table(rows: list[list[str]]) -> str:
    head, _, *body = rows
    cells = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
    cells += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in body]
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"


def _pictures(folder: Path, lines: list[dict]) -> list[str]:
    """Worst, median and best target of the method, for the middle number of references."""
    method = "kaleido" if any(line["method"] == "kaleido" for line in lines) else "nearest reference"
    counts = sorted({line["references"] for line in lines})
    middle = counts[len(counts) // 2]
    scored = [line for line in lines if line["method"] == method and line["references"] == middle]
    scored = sorted((line for line in scored if line["psnr"] is not None), key=lambda line: line["psnr"])
    if not scored or not (folder / "pictures").is_dir():
        return []
    parts = [f"<h2>Worst, median and best of {len(scored)} targets, {middle or 'all'} references</h2>"]
    for title, line in zip(("worst", "median", "best"), (scored[0], scored[len(scored) // 2], scored[-1])):
        place, name = folder / "pictures" / line["label"], line["target"].replace("/", "_")
        files = [place / f"{name}_truth.png", place / f"{name}_{method.split()[0]}.png"]
        if not all(file.is_file() for file in files):
            continue
        references = [_pixels(file) for file in sorted(place.glob("reference_*.png"))]
        rows = {
            "truth": _pixels(files[0])[None],
            "ours" if method == "kaleido" else "nearest": _pixels(files[1])[None],
        }
        sheet = folder / f".sheet.{os.getpid()}.png"
        contact_sheet(torch.stack(references), rows, [f"{line['psnr']:.2f} dB"]).save(sheet)
        data = base64.b64encode(sheet.read_bytes()).decode()
        sheet.unlink()
        caption = f"{title}: {line['scene']}, frame {line['target']}"
        parts.append(f"<h3>{html.escape(caption)}</h3><img alt='{title}' src='data:image/png;base64,{data}'>")
    return parts


def _pixels(file: Path) -> torch.Tensor:
    import numpy as np

    with PIL.Image.open(file) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255
