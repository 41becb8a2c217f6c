"""Counts and frames of the protocols' splits, formulas and shipped files, against what their sources publish:
`python -m benchmarks.check_protocols`."""

import sys

from kaleido_diffusers.evaluation.protocols import (
    DTU_PAIR_REFERENCES,
    DTU_PAIR_TARGETS,
    MIPNERF360,
    PROTOCOLS,
    dtu_split,
    every_eighth,
    llff_split,
)
from kaleido_diffusers.evaluation.split_files import bundled_split


__all__ = ["checks", "main"]

LLFF_FRAMES = {"fern": 20, "flower": 34, "fortress": 42, "horns": 62, "leaves": 26, "orchids": 25, "room": 41}
LLFF_FRAMES |= {"trex": 55}
MIPNERF360_FRAMES = {"bicycle": 194, "flowers": 173, "garden": 185, "stump": 125, "treehill": 141}
MIPNERF360_FRAMES |= {"bonsai": 292, "counter": 240, "kitchen": 279, "room": 311}
DTU_TARGETS = [1, 2, 9, 10, 11, 12, 14, 15, 23, 24, 26, 27, 29, 30, 31, 32, 33, 34, 35, 41, 42, 43, 45, 46, 47]


def checks() -> list[tuple[str, object, object]]:
    """What is checked: a name, what this package gives, what the source publishes."""
    return [*_objects(), *_formulas(), *_pairs("re10k", 6474), *_pairs("acid", 1595), *_files()]


def _objects() -> list[tuple[str, object, object]]:
    rows = [("gso30-eschernet: objects", len(PROTOCOLS["gso30-eschernet"].scenes), 30)]
    rows += [("nerfsynthetic-eschernet: scenes", len(PROTOCOLS["nerfsynthetic-eschernet"].scenes), 8)]
    rows += [("dtu-mvsplat: scans", len(PROTOCOLS["dtu-mvsplat"].scenes), 16)]
    return rows + [("dtu-regnerf: scans", len(PROTOCOLS["dtu-regnerf"].scenes), 15)]


def _formulas() -> list[tuple[str, object, object]]:
    rows = [("llff-regnerf: scenes", sorted(LLFF_FRAMES), sorted(PROTOCOLS["llff-regnerf"].scenes))]
    counts = [len(llff_split(frames, 3)[1]) for frames in LLFF_FRAMES.values()]
    rows += [("llff-regnerf: targets of each scene", counts, [3, 5, 6, 8, 4, 4, 6, 7])]
    rows += [("llff-regnerf: fern, 3 references", llff_split(20, 3), ([1, 10, 19], [0, 8, 16]))]
    for count in (3, 6, 9):
        order = [25, 22, 28, 40, 44, 48, 0, 8, 13][:count]
        rows += [(f"dtu-regnerf: {count} references and targets", dtu_split(count), (order, DTU_TARGETS))]
    rows += [("mipnerf360-full: scenes", sorted(MIPNERF360), sorted(MIPNERF360_FRAMES))]
    counts = [len(every_eighth(frames)[1]) for frames in MIPNERF360_FRAMES.values()]
    return rows + [("mipnerf360-full: targets of each scene", counts, [25, 22, 24, 16, 18, 37, 30, 35, 39])]


def _pairs(dataset: str, scenes: int) -> list[tuple[str, object, object]]:
    """pixelSplat's indexes."""
    index = bundled_split(f"{dataset}-pixelsplat", 2)
    rows = [(f"{dataset}-pixelsplat: scenes", len(index), scenes)]
    rows += [(f"{dataset}-pixelsplat: contexts, targets", {(len(c), len(t)) for c, t in index.values()}, {(2, 3)})]
    if dataset == "re10k":
        gaps = [context[1] - context[0] for context, _ in index.values()]
        shared = [sum(frame in context for frame in targets) for context, targets in index.values()]
        rows += [("re10k-pixelsplat: least and most gap", (min(gaps), max(gaps)), (45, 136))]
        rows += [("re10k-pixelsplat: mean gap", round(sum(gaps) / len(gaps)), 66)]
        found = (sum(shared), sum(map(bool, shared)))
        rows += [("re10k-pixelsplat: targets that are contexts, their scenes", found, (583, 575))]
    return rows


def _files() -> list[tuple[str, object, object]]:
    """DL3DV, Tanks and Temples, and MVSplat's DTU, where formula and file both exist."""
    rows = []
    for count in (16, 32):
        index = bundled_split("dl3dv-longlrm", count)
        rows += [(f"dl3dv-longlrm, {count}: scenes", len(index), 140)]
        lengths = {len(references) for references, _ in index.values()}
        rows += [(f"dl3dv-longlrm, {count}: references", lengths, {count})]
        among = sum(frame % 8 == 0 for references, _ in index.values() for frame in references)
        rows += [(f"dl3dv-longlrm, {count}: references that are targets", among, 0)]
        rows += [(f"tnt-longlrm, {count}: scenes", sorted(bundled_split("tnt-longlrm", count)), ["train", "truck"])]
    for count in (2, 4, 6):
        index = bundled_split("dl3dv-depthsplat", count)
        rows += [(f"dl3dv-depthsplat, {count}: scenes", len(index), 140)]
        whole = all(targets == list(range(50)) and len(context) == count for context, targets in index.values())
        rows += [(f"dl3dv-depthsplat, {count}: targets are frames 0 to 49", whole, True)]
    for count in (2, 3):
        formula = {
            f"{scan}_train_{number:02d}": (list(DTU_PAIR_REFERENCES[:count]), [target])
            for scan in PROTOCOLS["dtu-mvsplat"].scenes
            for number, target in enumerate(DTU_PAIR_TARGETS)
        }
        agree = bundled_split("dtu-mvsplat", count) == formula
        rows += [(f"dtu-mvsplat, {count}: formula and file agree", agree, True)]
    return rows


def main() -> int:
    """Prints every check; returns the number of those that fail."""
    failed = 0
    for name, mine, published in checks():
        failed += mine != published
        print(f"{'ok  ' if mine == published else 'FAIL'} {name}: {mine}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
