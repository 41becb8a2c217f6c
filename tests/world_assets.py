"""Small assets to draw worlds of."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import trimesh


def photo(seed: int, size=(48, 32)) -> PIL.Image.Image:
    rng = np.random.default_rng(seed)
    coarse = PIL.Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    return coarse.resize(size, PIL.Image.Resampling.BICUBIC)


def make_assets(root: Path) -> Path:
    """A folder as users make it: photos, textures, panoramas, meshes, a scene."""
    for name in ("photos", "meshes", "scenes", "panoramas"):
        (root / name).mkdir(parents=True)
    entries = []
    for number in range(40):
        name = f"{'brick' if number % 2 else 'view'}_{chr(97 + number % 26)}{chr(97 + number // 26)}.jpg"
        photo(number).save(root / "photos" / name)
        entries.append({"file": name, "kind": "texture" if number % 2 else "photo"})
    (root / "photos" / "index.json").write_text(json.dumps(entries))
    for number in range(20):
        photo(100 + number, (64, 32)).save(root / "panoramas" / f"pano_{chr(97 + number)}.jpg")
    shapes = [trimesh.creation.box((1, 2, 0.5)), trimesh.creation.icosphere(2), trimesh.creation.cylinder(0.4, 1.0)]
    for number in range(24):
        shapes[number % 3].export(root / "meshes" / f"thing_{chr(97 + number)}.glb")
    floor = trimesh.creation.box((6, 3, 6))
    floor.apply_translation((0, 1.5, 0))
    things = [floor]
    for number in range(24):
        shelf = trimesh.creation.box((0.5, 0.6 + 0.08 * number, 0.4))
        shelf.apply_translation((number % 6 - 2.6, 0.3 + 0.04 * number, number // 6 * 1.5 - 2.4))
        shelf.visual.face_colors = np.random.default_rng(number).integers(0, 255, (12, 3))
        things.append(shelf)
    trimesh.Scene(things).export(root / "scenes" / "flat.glb")
    return root
