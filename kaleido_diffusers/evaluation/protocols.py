"""Published evaluation protocols, one record each: which scenes, which views, which pixels, which numbers."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import PIL.Image

from ..geometry.cameras import Cameras


__all__ = ["PROTOCOLS", "Protocol", "dtu_split", "every_eighth", "framed", "framing", "llff_split", "protocol_named"]

_FILTERS = {
    "bicubic": PIL.Image.Resampling.BICUBIC,
    "lanczos": PIL.Image.Resampling.LANCZOS,
    "area": PIL.Image.Resampling.BOX,
    "linear": PIL.Image.Resampling.BILINEAR,
}


@dataclass(frozen=True)
class Protocol:
    """
    What has to be the same for two numbers to stand in one table.

    Attributes:
        name (`str`): what the command line calls it.
        layout (`str`): how the data set lies on disk (see `layouts.py`).
        scenes (`tuple[str, ...]`): their names; those of the split where empty.
        references (`tuple[int, ...]`): published numbers of references; 0 for all that are not targets.
        split (`"formula"`, `"bundled"` or `"path"`): where reference and target frames come from.
        source (`str`): who published the split.
        size (`tuple[int, int]`, *optional*): height and width that are scored; as stored when not given.
        fit (`"stretch"`, `"cover"`, `"cover_up"` or `"native"`): how images get there; `cover_up` rounds sides up.
        filter (`str`): of the resize.
        background (`str`): `"blend"` for white behind alpha, `"cut"` for white only where alpha is 0.
        ssim (`str`): key of the variant (see [`ssim_variant`]).
        lpips (`str`, *optional*): net of the perceptual distance; `None` where none was published.
        eight_bit (`"no"`, `"round"` or `"truncate"`): whether scores are taken on saved 8-bit images.
        averaging (`str`): `"scene"` for the mean over images and then scenes, `"item"` for that over items.
        needs (`str`): what to download, and how it must lie.
        poses (`str`): how the source normalises poses; what we do is the same in every protocol.
        masked (`bool`): whether scores inside the object's mask are taken too.
        downscale (`int`, *optional*): which `images_N` to take.
        note (`str`): what is not certain.
    """

    name: str
    layout: str
    scenes: tuple[str, ...]
    references: tuple[int, ...]
    split: Literal["formula", "bundled", "path"]
    source: str
    size: tuple[int, int] | None
    fit: Literal["stretch", "cover", "cover_up", "native"]
    filter: str
    background: Literal["blend", "cut"]
    ssim: str
    lpips: Literal["alex", "vgg"] | None
    eight_bit: Literal["no", "round", "truncate"]
    averaging: Literal["scene", "item"]
    needs: str
    poses: str
    masked: bool = False
    downscale: int | None = None
    note: str = ""

    def record(self) -> dict:
        """Plain values, for the file of results."""
        return asdict(self)


GSO30 = (
    "alarm backpack bell blocks chicken cream elephant grandfather grandmother hat leather lion lunch_bag mario oil"
    " school_bus1 school_bus2 shoe shoe1 shoe2 shoe3 soap sofa sorter sorting_board stucking_cups teapot toaster train"
    " turtle"
)
NERF_SYNTHETIC = "chair drums ficus hotdog lego materials mic ship"
LLFF = "fern flower fortress horns leaves orchids room trex"
DTU_SCANS = (8, 21, 30, 31, 34, 38, 40, 41, 45, 55, 63, 82, 103, 110, 114)
DTU_TRAIN = (25, 22, 28, 40, 44, 48, 0, 8, 13)
DTU_EXCLUDED = (*range(3, 8), *range(16, 22), *range(36, 40))
DTU_PAIR_TARGETS = (32, 24, 23, 44)
DTU_PAIR_REFERENCES = (33, 31, 43)
MIPNERF360 = dict.fromkeys("bicycle flowers garden stump treehill".split(), 4)
MIPNERF360 |= dict.fromkeys("bonsai counter kitchen room".split(), 2)  # which images_N each comes at


def llff_split(num_frames: int, num_references: int) -> tuple[list[int], list[int]]:
    """RegNeRF's split of LLFF: every 8th frame is a target; references are spread evenly over the rest, rounded.

    Args:
        num_frames (`int`): of the scene.
        num_references (`int`): how many; 0 for all.
    """
    targets = list(range(0, num_frames, 8))
    rest = [index for index in range(num_frames) if index % 8]
    if num_references == 0:
        return rest, targets
    if num_references > len(rest):
        raise ValueError(f"{num_references} references are asked for, {len(rest)} frames are not targets.")
    step = (len(rest) - 1) / max(num_references - 1, 1)
    return [rest[round(number * step)] for number in range(num_references)], targets  # both round halves to even


def every_eighth(num_frames: int) -> tuple[list[int], list[int]]:
    """The full-view split of Mip-NeRF 360: every 8th frame is a target, all others are references.

    Args:
        num_frames (`int`): of the scene.
    """
    return llff_split(num_frames, 0)


def dtu_split(num_references: int) -> tuple[list[int], list[int]]:
    """RegNeRF's split of a DTU scan: the first of nine frames; 25 of the others are targets.

    Args:
        num_references (`int`): how many, from 1 to 9.
    """
    if not 1 <= num_references <= len(DTU_TRAIN):
        raise ValueError(f"DTU has references for 1 to {len(DTU_TRAIN)} views, got {num_references}.")
    left = [frame for frame in range(49) if frame not in DTU_TRAIN and frame not in DTU_EXCLUDED]
    return list(DTU_TRAIN[:num_references]), left


def framing(height: int, width: int, protocol: Protocol) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Sizes after resizing, the first (row, column) kept, and the sizes kept, of an image of a protocol.

    Args:
        height (`int`): of the stored image.
        width (`int`): likewise.
        protocol ([`Protocol`]): whose recipe to take.
    """
    if protocol.size is None or protocol.fit == "native":
        return (height, width), (0, 0), (height, width)
    rows, columns = protocol.size
    if protocol.fit == "stretch":
        return (rows, columns), (0, 0), (rows, columns)
    scale = max(rows / height, columns / width)
    if protocol.fit == "cover_up":
        resized = math.ceil(round(height * scale, 6)), math.ceil(round(width * scale, 6))
        return resized, (resized[0] // 2 - rows // 2, resized[1] // 2 - columns // 2), (rows, columns)
    resized = round(height * scale), round(width * scale)
    return resized, ((resized[0] - rows) // 2, (resized[1] - columns) // 2), (rows, columns)


def framed(image: PIL.Image.Image, camera: Cameras, protocol: Protocol) -> tuple[PIL.Image.Image, Cameras]:
    """
    An image and its camera as the protocol scores them, moved together.

    Args:
        image (`PIL.Image.Image`): as stored.
        camera (`Cameras` of shape `[]`): its own.
        protocol ([`Protocol`]): whose recipe to take.
    """
    (rows, columns), (top, left), (height, width) = framing(image.height, image.width, protocol)
    if (rows, columns) != (image.height, image.width):
        image = image.resize((columns, rows), _FILTERS[protocol.filter])
    image = image.crop((left, top, left + width, top + height))
    return image, camera.resized(rows, columns).cropped(top, left, height, width)


def _eschernet(name: str, layout: str, scenes: Sequence[str], needs: str, **options) -> Protocol:
    shared = {"references": (1, 2, 3, 5, 10), "split": "formula", "source": "EscherNet, arXiv 2402.03908"}
    shared |= {"size": (256, 256), "fit": "stretch", "filter": "bicubic", "background": "cut", "ssim": "c"}
    shared |= {"lpips": "alex", "eight_bit": "round", "averaging": "scene", "poses": "as the renders have them"}
    return Protocol(name, layout, tuple(scenes), needs=needs, **(shared | options))


def _feed_forward(name: str, layout: str, references: tuple[int, ...], source: str, needs: str, **options) -> Protocol:
    """pixelSplat's recipe, and what differs from it."""
    shared = {"scenes": (), "split": "bundled", "size": (256, 256), "fit": "cover", "filter": "lanczos"}
    shared |= {"background": "blend", "ssim": "b", "lpips": "vgg", "eight_bit": "no", "averaging": "scene"}
    shared |= {"poses": "contexts at distance 1"}
    return Protocol(name, layout, references=references, source=source, needs=needs, **(shared | options))


def _regnerf(name: str, layout: str, scenes: Sequence[str], needs: str, **options) -> Protocol:
    shared = {"references": (3, 6, 9), "split": "formula", "source": "RegNeRF", "size": None, "fit": "native"}
    shared |= {"filter": "area", "background": "blend", "ssim": "f", "lpips": None, "eight_bit": "no"}
    shared |= {"averaging": "scene", "poses": "recentred, divided by the largest distance"}
    note = "the released code gives NaN for LPIPS, so that its net is not known; the range of its SSIM hangs on the"
    shared |= {"note": f"{note} version of scikit-image"}
    return Protocol(name, layout, tuple(scenes), needs=needs, **(shared | options))


def _by_path(name: str, references: tuple[int, ...], source: str, **options) -> Protocol:
    shared = {"layout": "folders", "scenes": (), "split": "path", "size": None, "fit": "native", "filter": "area"}
    shared |= {"background": "blend", "ssim": "e", "lpips": None, "eight_bit": "no", "averaging": "scene"}
    shared |= {"needs": "DATA/<scene> in any format that is read, and --splits: <scene>/train_test_split_N.json"}
    shared |= {"poses": "not published"}
    return Protocol(name, references=references, source=source, **(shared | options))


def _seva(dataset: str, letter: str, references: tuple[int, ...], **options) -> Protocol:
    shared = {"size": (576, 576), "fit": "cover_up", "ssim": "a", "lpips": "alex", "eight_bit": "truncate"}
    shared |= {"poses": "mean camera, first camera at distance 2"}
    shared |= {"note": "whether means are taken over images or scenes is not published: both are written"}
    return _by_path(
        f"seva-{dataset}-{letter}", references, "Stable Virtual Camera, arXiv 2503.14489", **(shared | options)
    )


_SMALL = {"size": (256, 256), "note": "published from samples at 576 px, resized to 256"}
_SEVA = (
    ("re10k", "R", (1, 3)), ("llff", "R", (1, 3)), ("dtu", "R", (1, 3)), ("co3d", "R", (1, 3)),
    ("mipnerf360", "R", (1, 3, 6)), ("re10k-viewcrafter", "V", (1,)), ("co3d-viewcrafter", "V", (1,)),
    ("tnt-viewcrafter", "V", (1,)), ("wildgbd-easy", "O", (3,)), ("wildgbd-hard", "O", (1, 3, 6)),
    ("dl3dv10", "O", (1, 3, 6)), ("dl3dv140", "L", (32,)), ("tnt-longlrm", "L", (32,)), ("tnt", "O", (1, 3, 6, 9)),
)  # fmt: skip
_DTU_NEEDS = "DATA/Rectified/scanN/rect_NNN_3_r5000.png, DATA/Calibration/cal18/pos_NNN.txt"
_CHUNKS = "pixelSplat's chunks (DATA/test/*.torch, index.json), or DATA/<key>.txt with its frames in DATA/<key>/"
_DL3DV = "DL3DV-Benchmark: DATA/<hash>/transforms.json (or in nerfstudio/) with"

_ALL = (
    _eschernet("gso30-eschernet", "gso", GSO30.split(), "DATA/<object>/render_mvs_25/model/{000..024}.{png,npy}"),
    _eschernet(
        "rtmv-eschernet", "rtmv", (), "DATA/<scene>/{00000..}.{exr,json} of 40_scenes/google_scanned; pip install"
        " openexr", background="blend", note="which ten scenes is the download's own choice: those in DATA are taken",
    ),
    _eschernet(
        "nerfsynthetic-eschernet", "blender", NERF_SYNTHETIC.split(),
        "DATA/<scene>/transforms_{train,test}.json, and --splits: metrics/NeRF_idx of EscherNet's repository",
        references=(1, 2, 3, 5, 10, 20, 50, 100), split="path", poses="scaled by 1.5 / largest radius",
    ),
    _regnerf("llff-regnerf", "llff", LLFF.split(), "nerf_llff_data: DATA/<scene>/poses_bounds.npy with images_8/",
             downscale=8),
    _regnerf(
        "dtu-regnerf", "dtu", [f"scan{scan}" for scan in DTU_SCANS], f"{_DTU_NEEDS}; --masks for masked scores",
        size=(300, 400), fit="stretch", masked=True,
    ),
    _feed_forward(
        "dtu-mvsplat", "dtu_mvs", (2, 3), "MVSplat", "DATA/Rectified/scanN_train/rect_NNN_3_r5000.png,"
        " DATA/Cameras/train/NNNNNNNN_cam.txt", split="formula", averaging="item",
        scenes=tuple(f"scan{scan}" for scan in (1, *DTU_SCANS)),
    ),
    Protocol(
        "mipnerf360-full", "mipnerf360", tuple(MIPNERF360), (0,), "formula", "nerfbaselines", None, "native", "area",
        "blend", "e", "vgg", "no", "scene", "DATA/<scene>/sparse/0 with images_4/ (outdoors) or images_2/ (indoors)",
        "as COLMAP has them",
    ),
    _feed_forward("re10k-pixelsplat", "re10k", (2,), "pixelSplat, arXiv 2312.12337", f"RealEstate10K: {_CHUNKS}"),
    _feed_forward("acid-pixelsplat", "re10k", (2,), "pixelSplat, arXiv 2312.12337", f"ACID: {_CHUNKS}"),
    _feed_forward("dl3dv-longlrm", "dl3dv", (16, 32), "Long-LRM", f"{_DL3DV} images_4/", size=(540, 960),
                  filter="linear", ssim="c", downscale=4, poses="mean camera, divided by the largest distance",
                  note="lenses are undone by this project's own arithmetic, not by OpenCV's"),
    _feed_forward("tnt-longlrm", "tnt", (16, 32), "Long-LRM", "DATA/{train,truck}: COLMAP of the 3DGS pack",
                  size=(540, 960), filter="linear", ssim="c", poses="mean camera, divided by the largest distance"),
    _feed_forward("dl3dv-depthsplat", "dl3dv", (2, 4, 6), "DepthSplat", f"{_DL3DV} images_8/", size=(256, 448),
                  downscale=8, note="targets include the references: that is the protocol"),
    *(_seva(*entry) for entry in _SEVA),
    _seva("re10k-4dim", "D", (1,), **_SMALL), _seva("re10k-pixelsplat", "P", (2,), **_SMALL),
    *(
        _by_path(f"reconfusion-{dataset}", (3, 6, 9), "ReconFusion", note="metric code and net are not published")
        for dataset in ("re10k", "llff", "dtu", "co3d", "mipnerf360")
    ),
)  # fmt: skip

PROTOCOLS = {protocol.name: protocol for protocol in _ALL}


def protocol_named(name: str) -> Protocol:
    """
    A protocol by its name; `ValueError` with the names there are.

    Args:
        name (`str`): such as `"gso30-eschernet"`.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"--protocol: {name!r} is none of {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]
