"""Runs of a published protocol: planned and checked before the first sample, resumable scene by scene, merged."""

import hashlib
import json
import math
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import PIL.Image
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from ..captures.images import CaptureError, as_image_tensor, load_mask, tensor_to_image
from ..files import OR_OVERWRITE, remove_written
from ..geometry.cameras import Cameras
from .baselines import nearest_reference, reference_distances
from .layouts import PlacedScene, open_placed, scene_names
from .metrics import LPIPS, psnr, quantized, ssim_variant
from .protocols import DTU_PAIR_REFERENCES, DTU_PAIR_TARGETS, Protocol, dtu_split, every_eighth, framed, llff_split
from .split_files import bundled_split, path_split, split_digest


__all__ = [
    "BenchmarkRun",
    "Item",
    "Plan",
    "RunSettings",
    "check_pixels",
    "make_plan",
    "merge_runs",
    "part_of",
    "remove_run",
]


@dataclass(frozen=True)
class Item:
    """
    What one call makes.

    Attributes:
        label (`str`): what its files are called.
        scene (`str`): of the data set.
        num_references (`int`): the protocol's number, 0 for all that are not targets.
        references (`tuple[str, ...]`): frames, as [`PlacedScene`] numbers them.
        targets (`tuple[str, ...]`): likewise.
    """

    label: str
    scene: str
    num_references: int
    references: tuple[str, ...]
    targets: tuple[str, ...]


@dataclass
class Plan:
    """
    All that a run has to do, and what stands in the way.

    Attributes:
        items (`list[Item]`): in the order of the scenes.
        expected (`int`): scenes of the whole protocol.
        problems (`list[str]`): scenes, frames and files that are not there.
        split (`dict`): where references and targets come from; with `agrees` where a formula and a file both exist.
    """

    items: list[Item] = field(default_factory=list)
    expected: int = 0
    problems: list[str] = field(default_factory=list)
    split: dict = field(default_factory=dict)


def make_plan(
    protocol: Protocol, data: Path, references: Sequence[int], split: Path | None = None, only: Sequence[str] = ()
) -> Plan:
    """
    Opens every scene and looks every frame up; nothing is drawn.

    Args:
        protocol ([`Protocol`]):
            What to run.
        data (`Path`):
            Folder of the data set.
        references (`Sequence[int]`):
            Numbers of references.
        split (`Path`, *optional*):
            The user's split, which goes before a formula and before what ships.
        only (`Sequence[str]`):
            Scenes to take; all when empty. Means over some of them are partial.
    """
    data = Path(data)
    if not data.is_dir():
        raise ValueError(f"{data}: no such folder; {protocol.name} needs {protocol.needs}.")
    if protocol.split == "path" and split is None:
        raise ValueError(f"--splits: {protocol.name} has no split that may ship; it needs {protocol.needs}.")
    names = _names(protocol, data, references)
    unknown = [name for name in only if name not in names]
    if unknown:
        raise ValueError(f"--only: {unknown[0]!r} is no scene of {protocol.name}.")
    plan = Plan(expected=len(names), split={"from": protocol.split if split is None else "path"})
    plan.split["source"] = protocol.source
    if split is not None:
        plan.split |= {"sha256": split_digest(split)}
    for name in tqdm(only or names, desc="looking for scenes", delay=2):
        try:
            placed = open_placed(protocol, data, name)
        except (CaptureError, OSError) as error:
            plan.problems.append(f"scene {name}: {error}")
            continue
        for count in references:
            _plan_scene(plan, protocol, placed, name, count, split)
    return plan


def _names(protocol: Protocol, data: Path, references: Sequence[int]) -> list[str]:
    if protocol.split == "bundled":
        return list(bundled_split(protocol.name, references[0]))
    return scene_names(protocol, data)


def _plan_scene(plan: Plan, protocol: Protocol, placed: PlacedScene, name: str, count: int, split: Path | None):
    try:
        chosen, targets = _frames(protocol, placed, name, count, split)
        if split is not None and protocol.split != "path":
            same = (chosen, targets) == _frames(protocol, placed, name, count, None)
            plan.split["agrees"] = plan.split.get("agrees", True) and same
    except ValueError as error:
        plan.problems.append(f"scene {name}: {error}")
        return
    missing = [frame for frame in (*chosen, *targets) if frame not in placed.places]
    if missing:
        what = f"{', '.join(missing[:5])}{' and more' if len(missing) > 5 else ''}"
        plan.problems.append(f"scene {name}, {count} references: no frame {what} among {len(placed.places)}")
    if not set(chosen) <= set(placed.places):
        return
    targets = [frame for frame in targets if frame in placed.places]
    parts = [targets] if protocol.averaging == "scene" else [[frame] for frame in targets]
    for number, part in enumerate(filter(None, parts)):
        label = f"{name}@{count}" if len(parts) == 1 else f"{name}_{number:02d}@{count}"
        plan.items.append(Item(label.replace("/", "_"), name, count, tuple(chosen), tuple(part)))


def _frames(protocol: Protocol, placed: PlacedScene, name: str, count: int, split: Path | None):
    """Frames of references and targets of one scene."""
    total = len(placed.places)
    if split is not None:
        references, targets = path_split(split, name, count)
    elif protocol.split == "bundled":
        references, targets = bundled_split(protocol.name, count)[name]
    else:
        references, targets = _by_formula(protocol, total, count)
    if protocol.layout == "blender":
        targets = range(200) if targets is None else targets
        return [f"train/{frame}" for frame in references], [f"test/{frame}" for frame in targets]
    if targets is None:
        targets = every_eighth(total)[1]
    return [str(frame) for frame in references], [str(frame) for frame in targets]


def _by_formula(protocol: Protocol, total: int, count: int) -> tuple[Sequence[int], Sequence[int]]:
    match protocol.layout:
        case "gso" | "rtmv":
            if not 1 <= count <= 10:
                raise ValueError(f"{protocol.name} has 10 frames for references, {count} are asked for.")
            return range(count), range(10, 25 if protocol.layout == "gso" else 20)
        case "dtu":
            return dtu_split(count)
        case "dtu_mvs":
            if count not in protocol.references:
                raise ValueError(f"{protocol.name} has splits of 2 and 3 references, not of {count}.")
            return DTU_PAIR_REFERENCES[:count], DTU_PAIR_TARGETS
        case _:
            return llff_split(total, count)


def check_pixels(protocol: Protocol, data: Path, plan: Plan) -> None:
    """
    Decodes every image that the plan uses, so that a damaged download is known before the first sample; what cannot
    be decoded joins `plan.problems`, and its items leave the plan.

    Args:
        protocol ([`Protocol`]): what is run.
        data (`Path`): folder of the data set.
        plan ([`Plan`]): changed in place.
    """
    bad: set[tuple[str, str]] = set()
    for name in tqdm(list(dict.fromkeys(item.scene for item in plan.items)), desc="checking images", delay=2):
        placed = open_placed(protocol, data, name)
        items = [item for item in plan.items if item.scene == name]
        for frame in dict.fromkeys(frame for item in items for frame in (*item.references, *item.targets)):
            try:
                placed.scene.images[placed.places[frame]]
            except (ValueError, OSError) as error:
                plan.problems.append(f"scene {name}, frame {frame}: {error}")
                bad.add((name, frame))
    plan.items = [
        item for item in plan.items if not any((item.scene, f) in bad for f in (*item.references, *item.targets))
    ]


def part_of(items: Sequence[Item], part: str | None) -> list[Item]:
    """
    The items of one process of several: whole scenes, dealt out in turn.

    Args:
        items (`Sequence[Item]`): all of them.
        part (`str`, *optional*): `"3/8"` for the third of eight.
    """
    if part is None:
        return list(items)
    number, _, total = part.partition("/")
    if not (number.isdigit() and total.isdigit() and 1 <= int(number) <= int(total)):
        raise ValueError(f"--part must be such as 3/8, got {part!r}.")
    scenes = list(dict.fromkeys(item.scene for item in items))
    mine = set(scenes[int(number) - 1 :: int(total)])
    return [item for item in items if item.scene in mine]


@dataclass(frozen=True)
class RunSettings:
    """
    What changes a run's numbers beside the protocol.

    Attributes:
        checkpoint (`str`): what is scored.
        size (`int`, *optional*): shorter side at which the model makes views; they are resized to the protocol's.
        seed (`int`): one for all; each item's noise hangs on it, on its name, and on nothing else.
        best_of (`int`): samples of a target of which the one nearest to the truth is scored too, under another name.
        sweep_scale (`bool`): whether the best `camera_scale` of a scene by the truth is scored too, likewise.
        options (`dict`): of the pipeline's call.
    """

    checkpoint: str
    size: int | None = None
    seed: int = 0
    best_of: int = 1
    sweep_scale: bool = False
    options: dict = field(default_factory=dict)


SCALES = tuple(round(0.1 * step, 1) for step in range(1, 21))  # SEVA's sweep


class BenchmarkRun:
    """
    A run, kept in a folder: `run.json` says what it is, `scores/LABEL.jsonl` holds the scores of one item, written
    whole when the item is done, so that a killed run loses one item at most.

    Args:
        protocol ([`Protocol`]): what is run.
        plan ([`Plan`]): what to do.
        settings ([`RunSettings`]): how.
        output (`Path`): the folder. One that holds another run is refused.
        net (`str`, *optional*): of LPIPS, `None` where it is not taken.
    """

    def __init__(self, protocol: Protocol, plan: Plan, settings: RunSettings, output: Path, net: str | None = None):
        self.protocol, self.plan, self.settings, self.output = protocol, plan, settings, Path(output)
        self.content = {"protocol": protocol.record(), "settings": asdict(settings), "split": plan.split, "lpips": net}
        self.content |= {"expected_scenes": plan.expected, "problems": plan.problems}
        self.content["items"] = [
            [item.label, item.scene, item.num_references, len(item.targets)] for item in plan.items
        ]
        self.content = json.loads(json.dumps(self.content))
        (self.output / "scores").mkdir(parents=True, exist_ok=True)
        (self.output / "cost").mkdir(exist_ok=True)
        file = self.output / "run.json"
        if file.is_file():
            _check_same(json.loads(file.read_text(encoding="utf-8")), self.content, file)
        else:
            _write(file, json.dumps(self.content, indent=1) + "\n")

    def run(
        self,
        pipe,
        data: Path,
        lpips: LPIPS | None = None,
        part: str | None = None,
        masks: Path | None = None,
        pictures: bool = False,
    ) -> None:
        """
        Does what is not done yet.

        Args:
            pipe ([`KaleidoViewSynthesisPipeline`], *optional*): what is scored; the nearest reference alone when not
                given.
            data (`Path`): folder of the data set.
            lpips ([`LPIPS`], *optional*): takes the perceptual distance.
            part (`str`, *optional*): `"3/8"` for the third of eight processes.
            masks (`Path`, *optional*): folder of DTU's masks.
            pictures (`bool`): whether views are written, for the report.
        """
        for item in tqdm(part_of(self.plan.items, part), desc="scenes"):
            file = self.output / "scores" / f"{item.label}.jsonl"
            if file.is_file():
                continue
            placed = open_placed(self.protocol, Path(data), item.scene)
            started = time.monotonic()
            views = _Views.of(placed, item, self.protocol)
            made = self._made(pipe, views, item)
            seconds = time.monotonic() - started
            inside = _masks(masks, item, self.protocol)
            lines = []
            for method, images in made.items():
                scores = score_views(images, views.truth, self.protocol, lpips, inside)
                lines += _lines(item, method, views.distances, scores)
            if pictures:
                self._draw(item, views, made)
            cost = {"seconds": seconds, "views": len(item.targets), "bytes": _peak_bytes()}
            _write(self.output / "cost" / f"{item.label}.json", json.dumps(cost) + "\n")
            _write(file, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))

    def _made(self, pipe, views: "_Views", item: Item) -> dict[str, torch.Tensor]:
        """Views of each method; those that look at the truth say so in their names."""
        made = {"nearest reference": nearest_reference(views.images, views.cameras, views.targets)}
        if pipe is None:
            return made
        made["kaleido"] = self._generate(pipe, views, item)
        if self.settings.best_of > 1:
            samples = [made["kaleido"]]
            samples += [self._generate(pipe, views, item, number) for number in range(1, self.settings.best_of)]
            made[f"kaleido, best of {len(samples)} by the truth"] = _nearest_to(views.truth, samples)
        if self.settings.sweep_scale and item.num_references == 1:
            swept = [self._generate(pipe, views, item, camera_scale=scale) for scale in SCALES]
            best = max(swept, key=lambda images: float(psnr(images, views.truth).mean()))
            made["kaleido, camera scale swept by the truth"] = best
        return made

    def _generate(self, pipe, views: "_Views", item: Item, sample: int = 0, **changed) -> torch.Tensor:
        """One sample of each target, at the protocol's size."""
        name = f"{self.settings.seed}/{item.label}/{sample}".encode()
        seed = int.from_bytes(hashlib.sha256(name).digest()[:4], "big")
        height, width = _working_size(views.truth.shape[-2:], self.settings.size or pipe.default_sample_size)
        images = _resized(views.images, height, width)
        cameras, targets = views.cameras.resized(height, width), views.targets.resized(height, width)
        call = {"height": height, "width": width, "output_type": "pt", **self.settings.options, **changed}
        made = pipe(images, cameras, targets, generator=torch.Generator().manual_seed(seed), **call).images
        return _resized(made.float().cpu(), *views.truth.shape[-2:])

    def _draw(self, item: Item, views: "_Views", made: dict[str, torch.Tensor]) -> None:
        folder = self.output / "pictures" / item.label
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(views.images[:4]):
            tensor_to_image(image).save(folder / f"reference_{number}.png")
        for number, frame in enumerate(item.targets):
            name = frame.replace("/", "_")
            tensor_to_image(views.truth[number]).save(folder / f"{name}_truth.png")
            for method in ("kaleido", "nearest reference"):
                if method in made:
                    tensor_to_image(made[method][number]).save(folder / f"{name}_{method.split()[0]}.png")


@dataclass(frozen=True)
class _Views:
    """References and targets as the protocol has them."""

    images: torch.Tensor  # [N, 3, H, W] in [0, 1]
    cameras: Cameras  # [N]
    truth: torch.Tensor  # [M, 3, H, W]
    targets: Cameras  # [M]

    @classmethod
    def of(cls, placed: PlacedScene, item: Item, protocol: Protocol) -> "_Views":
        order = [placed.places[frame] for frame in (*item.references, *item.targets)]
        both = [framed(placed.scene.images[view], placed.scene.cameras[view], protocol) for view in order]
        sizes = {image.size for image, _ in both}
        if len(sizes) > 1:
            raise ValueError(f"scene {item.scene}: {protocol.name} takes images as stored, but they differ in size.")
        pixels, cameras = (
            torch.stack([as_image_tensor(image) for image, _ in both]),
            Cameras.stack([c for _, c in both]),
        )
        count = len(item.references)
        return cls(pixels[:count], cameras[:count], pixels[count:], cameras[count:])

    @property
    def distances(self) -> list[float]:
        """Of each target from the nearest reference."""
        return reference_distances(self.cameras, self.targets).amin(-1).tolist()


def _nearest_to(truth: torch.Tensor, samples: list[torch.Tensor]) -> torch.Tensor:
    stacked = torch.stack(samples)
    best = psnr(stacked, truth.expand_as(stacked)).argmax(0)
    return stacked[best, torch.arange(len(truth))]


def _working_size(size: Sequence[int], shorter: int) -> tuple[int, int]:
    """Height and width that the model makes; cameras are resized with the images, so that no pixel is cut."""
    scale = shorter / min(size)
    return tuple(shorter if side == min(size) else max(16, round(side * scale / 16) * 16) for side in size)


def _resized(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    if tuple(images.shape[-2:]) == (height, width):
        return images
    return F.interpolate(images, (height, width), mode="bicubic", antialias=True).clamp(0, 1)


def _peak_bytes() -> int:
    """Most memory so far: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def score_views(
    views: torch.Tensor,
    truth: torch.Tensor,
    protocol: Protocol,
    lpips: LPIPS | None = None,
    masks: torch.Tensor | None = None,
) -> dict[str, list[float]]:
    """
    Each view's scores by the recipe of a protocol.

    Args:
        views (`torch.Tensor` of shape `[M, 3, H, W]`): in [0, 1].
        truth (`torch.Tensor` of shape `[M, 3, H, W]`): in [0, 1].
        protocol ([`Protocol`]): whose recipe.
        lpips ([`LPIPS`], *optional*): takes the perceptual distance.
        masks (`torch.Tensor` of shape `[M, 1, H, W]`, *optional*): 1 on the object.
    """
    if protocol.eight_bit != "no":
        views = quantized(views, protocol.eight_bit == "truncate")
    scores = {"psnr": psnr(views, truth).tolist(), "ssim": ssim_variant(views, truth, protocol.ssim).tolist()}
    scores["mse"] = (views.double() - truth.double()).square().mean((1, 2, 3)).tolist()
    scores["lpips"] = (
        [None] * len(views)
        if lpips is None
        else [float(lpips(view[None], true[None])) for view, true in zip(views, truth)]
    )
    if masks is not None:
        inside = (masks == 1).double()
        squares = ((views.double() - truth.double()).square() * inside).sum((1, 2, 3))
        scores["psnr_masked"] = (-10 * torch.log10(squares / (3 * inside.sum((1, 2, 3))))).tolist()
        white = [image * masks + (1 - masks) for image in (views, truth)]
        scores["ssim_masked"] = ssim_variant(*white, protocol.ssim).tolist()
    return scores


def _masks(folder: Path | None, item: Item, protocol: Protocol) -> torch.Tensor | None:
    """DTU's, `scanN/NNN.png` or `scanN/mask/NNN.png`, at the protocol's size."""
    if folder is None or not protocol.masked:
        return None
    masks = []
    for frame in item.targets:
        name = f"{int(frame):03d}.png"
        found = [path for path in (folder / item.scene / name, folder / item.scene / "mask" / name) if path.is_file()]
        if not found:
            raise ValueError(f"--masks: {folder / item.scene} has no {name}.")
        mask = load_mask(found[0]).convert("L").resize(protocol.size[::-1], PIL.Image.Resampling.NEAREST)
        masks.append(as_image_tensor(mask)[:1])
    return torch.stack(masks)


def _lines(item: Item, method: str, distances: list[float], scores: dict[str, list]) -> list[dict]:
    shared = {"label": item.label, "scene": item.scene, "references": item.num_references, "method": method}
    return [
        {**shared, "target": frame, "distance": distances[number]}
        | {name: _finite(values[number]) for name, values in scores.items()}
        for number, frame in enumerate(item.targets)
    ]


def _finite(value: float | None) -> float | None:
    """JSON has neither NaN nor infinity: null, as for equal images."""
    return value if value is not None and math.isfinite(value) else None


def _write(file: Path, text: str) -> None:
    """Whole or not at all, also where several processes write the same file."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)


def _check_same(known: dict, mine: dict, file: Path) -> None:
    different = [key for key in mine if known.get(key) != mine[key]]
    if different:
        raise ValueError(f"{file}: the folder holds another run (its {', '.join(different)} differ): {OR_OVERWRITE}")


def remove_run(output: Path) -> None:
    """Removes a run of a protocol from its folder, and nothing else.

    Args:
        output (`Path`): the folder.
    """
    if (output / "run.json").is_file():
        remove_written(output, "scores", "cost", "pictures", "run.json")


def merge_runs(folders: Sequence[Path], output: Path) -> None:
    """
    Brings the parts of a run together: those of several machines, which ran with `--part`.

    Args:
        folders (`Sequence[Path]`): of the parts; their `run.json` must be the same.
        output (`Path`): folder of the whole.
    """
    output = Path(output)
    runs = [(Path(folder) / "run.json") for folder in folders]
    missing = [file for file in runs if not file.is_file()]
    if missing:
        raise ValueError(f"--merge: {missing[0]} is not there.")
    first = json.loads(runs[0].read_text(encoding="utf-8"))
    for file in runs[1:]:
        _check_same(json.loads(file.read_text(encoding="utf-8")), first, file)
    for name in ("scores", "cost", "pictures"):
        (output / name).mkdir(parents=True, exist_ok=True)
    if (output / "run.json").is_file():
        _check_same(json.loads((output / "run.json").read_text(encoding="utf-8")), first, output / "run.json")
    _write(output / "run.json", runs[0].read_text(encoding="utf-8"))
    for folder in map(Path, folders):
        _merge_folder(folder, output)


def _merge_folder(folder: Path, output: Path) -> None:
    for file in sorted((folder / "scores").glob("*.jsonl")):
        mine, text = output / "scores" / file.name, file.read_text(encoding="utf-8")
        if mine.is_file() and mine.read_text(encoding="utf-8") != text:
            raise ValueError(f"--merge: {file} and another part scored the same scene, and differ.")
        _write(mine, text)
    for file in sorted((folder / "cost").glob("*.json")):
        _write(output / "cost" / file.name, file.read_text(encoding="utf-8"))
    for file in sorted((folder / "pictures").glob("*/*.png")):
        place = output / "pictures" / file.parent.name
        place.mkdir(exist_ok=True)
        (place / file.name).write_bytes(file.read_bytes())
