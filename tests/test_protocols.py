"""Published protocols end to end on data sets made here in their published form, and the laws that they rest on."""

import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import make_pipeline, random_poses, shared

from kaleido_diffusers import Cameras, cli
from kaleido_diffusers.evaluation.benchmark import make_plan, merge_runs, part_of
from kaleido_diffusers.evaluation.benchmark_report import model_index, read_run, summarize, write_report
from kaleido_diffusers.evaluation.layouts import open_placed
from kaleido_diffusers.evaluation.protocols import PROTOCOLS, dtu_split, framed, framing, llff_split
from kaleido_diffusers.evaluation.published import PUBLISHED, differences
from kaleido_diffusers.evaluation.split_files import bundled_split, path_split
from kaleido_diffusers.geometry.cameras import convert_axes, invert_rigid


def picture(number: int, height: int, width: int) -> PIL.Image.Image:
    """Smooth, and another one for each number."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(7 * x + number), np.cos(5 * y + 2 * number), np.sin(4 * (x + y) - number)]
    return PIL.Image.fromarray(((np.stack(waves, -1) * 0.5 + 0.5) * 255).astype(np.uint8))


def poses(count: int, seed: int = 0) -> torch.Tensor:
    return random_poses(count, generator=torch.Generator().manual_seed(seed)).double()


def make_gso(root: Path, objects=("alarm", "turtle")) -> Path:
    """EscherNet's renders: `camera_from_world` with Blender's axes; what is transparent is not black by accident."""
    for seed, name in enumerate(objects):
        folder = root / name / "render_mvs_25/model"
        folder.mkdir(parents=True)
        for number, pose in enumerate(poses(25, seed)):
            camera = invert_rigid(convert_axes(pose, "opencv", "opengl"))[:3]
            np.save(folder / f"{number:03d}.npy", camera.numpy().astype(np.float32))
            image = picture(number + seed, 64, 64).convert("RGBA")
            image.putalpha(PIL.Image.fromarray(np.tri(64, dtype=np.uint8) * 255))
            image.save(folder / f"{number:03d}.png")
    return root


def make_llff(root: Path, scenes=("fern",), count: int = 20) -> Path:
    for name in scenes:
        folder = root / name / "images_8"
        folder.mkdir(parents=True)
        rows = []
        for number, pose in enumerate(poses(count)):
            picture(number, 24, 32).save(folder / f"image{number:03d}.png")
            right, down, forward, center = pose[:3].unbind(-1)
            matrix = torch.stack([down, right, -forward, center, torch.tensor([192.0, 256.0, 200.0])], -1)
            rows.append(torch.cat([matrix.flatten(), torch.tensor([1.0, 9.0])]))
        np.save(folder.parent / "poses_bounds.npy", torch.stack(rows).numpy())
    return root


def make_dtu(root: Path, scan: str = "scan8") -> tuple[Path, torch.Tensor, torch.Tensor]:
    (root / "Rectified" / scan).mkdir(parents=True)
    (root / "Calibration/cal18").mkdir(parents=True)
    lens = torch.tensor([[2900.0, 0, 820], [0, 2890, 610], [0, 0, 1]], dtype=torch.float64)
    placed = poses(49)
    for number, pose in enumerate(placed):
        picture(number, 60, 80).save(root / "Rectified" / scan / f"rect_{number + 1:03d}_3_r5000.png")
        projection = 0.37 * lens @ invert_rigid(pose)[:3]
        np.savetxt(root / f"Calibration/cal18/pos_{number + 1:03d}.txt", projection.numpy())
    return root, lens, placed


def make_re10k(root: Path, key: str, chunked: bool) -> Path:
    """A clip as pixelSplat packs it, or as RealEstate10K lists it beside extracted frames."""
    context, targets = bundled_split("re10k-pixelsplat", 2)[key]
    count, rows, images = max(*context, *targets) + 1, [], []
    for number, pose in enumerate(poses(count)):
        lens = [0.5, 0.5 * 64 / 36, 0.5, 0.5]
        rows.append([*lens, 0.0, 0.0, *invert_rigid(pose)[:3].flatten().tolist()])
        content = io.BytesIO()
        picture(number, 36, 64).save(content, "PNG")
        images.append(content.getvalue())
    if chunked:
        (root / "test").mkdir(parents=True)
        packed = [torch.frombuffer(bytearray(image), dtype=torch.uint8) for image in images]
        example = {"key": key, "url": "", "timestamps": torch.arange(count), "cameras": torch.tensor(rows)}
        torch.save([{**example, "images": packed}], root / "test/000000.torch")
        (root / "test/index.json").write_text(json.dumps({key: "000000.torch"}))
        return root
    (root / key).mkdir(parents=True)
    lines = [f"{number} {' '.join(map(repr, row))}" for number, row in enumerate(rows)]
    (root / f"{key}.txt").write_text("\n".join(["https://example.org/clip", *lines]) + "\n")
    for number, image in enumerate(images):
        (root / key / f"{number}.png").write_bytes(image)
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline") / "tiny"
    make_pipeline(num_layers=1, sample_size=16).save_pretrained(folder)
    return folder


def evaluate(data: Path, protocol: str, output: Path, *more: str, checkpoint: Path | str = "none") -> int:
    words = ["evaluate", str(data), "--protocol", protocol, "--checkpoint", str(checkpoint), "--output", str(output)]
    return cli.main([*words, "--steps", "1", "--device", "cpu", *map(str, more)])


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("stored", [(540, 960), (512, 512), (60, 80), (700, 401)])
def test_a_point_lands_where_its_pixel_does(name, stored):
    """Projected after framing = projected before, moved as the pixels were."""
    protocol = PROTOCOLS[name]
    pose = poses(1)[0]
    camera = Cameras.from_fov(pose[None], 50.0, list(stored))[0]
    point = (pose @ torch.tensor([0.1, -0.05, 2.0, 1.0], dtype=torch.float64))[:3][None]
    before, _ = camera.project(point)
    image, moved = framed(PIL.Image.new("RGB", stored[::-1]), camera, protocol)
    after, _ = moved.project(point)
    resized, (top, left), kept = framing(*stored, protocol)
    scale = torch.tensor([resized[1] / stored[1], resized[0] / stored[0]], dtype=torch.float64)
    expected = before * scale - torch.tensor([left, top], dtype=torch.float64)
    torch.testing.assert_close(after, expected)
    assert (image.height, image.width) == kept == tuple(moved.image_sizes.tolist())
    assert top >= 0 and left >= 0 and top + kept[0] <= resized[0] and left + kept[1] <= resized[1]


def test_pixels_move_as_the_cameras_say():
    """A bright spot is found, after framing, where the camera now projects it."""
    protocol = PROTOCOLS["re10k-pixelsplat"]
    camera = Cameras.from_fov(torch.eye(4, dtype=torch.float64)[None], 60.0, [360, 640])[0]
    image = PIL.Image.new("RGB", (640, 360))
    image.paste((255, 255, 255), (396, 96, 405, 105))  # centred on (400.5, 100.5)
    small, moved = framed(image, camera, protocol)
    spot = camera.unproject(torch.tensor([[400.5, 100.5]], dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    seen, _ = moved.project(spot)
    weights = torch.from_numpy(np.array(small.convert("L"))).double()
    rows, columns = (torch.arange(256, dtype=torch.float64) + 0.5 for _ in range(2))
    found = torch.stack([(weights.sum(0) * columns).sum(), (weights.sum(1) * rows).sum()]) / weights.sum()
    torch.testing.assert_close(found, seen[0], atol=0.05, rtol=0)


def test_formulas_give_the_published_frames():
    assert llff_split(20, 3) == ([1, 10, 19], [0, 8, 16])
    assert llff_split(34, 0)[1] == [0, 8, 16, 24, 32]
    references, targets = dtu_split(3)
    assert references == [25, 22, 28] and len(targets) == 25 and not set(dtu_split(9)[0]) & set(targets)
    with pytest.raises(ValueError, match="1 to 9 views"):
        dtu_split(10)
    with pytest.raises(ValueError, match="7 frames are not targets"):
        llff_split(8, 9)


@pytest.mark.parametrize("chunked", [True, False])
def test_real_estate_runs_end_to_end(tmp_path, capsys, chunked):
    key = next(iter(bundled_split("re10k-pixelsplat", 2)))
    data = make_re10k(tmp_path / "data", key, chunked)
    assert evaluate(data, "re10k-pixelsplat", tmp_path / "out", "--only", key) == 0
    shown = capsys.readouterr().out
    assert "pixelSplat" in shown and "1 of 6474 scenes" in shown and "6,474" in shown
    _, lines = read_run(tmp_path / "out")
    assert [int(line["target"]) for line in lines] == bundled_split("re10k-pixelsplat", 2)[key][1]


def test_both_forms_of_real_estate_are_the_same_scene(tmp_path):
    key = next(iter(bundled_split("re10k-pixelsplat", 2)))
    protocol = PROTOCOLS["re10k-pixelsplat"]
    packed, listed = (
        open_placed(protocol, make_re10k(tmp_path / str(form), key, form), key).scene for form in (True, False)
    )
    torch.testing.assert_close(packed.cameras.world_from_camera, listed.cameras.world_from_camera, atol=1e-5, rtol=0)
    torch.testing.assert_close(packed.cameras.intrinsics, listed.cameras.intrinsics, atol=1e-5, rtol=0)
    assert packed.images[3].tobytes() == listed.images[3].tobytes()


def test_llff_runs_end_to_end(tmp_path, checkpoint, capsys):
    data = make_llff(tmp_path / "data")
    arguments = (data, "llff-regnerf", tmp_path / "out", "--only", "fern", "--references", "3")
    assert evaluate(*arguments, checkpoint=checkpoint) == 0
    run, lines = read_run(tmp_path / "out")
    assert {line["method"] for line in lines} == {"kaleido", "nearest reference"} and len(lines) == 2 * 3
    assert "1 of 8 scenes" in capsys.readouterr().out and run["protocol"]["ssim"] == "f"
    assert "PSNR" in (tmp_path / "out/model-index.yaml").read_text()


def test_dtu_runs_end_to_end_masked_and_whole(tmp_path):
    data, lens, placed = make_dtu(tmp_path / "data")
    scene = open_placed(PROTOCOLS["dtu-regnerf"], data, "scan8").scene
    torch.testing.assert_close(scene.cameras.world_from_camera, placed, atol=1e-6, rtol=0)
    expected = lens * torch.tensor([[0.05], [0.05], [1.0]], dtype=torch.float64)  # stored at 80 of 1,600 columns
    torch.testing.assert_close(scene.cameras.intrinsics, expected.expand(49, 3, 3), atol=1e-6, rtol=0)
    (tmp_path / "masks/scan8/mask").mkdir(parents=True)
    mask = PIL.Image.new("L", (80, 60))
    mask.paste(255, (0, 0, 40, 60))
    for number in range(49):
        mask.save(tmp_path / f"masks/scan8/mask/{number:03d}.png")
    more = ("--only", "scan8", "--references", "3", "--masks", tmp_path / "masks")
    assert evaluate(data, "dtu-regnerf", tmp_path / "out", *more) == 0
    run, lines = read_run(tmp_path / "out")
    assert len(lines) == 25 and all(line["psnr_masked"] is not None for line in lines)
    row = summarize(run, lines)[0]
    assert row["ssim_masked"] > row["ssim"], "half of the masked images is white in both"


def test_gso_takes_white_where_alpha_is_zero(tmp_path):
    scene = open_placed(PROTOCOLS["gso30-eschernet"], make_gso(tmp_path), "alarm").scene
    pixels = np.array(scene.images[0])
    assert (pixels[0, 63] == 255).all() and (pixels[63, 0] == np.array(picture(0, 64, 64))[63, 0]).all()


@pytest.mark.parametrize("part", ["2", "0/2", "3/2", "a/b"])
def test_parts_are_checked(part):
    with pytest.raises(ValueError, match="such as 3/8"):
        part_of([], part)


def tables(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("scores.json", "report.md", "model-index.yaml")}


class Killed(BaseException):
    """What no handler expects."""


def test_killed_parted_and_merged_runs_give_the_same_table(tmp_path, checkpoint, monkeypatch):
    data = make_gso(tmp_path / "data", ("alarm", "shoe", "turtle"))
    more = ("--references", "1", "--only", "alarm", "shoe", "turtle", "--pictures", "--views-per-group", "15")

    def go(output: str, *extra: str) -> int:
        return evaluate(data, "gso30-eschernet", tmp_path / output, *more, *extra, checkpoint=checkpoint)

    assert go("whole") == 0
    whole = tables(tmp_path / "whole")

    from kaleido_diffusers.evaluation import benchmark

    taken, kept = [], benchmark.score_views

    def killed(*arguments):
        taken.append(1)
        if len(taken) == 4:
            raise Killed
        return kept(*arguments)

    monkeypatch.setattr(benchmark, "score_views", killed)
    with pytest.raises(Killed):
        go("killed")
    done = len(list((tmp_path / "killed/scores").glob("*.jsonl")))
    assert done == 1, "killed in the second of three"
    monkeypatch.undo()
    write_report(tmp_path / "killed")
    assert b"1 of 30 scenes" in tables(tmp_path / "killed")["report.md"], "what is done so far is called partial"
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "killed/scores").iterdir()}
    assert go("killed") == 0 and tables(tmp_path / "killed") == whole
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in before.items()), "what was done is not done again"

    assert go("part1", "--part", "1/2") == 0 and go("part2", "--part", "2/2") == 0
    assert tables(tmp_path / "part1") != whole
    merged = ["evaluate", "--merge", str(tmp_path / "part1"), str(tmp_path / "part2")]
    assert cli.main([*merged, "--output", str(tmp_path / "merged")]) == 0
    assert tables(tmp_path / "merged") == whole
    page = (tmp_path / "merged/report.html").read_text()
    assert page.count("data:image/png;base64") == 3 and "worst" in page


def test_another_run_is_not_mixed_in(tmp_path, capsys):
    data = make_gso(tmp_path / "data")
    more = ("--references", "1", "--only", "alarm")
    assert evaluate(data, "gso30-eschernet", tmp_path / "out", *more) == 0
    assert evaluate(data, "gso30-eschernet", tmp_path / "out", *more, "--seed", "1") == 1
    assert "settings differ" in capsys.readouterr().err
    assert evaluate(data, "gso30-eschernet", tmp_path / "other", *more, "--seed", "1") == 0
    with pytest.raises(ValueError, match="settings differ"):
        merge_runs([tmp_path / "out", tmp_path / "other"], tmp_path / "merged")


def test_what_is_missing_is_named_before_anything_is_drawn(tmp_path, capsys):
    data = make_gso(tmp_path / "data")
    assert evaluate(data, "gso30-eschernet", tmp_path / "out") == 1
    assert "28 things are missing" in (error := capsys.readouterr().err) and "backpack: no such scene" in error
    file = data / "alarm/render_mvs_25/model/012.png"
    file.write_bytes(file.read_bytes()[:200])
    assert evaluate(data, "gso30-eschernet", tmp_path / "out", "--only", "alarm", "--references", "1") == 1
    assert "012.png" in capsys.readouterr().err
    shutil.copy(file.with_name("011.png"), file)
    for number in (23, 24):
        file.with_name(f"{number:03d}.npy").unlink()
    assert evaluate(data, "gso30-eschernet", tmp_path / "out", "--only", "alarm", "--references", "1") == 1
    assert "no frame 23, 24 among 23" in capsys.readouterr().err
    assert not (tmp_path / "out").exists(), "nothing was drawn"
    more = ("--only", "alarm", "--references", "1", "--allow-partial")
    assert evaluate(data, "gso30-eschernet", tmp_path / "out", *more) == 0
    shown = capsys.readouterr().out
    assert "Partial means" in shown and "no frame 23, 24" in shown
    assert evaluate(data, "no-such", tmp_path / "out") == 1 and "gso30-eschernet" in capsys.readouterr().err
    assert evaluate(data, "nerfsynthetic-eschernet", tmp_path / "out") == 1 and "--splits" in capsys.readouterr().err


def test_a_split_by_path_is_hashed_and_held_against_the_formula(tmp_path):
    data = make_llff(tmp_path / "data")
    splits = tmp_path / "splits/fern"
    splits.mkdir(parents=True)
    file = splits / "train_test_split_3.json"
    file.write_text(json.dumps({"train_ids": [1, 10, 19], "test_ids": [0, 8, 16]}))
    plan = make_plan(PROTOCOLS["llff-regnerf"], data, [3], tmp_path / "splits", ["fern"])
    assert plan.split["agrees"] is True and len(plan.split["sha256"]) == 64
    file.write_text(json.dumps({"train_ids": [1, 10, 18], "test_ids": [0, 8, 16]}))
    other = make_plan(PROTOCOLS["llff-regnerf"], data, [3], tmp_path / "splits", ["fern"])
    assert other.split["agrees"] is False and other.split["sha256"] != plan.split["sha256"]
    assert other.items[0].references == ("1", "10", "18")
    file.write_text(json.dumps({"train_ids": [1, 10, 99], "test_ids": [0, 8, 408]}))
    out_of_range = make_plan(PROTOCOLS["llff-regnerf"], data, [3], tmp_path / "splits", ["fern"])
    assert "no frame 99, 408 among 20" in out_of_range.problems[0]
    with pytest.raises(ValueError, match="2 are asked for"):
        path_split(file, "fern", 2) if file.write_text(json.dumps({"fern": {"context": [1], "target": [2]}})) else 0


def test_seva_reads_scenes_and_splits_by_path(tmp_path):
    data = make_gso(tmp_path / "data", ("one",))
    scene = data / "one/render_mvs_25/model"
    shutil.move(str(scene), tmp_path / "scenes/one")
    (tmp_path / "splits/llff/one").mkdir(parents=True)
    ids = {"train_ids": [0, 3, 9], "test_ids": [1, 2]}
    (tmp_path / "splits/llff/one/train_test_split_3.json").write_text(json.dumps(ids))
    more = ("--splits", tmp_path / "splits", "--references", "3")
    assert evaluate(tmp_path / "scenes", "seva-llff-R", tmp_path / "out", *more) == 0
    run, lines = read_run(tmp_path / "out")
    assert [line["target"] for line in lines] == ["1", "2"] and run["split"]["from"] == "path"
    assert summarize(run, lines)[0]["partial"] == ""


def test_looking_at_the_truth_is_said(tmp_path, checkpoint, capsys):
    data = make_gso(tmp_path / "data")
    more = ("--only", "alarm", "--references", "1", "--best-of-looking-at-the-truth", "2")
    more += ("--sweep-scale-looking-at-the-truth",)
    assert evaluate(data, "gso30-eschernet", tmp_path / "out", *more, checkpoint=checkpoint) == 0
    rows = {row["method"]: row["psnr"] for row in summarize(*read_run(tmp_path / "out"))}
    assert rows["kaleido, best of 2 by the truth"] >= rows["kaleido"]
    assert "kaleido, camera scale swept by the truth" in rows
    run, lines = read_run(tmp_path / "out")
    assert "best of" not in model_index(run, summarize(run, lines)), "a model card holds plain samples alone"
    assert "swept by the truth" in capsys.readouterr().out


def test_numbers_stand_together_only_where_all_is_the_same():
    row = next(r for r in PUBLISHED if r.protocol == "gso30-eschernet" and r.references == 3)
    protocol = PROTOCOLS["gso30-eschernet"]
    assert differences(row, protocol, 3, "alex") == [] == differences(row, protocol, 3, None)
    assert "views" in differences(row, protocol, 2, "alex")[0]
    assert "LPIPS net" in differences(row, protocol, 3, "vgg")[0]
    foreign = next(r for r in PUBLISHED if r.protocol == "seva-dl3dv140-L" and r.method == "Long-LRM")
    found = differences(foreign, PROTOCOLS["seva-dl3dv140-L"], 32, "alex")
    assert [entry.split()[0] for entry in found] == ["size", "SSIM", "LPIPS"]
    optimised = next(r for r in PUBLISHED if r.method == "CAT3D")
    assert any("optimised" in entry for entry in differences(optimised, PROTOCOLS[optimised.protocol], 3, None))


def test_published_means_are_marked(tmp_path):
    captures = shared("captures")
    arguments = (captures / "gso_elephant", "gso30-eschernet", tmp_path / "out", "--only", "elephant")
    assert evaluate(*arguments, "--references", "1", "10") == 0
    text = (tmp_path / "out/report.md").read_text()
    assert "EscherNet 6DoF | 10 | 27.75" in text and "mean over 30 objects" in text and "1 of 30 scenes" in text


def test_nerf_synthetic_takes_a_split_by_path(tmp_path, checkpoint):
    captures = shared("captures")
    (tmp_path / "splits/chair").mkdir(parents=True)
    for count in (1, 20):
        np.save(tmp_path / f"splits/chair/train_N{count}M20_random.npy", np.arange(count)[::-1] * 3)
    more = ("--only", "chair", "--references", "1", "20", "--splits", tmp_path / "splits", "--allow-partial")
    more += ("--joins-memory", "none", "--views-per-group", "25")
    assert evaluate(captures, "nerfsynthetic-eschernet", tmp_path / "out", *more, checkpoint=checkpoint) == 0
    run, lines = read_run(tmp_path / "out")
    rows = {(row["method"], row["references"]): row for row in summarize(run, lines)}
    assert rows["kaleido", 20]["views"] == 25 and rows["kaleido", 20]["partial"]
    assert rows["nearest reference", 20]["psnr"] > rows["nearest reference", 1]["psnr"]
    assert "peak MiB" in (tmp_path / "out/cost.md").read_text()


def test_exr_is_taken_without_tone_mapping(tmp_path):
    OpenEXR = pytest.importorskip("OpenEXR")
    folder = tmp_path / "scene"
    folder.mkdir()
    pose = convert_axes(poses(1)[0], "opencv", "opengl")
    for number in range(20):
        camera = {"cam2world": pose.T.tolist(), "width": 8, "height": 6}
        camera["intrinsics"] = {"fx": 9.0, "fy": 9.0, "cx": 4.0, "cy": 3.0}
        (folder / f"{number:05d}.json").write_text(json.dumps({"camera_data": camera}))
        values = np.full((6, 8, 3), 0.5, np.float32)
        values[0] = 3.0
        header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
        OpenEXR.File(header, {"RGB": values}).write(str(folder / f"{number:05d}.exr"))
    placed = open_placed(PROTOCOLS["rtmv-eschernet"], tmp_path, "scene")
    pixels = np.array(placed.scene.images[0])
    assert (pixels[0] == 255).all() and (pixels[1:] == 127).all()
    torch.testing.assert_close(placed.scene.cameras.world_from_camera[0], poses(1)[0], atol=1e-6, rtol=0)


def test_the_list_names_every_protocol(capsys):
    assert cli.main(["evaluate", "--list-protocols"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in PROTOCOLS) and "needs" in shown


def test_dl3dv_counts_frames_in_the_order_of_its_file(tmp_path):
    """Long-LRM's and DepthSplat's indexes count so, not by name."""
    key = next(iter(bundled_split("dl3dv-depthsplat", 2)))
    folder = tmp_path / key / "images_8"
    folder.mkdir(parents=True)
    order, frames = np.random.default_rng(0).permutation(50).tolist(), []
    for number, pose in zip(order, poses(50)):
        picture(number, 27, 48).save(folder / f"frame_{number:05d}.png")
        matrix = convert_axes(pose, "opencv", "opengl").tolist()
        frames.append({"file_path": f"images/frame_{number:05d}.png", "transform_matrix": matrix})
    lens = {"w": 384, "h": 216, "fl_x": 300.0, "fl_y": 300.0, "cx": 192.0, "cy": 108.0}
    (tmp_path / key / "transforms.json").write_text(json.dumps({**lens, "frames": frames}))
    placed = open_placed(PROTOCOLS["dl3dv-depthsplat"], tmp_path, key)
    torch.testing.assert_close(placed.scene.cameras.world_from_camera[placed.places["7"]], poses(50)[7])
    assert evaluate(tmp_path, "dl3dv-depthsplat", tmp_path / "out", "--only", key, "--references", "2") == 0
    run, lines = read_run(tmp_path / "out")
    assert len(lines) == 50, "targets include the references: that is the protocol"
    assert [line["psnr"] for line in lines if line["target"] in ("0", "49")] == [None, None], "equal images"
    assert math.isfinite(summarize(run, lines)[0]["psnr"])


def test_the_published_counts_and_frames():
    from runpy import run_path

    checks = run_path(str(Path(__file__).parents[1] / "benchmarks/check_protocols.py"))["checks"]()
    assert len(checks) > 30 and [name for name, mine, published in checks if mine != published] == []


def make_dtu_mvs(root: Path, scan: str) -> tuple[Path, torch.Tensor]:
    """MVSNet's cut: cameras as text, intrinsics in quarters of the photos' pixels."""
    (root / f"Rectified/{scan}_train").mkdir(parents=True)
    (root / "Cameras/train").mkdir(parents=True)
    placed = poses(49)
    for number, pose in enumerate(placed):
        picture(number, 64, 80).save(root / f"Rectified/{scan}_train/rect_{number + 1:03d}_3_r5000.png")
        rows = [" ".join(map(repr, row)) for row in invert_rigid(pose).tolist()]
        lens = ["22.0 0 10.0", "0 22.0 8.0", "0 0 1"]
        text = "\n".join(["extrinsic", *rows, "", "intrinsic", *lens, "", "425.0 2.5"])
        (root / f"Cameras/train/{number:08d}_cam.txt").write_text(text + "\n")
    return root, placed


def test_mvsplats_dtu_has_an_item_a_target(tmp_path):
    data, placed = make_dtu_mvs(tmp_path / "data", "scan1")
    cameras = open_placed(PROTOCOLS["dtu-mvsplat"], data, "scan1").scene.cameras
    torch.testing.assert_close(cameras.world_from_camera, placed, atol=1e-6, rtol=0)
    assert cameras.intrinsics[0, 0].tolist() == [88.0, 0.0, 40.0]
    assert evaluate(data, "dtu-mvsplat", tmp_path / "out", "--only", "scan1", "--references", "2") == 0
    run, lines = read_run(tmp_path / "out")
    assert [line["target"] for line in lines] == ["32", "24", "23", "44"] and len(run["items"]) == 4
