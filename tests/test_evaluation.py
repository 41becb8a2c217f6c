"""Scores against other implementations and known answers, and baselines that do what they say."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import make_pipeline, shared

from kaleido_diffusers import Cameras, cli, load_scene, sample_capture
from kaleido_diffusers.evaluation.baselines import nearest_reference, plane_sweep
from kaleido_diffusers.evaluation.metrics import LPIPS, consistency, gradient_energy, psnr, ssim
from kaleido_diffusers.evaluation.protocol import EvaluationCase, capture_case, evaluate, synthetic_cases
from kaleido_diffusers.evaluation.report import contact_sheet, markdown_table, plot_scores
from kaleido_diffusers.geometry.cameras import look_at
from kaleido_diffusers.worlds.synthetic import TEXTURES, make_worlds, render, sample_views


def test_psnr_and_ssim_are_those_of_the_field():
    from torchmetrics.functional.image import peak_signal_noise_ratio

    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(3, 3, 32, 32, generator=generator)
    images = (truth + 0.1 * torch.randn(3, 3, 32, 32, generator=generator)).clamp(0, 1)
    for score, a, b in zip(psnr(images, truth), images, truth):
        torch.testing.assert_close(score.float(), peak_signal_noise_ratio(a, b, data_range=1.0), rtol=1e-4, atol=1e-4)
    assert psnr(truth, truth).isinf().all()
    values = ssim(images, truth)
    assert values.shape == (3,) and 0.3 < values.min() < values.max() < 1
    torch.testing.assert_close(ssim(truth, truth), torch.ones(3))
    with pytest.raises(ValueError, match="share a shape"):
        psnr(images, truth[:1])


def test_lpips_gives_the_published_distances():
    folder = shared("weights/lpips")
    lpips = LPIPS(folder / "lpips_alex_v01_torchvision_names.pth")

    def load(name):
        path = next(folder.glob(f"{name}*"))
        return torch.from_numpy(np.array(PIL.Image.open(path).convert("RGB"))).permute(2, 0, 1)[None] / 255

    assert lpips(load("ex_ref"), load("ex_p0")).item() == pytest.approx(0.7219, abs=2e-4)
    assert lpips(load("ex_ref"), load("ex_p1")).item() == pytest.approx(0.1376, abs=2e-4)


def test_lpips_refuses_a_pickle(tmp_path):
    import pickle

    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps({"features.0.weight": print}))
    with pytest.raises(Exception, match="(?i)weights.only|unpickl"):
        LPIPS(path)


def test_blur_loses_gradient_energy():
    image = torch.rand(2, 3, 32, 32)
    soft = torch.nn.functional.avg_pool2d(image, 3, 1, 1)
    assert (gradient_energy(soft) < 0.3 * gradient_energy(image)).all()
    step = torch.zeros(1, 3, 4, 4)
    step[..., 2:] = 1.0
    torch.testing.assert_close(gradient_energy(step), torch.tensor([1 / 3]))


def test_consistency_finds_what_moved():
    base = torch.rand(1, 3, 64, 64)
    moved = torch.roll(base, (3, -5), (-2, -1))
    other = torch.rand(1, 3, 64, 64)
    assert consistency(base[..., 16:48, 16:48], moved[..., 16:48, 16:48]) > consistency(base, other) + 1
    interior = consistency(base[..., 16:48, 16:48], base[..., 16:48, 16:48])
    assert interior.item() == pytest.approx(100), "equal views"


def plane_scene(size: int = 48):
    """A textured ground seen from five places: for it the plane sweep has an answer."""
    worlds = make_worlds([11], level="scene", max_solids=3)
    sample_views(worlds, 1, 0)
    worlds.shape.zero_()
    worlds.gloss.zero_()
    worlds.texture[0, -1], worlds.frequency[0, -1] = TEXTURES.index("noise"), 0.8
    places = torch.tensor([[0.0, -1.2, 2.5], [0.9, -1.0, 2.4], [-0.8, -1.1, 2.6], [0.1, -0.4, 2.5], [0.1, -1.1, 2.5]])
    poses = look_at(places.double(), torch.zeros(5, 3).double(), torch.tensor([0.0, 0.0, 1.0]).double())
    cameras = Cameras.from_fov(poses, 40.0, [size, size])
    images = render(worlds, poses[None], cameras.normalized_intrinsics[None], size=(size, size))[0]
    return images, cameras


def test_the_plane_sweep_finds_a_plane():
    images, cameras = plane_scene()
    swept = plane_sweep(images[:4], cameras[:4], cameras[4:])
    nearest = nearest_reference(images[:4], cameras[:4], cameras[4:])
    assert psnr(swept, images[4:]) > psnr(nearest, images[4:]) + 4
    assert torch.equal(nearest[0], images[0])
    alone = plane_sweep(images[:1], cameras[:1], cameras[:1])
    assert psnr(alone, images[:1]).item() > 40, "the same view again is found on every plane"


def test_cases_keep_targets_and_references_apart():
    cases = list(synthetic_cases(2, size=16, max_references=5))
    assert [len(case.images) for case in cases] == [7, 7] and cases[0].num_targets == 2
    again = next(iter(synthetic_cases(1, size=16, max_references=5)))
    assert torch.equal(again.images, cases[0].images)
    scene = load_scene(sample_capture())
    case = capture_case(scene, [0, 8], 24, 24, max_references=6)
    assert case.images.shape == (8, 3, 24, 24)
    torch.testing.assert_close(case.cameras[6:].world_from_camera, scene.cameras[[0, 8]].world_from_camera)
    for each in (*cases, case):
        poses = each.cameras.world_from_camera
        gaps = (poses[: -each.num_targets, None] - poses[-each.num_targets :]).abs().amax((-2, -1))
        assert gaps.min() > 1e-3, "no target is among the references"


class Oracle:
    """Stands where the pipeline would, and knows the answer."""

    def __init__(self, cases: list[EvaluationCase]):
        self.cases = {case.images[0].sum().item(): case for case in cases}
        self.calls = []

    def __call__(self, images, cameras, targets, generator, output_type, **options):
        self.calls.append((len(images), options))
        case = self.cases[images[0].sum().item()]
        start = len(case.images) - case.num_targets
        assert torch.equal(images, case.images[: len(images)]) and len(images) <= start
        assert torch.equal(cameras.world_from_camera, case.cameras[: len(images)].world_from_camera)
        assert torch.equal(targets.world_from_camera, case.cameras[start:].world_from_camera)
        return type("Output", (), {"images": case.images[start:]})


def test_evaluation_gives_the_right_views_to_the_model():
    cases = list(synthetic_cases(3, size=32, max_references=6))
    oracle = Oracle(cases)
    result = evaluate(oracle, cases, num_references=(1, 3, 12), num_inference_steps=2)
    assert {count for count, _ in oracle.calls} == {1, 3}, "twelve references were not there"
    assert all(options == {"num_inference_steps": 2} for _, options in oracle.calls)
    rows = {(row["method"], row["references"]): row for row in result.summary()}
    assert rows["kaleido", 3]["psnr"] == float("inf") and rows["kaleido", 3]["gradient_energy"] == pytest.approx(1)
    assert rows["flat", 1]["gradient_energy"] == 0
    assert rows["nearest", 3]["psnr"] >= rows["nearest", 1]["psnr"]
    assert rows["kaleido", 1]["consistency"] == pytest.approx(rows["kaleido", 1]["true_consistency"])
    bins = result.by_distance(3, bins=2)
    assert {row["method"] for row in bins} == {"kaleido", "nearest", "flat", "plane sweep"}
    far = [row["distance"] for row in bins if row["method"] == "flat"]
    assert far == sorted(far) and len(far) == 2
    assert len(result.pictures) == 3 and result.pictures[0]["references"].shape == (3, 3, 32, 32)


def test_tables_and_sheets(tmp_path):
    rows = [{"method": "a", "references": 1, "psnr": 20.123, "lpips": float("nan")}]
    table = markdown_table(rows, {"method": "", "references": "d", "psnr": ".2f", "lpips": ".3f"})
    assert table.splitlines()[-1] == "| a | 1 | 20.12 |  |"
    sheet = contact_sheet(
        torch.rand(3, 3, 8, 8), {"made": torch.rand(10, 3, 8, 8)}, [str(i) for i in range(10)], tile=32
    )
    assert sheet.width > 8 * 32 and sheet.height > 3 * 32
    pytest.importorskip("matplotlib")
    plot_scores(
        [{**rows[0], "gradient_energy": 0.9}, {**rows[0], "references": 2, "gradient_energy": 1.0}], tmp_path / "p.png"
    )
    assert PIL.Image.open(tmp_path / "p.png").width > 300


def test_the_command_writes_everything(tmp_path, capsys):
    folder = tmp_path / "checkpoint"
    make_pipeline(num_layers=1, sample_size=32).save_pretrained(folder)
    arguments = (
        f"evaluate test --checkpoint {folder} --scenes 2 --references 1 3 --steps 2 --output {tmp_path / 'out'}"
    )
    assert cli.main(arguments.split()) == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written >= {"scores.json", "scores.md", "sheet.png"}
    content = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert len(content["scores"]) == 2 * 2 * 2 * 4, "scenes, targets, references, methods"
    assert content["settings"]["steps"] == 2
    assert "NaN" not in (tmp_path / "out" / "scores.json").read_text(), "plain JSON"
    assert "plane sweep" in capsys.readouterr().out
    capture = f"evaluate {sample_capture()} --checkpoint none --references 3 --output {tmp_path / 'capture'}"
    assert cli.main(capture.split()) == 0
    scores = json.loads((tmp_path / "capture" / "scores.json").read_text())["scores"]
    assert {score["target"] for score in scores} == {0, 1, 2, 3, 4}
