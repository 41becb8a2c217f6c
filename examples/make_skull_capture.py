"""Makes the second sample capture: nine neighbouring photos of a skull, three of them kept back for tests.

The photos are by alansartlog ("Photogrammetry Test Set: Skull - Cameramoves - Flash - No Background", CC BY 4.0), with
the cameras of the COLMAP run that HiimelOyunUhaan (github.com/KarmenKei) hosts. Cropped to squares, made smaller, the
lens's distortion undone.

    python examples/make_skull_capture.py --capture path/to/skull --output kaleido_diffusers/captures/skull
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from kaleido_diffusers import load_scene
from kaleido_diffusers.captures.images import tensor_to_image
from kaleido_diffusers.files import write_json


@dataclass
class SkullCapture:
    """Nine photos of the skull."""

    capture: Path
    """The whole set, 66 photos, with `transforms.json`."""
    output: Path
    """Folder of the nine."""
    size: int = 384
    """Height and width in pixels."""
    quality: int = 90
    """Of JPEG."""

    def main(self) -> None:
        # ------------------------------------------------------------------------------------------------ choose
        scene = load_scene(self.capture)
        ahead = scene.cameras.world_from_camera[:, :3, 2]
        angles = torch.rad2deg((ahead @ ahead.T).clamp(-1, 1).acos())
        nearest = angles.argsort(dim=-1)[:, :9]
        middle = int(angles.gather(1, nearest).sum(-1).argmin())  # the nine that look most alike
        views = sorted(nearest[middle].tolist())
        among = angles[views][:, views]
        test = [views[place] for place in among.sum(-1).argsort()[:3]]  # the innermost are made from the others

        # ------------------------------------------------------------------------------------------------ write
        images, cameras = scene.fitted(views, self.size, self.size)
        (self.output / "images").mkdir(parents=True, exist_ok=True)
        frames, names = [], {"train_filenames": [], "test_filenames": []}
        opengl = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))
        for view, image, pose in zip(views, images, cameras.world_from_camera):
            path = f"images/{view:02d}.jpg"
            tensor_to_image(image).save(self.output / path, quality=self.quality, subsampling=0)
            frames.append({"file_path": path, "transform_matrix": (pose @ opengl).tolist()})
            names["test_filenames" if view in test else "train_filenames"].append(path)
        (fx, _, cx), (_, fy, cy), _ = cameras.intrinsics[0].tolist()
        lens = {"w": self.size, "h": self.size, "fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy}
        write_json(self.output / "transforms.json", {"camera_model": "PINHOLE", **lens, **names, "frames": frames})
        print(f"wrote {self.output}: {len(views)} photos, {len(test)} of them kept back")


if __name__ == "__main__":
    tyro.cli(SkullCapture).main()
