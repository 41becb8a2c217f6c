"""The commands that a newcomer runs."""

import importlib
import inspect
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import conftest
import PIL.Image
import pytest
import torch
from conftest import make_pipeline, shared, started
from tqdm import tqdm

from kaleido_diffusers import KaleidoViewSynthesisPipeline, bundled_checkpoint, cli, load_scene, sample_capture
from kaleido_diffusers.bundled import BUNDLED
from kaleido_diffusers.cli import main
from kaleido_diffusers.cli.cost import rendering_cost
from kaleido_diffusers.cli.errors import run_verb
from kaleido_diffusers.cli.info import working_attention_backends
from kaleido_diffusers.cli.loading import load_pipeline
from kaleido_diffusers.evaluation.metrics import psnr
from kaleido_diffusers.geometry.choosing import split_views
from kaleido_diffusers.loaders.adapter_files import AdapterInfo, save_adapter
from kaleido_diffusers.loaders.lora_settings import make_lora_config
from kaleido_diffusers.models import precision


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("checkpoint")
    make_pipeline(num_layers=1, sample_size=16).save_pretrained(folder)
    return str(folder)


def test_render_writes_what_it_names(checkpoint, tmp_path, capsys):
    arguments = f"render sample --checkpoint {checkpoint} --references 3 --steps 2 --trajectory spiral --views 5"
    assert cli.main([*arguments.split(), "--output", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    written = [line.removeprefix("wrote ") for line in out.splitlines() if line.startswith("wrote ")]
    names = [path.split("/out/")[1] for path in written]
    assert names[0] == "sample_sheet.png" and names[-1] == "sample_spiral.mp4"
    assert names[1:-1] == [f"sample_views/{number:04d}.png" for number in (0, 8, 16, 24, 32)]
    rows = re.findall(r"^ +(\d+|mean) +(-?\d+\.\d\d) +(\d+\.\d\d)$", out, re.MULTILINE)
    assert [row[0] for row in rows] == ["0", "8", "16", "24", "32", "mean"]
    sheet = PIL.Image.open(written[0])
    assert sheet.width > 600 and sheet.height > 600
    assert PIL.Image.open(written[1]).size == (16, 16)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("render /nowhere", "/nowhere: no such capture.\n"),
        ("render skul", "skul: no such capture. Did you mean skull, which ships with the package?"),
        ("render sample --targets 40", "numbers from 0 to 39"),
        ("render sample --targets few", "`held-out`, `none`, or numbers"),
        ("render sample --references 0", "--references must be at least 1, got 0"),
        ("render sample --references 36", "between 1 and 35"),
        ("render sample --checkpoint /nowhere", "/nowhere"),
        ("render sample --targets none", "nothing to render"),
        ("render photo.jpg", "photo.jpg: no such image"),
        ("render sample --height 0", "--height must be at least 8, got 0"),
        ("render sample --steps 0", "--steps must be at least 1, got 0"),
        ("render sample --trajectory arc --views 0", "--views must be at least 1, got 0"),
        ("render sample --checkpoint kaleido-tini", "'kaleido-tini': there is no such folder, and no checkpoint that"),
        ("render sample --checkpoint kaleido-tini", "Did you mean kaleido-tiny?"),
        ("render sample --lora /nowhere", "--lora '/nowhere': there is no such folder"),
        (
            "render sample --trajectory orbit --views 1000000 --steps 1000",
            "1,000,005 views of 16 x 16 pixels take about",
        ),
        ("render photo.jpg --trajectory orbit", "photo.jpg: no such image"),
        ("render sample --export colmap", "pass --trajectory"),
        ("render sample --split 3", "no split '3'; it has none"),
        ("render sample --test-every 0", "--test-every must be at least 2"),
        ("render sample --fov 50", "--fov is for a single photo"),
        ("render sample --downscale 2", "none of the 40 images"),
        ("render sample --device nothing", "--device 'nothing'"),
        ("render sample --attention-backend flash", "--attention-backend 'flash'"),
    ],
)
def test_bad_input_ends_in_one_line(arguments, message, checkpoint, capsys, tmp_path):
    if "--checkpoint" not in arguments:
        arguments += f" --checkpoint {checkpoint}"
    assert cli.main([*arguments.split(), "--output", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


@pytest.mark.parametrize("export", ["transforms", "colmap"])
def test_a_flight_is_a_capture_too(export, checkpoint, tmp_path):
    arguments = f"render sample --checkpoint {checkpoint} --references 3 --steps 1 --trajectory keyframes --views 5"
    arguments += f" --targets none --export {export} --output {tmp_path}"
    assert cli.main(arguments.split()) == 0
    scene = load_scene(tmp_path / f"sample_keyframes_{export}")
    assert len(scene) == 8 and scene.images[7].size == (16, 16)
    if export == "transforms":
        frames = json.loads((tmp_path / "sample_keyframes_transforms" / "transforms.json").read_text())["frames"]
        assert [frame.get("generated", False) for frame in frames] == [False] * 3 + [True] * 5
    original = load_scene(sample_capture()).cameras.centers
    gaps = torch.cdist(scene.cameras.centers[:3], original).amin(-1)
    assert gaps.max() < 1e-6, "the references are photos of the capture"
    assert cli.main(arguments.split()) == 1, "nothing is written over"


def test_a_single_photo_is_flown_around(checkpoint, tmp_path, capsys):
    photo = f"{sample_capture()}/images/0003.jpg"
    arguments = f"render {photo} --checkpoint {checkpoint} --steps 1 --views 4 --output {tmp_path}"
    assert cli.main(arguments.split()) == 0
    captured = capsys.readouterr()
    assert "the field of view is not known" in captured.err and "60 degrees are assumed" in captured.err
    assert (tmp_path / "0003_arc.mp4").is_file() and f"next: kaleido demo --checkpoint {checkpoint}\n" in captured.out
    assert cli.main([*arguments.split(), "--fov", "60", "--trajectory", "orbit"]) == 0
    captured = capsys.readouterr()
    assert (tmp_path / "0003_orbit.mp4").is_file() and "assumed" not in captured.err
    assert "views look where hardly a reference does" in captured.out


def test_a_new_run_leaves_no_old_views(checkpoint, tmp_path, capsys):
    arguments = f"render sample --checkpoint {checkpoint} --references 2 --steps 1 --output {tmp_path}"
    for targets, names in (("1,2", ["0001.png", "0002.png"]), ("3", ["0003.png"])):
        assert cli.main([*arguments.split(), "--targets", targets, "--overwrite"]) == 0
        assert sorted(path.name for path in (tmp_path / "sample_views").iterdir()) == names
    said = capsys.readouterr()
    follows = f"next: kaleido render sample --targets none --trajectory keyframes --checkpoint {checkpoint}"
    assert said.out.splitlines()[-1] == follows
    assert re.search(r"1\.0/1 views \[\d+:\d+, \d+:\d+ left\]", said.err), "the bar counts views"


def test_the_version_and_options_of_the_same_verb(capsys):
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"kaleido \d+\.\d+\.\S+\n", capsys.readouterr().out)
    with pytest.raises(SystemExit):
        cli.main(["render", "sample", "--step", "3"])
    said = capsys.readouterr()
    said = said.err + said.out
    assert "--steps" in said and "train" not in said and "evaluate" not in said


def test_a_busy_port_is_told_before_anything_is_loaded(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["demo", "--port", str(port), "--checkpoint", "never/looked-for"]) == 1
    said = capsys.readouterr().err
    assert f"--port {port} cannot be used on 127.0.0.1" in said and f"such as --port {port + 1}" in said


def test_what_a_run_will_take_grows_with_what_is_asked(checkpoint):
    pipe = load_pipeline(checkpoint, "cpu")
    small, large = (rendering_cost(pipe, 6, 100, side, side, 10) for side in (16, 64))
    assert small.seconds == 0 and large.memory > 10 * small.memory
    long, longer = (rendering_cost(pipe, 6, views, 512, 512, 10) for views in (10_000, 100_000))
    assert 20 < longer.seconds / long.seconds < 500 and "hours" in str(longer), "views attend to all before them"


def test_ctrl_c_ends_poses_at_once(tmp_path):
    pytest.importorskip("pycolmap")
    with started("poses", f"{sample_capture()}/images", "--output", str(tmp_path / "out")) as process:
        said = b""
        while b"finding features" not in said:  # COLMAP computes
            said += process.output.read(1)
        process.send_signal(signal.SIGINT)
        rest = process.rest(60)
    assert process.returncode == 130
    assert f"stopped. The same command goes on with what {tmp_path / 'out'} holds." in rest
    assert "placing photos" not in rest


@pytest.mark.parametrize("photos_of", ["skull", pytest.param("kermit", marks=pytest.mark.slow)])
def test_from_photos_to_a_film_by_the_commands_that_are_printed(photos_of, tmp_path, capsys, monkeypatch):
    """`poses`, then what each prints as the next, with few steps."""
    pytest.importorskip("pycolmap")
    monkeypatch.chdir(tmp_path)
    photos = tmp_path / "photos"
    capture = Path(sample_capture("skull")) if photos_of == "skull" else shared("captures/kermit")
    shutil.copytree(capture / "images", photos)
    first = ["poses", "photos"]
    quick = {"lora": "--steps 1 --denoising-steps 1 --scored-references 1 --validation-photos 0 --rank 2 --batch 1"}
    quick["render"] = "--steps 1 --views 2"
    ran = []
    while len(ran) < 4:
        options = quick.get(first[0], "").split()
        assert cli.main([*first, *options]) == 0, capsys.readouterr().err
        ran.append(first[0])
        said = capsys.readouterr().out
        first = said.splitlines()[-1].removeprefix("next: kaleido ").split()
    assert ran == ["poses", "lora", "render", "render"]
    assert first == ["view", "photos-capture", "--checkpoint", "runs/photos-capture/adapter"]
    assert (tmp_path / "renders" / "photos-capture_keyframes.mp4").is_file()


def test_render_the_fox(fox, checkpoint, tmp_path, capsys):
    arguments = (
        f"render {fox} --checkpoint {checkpoint} --references 6 --targets held-out --steps 2 --output {tmp_path}"
    )
    assert cli.main(arguments.split()) == 0
    captured = capsys.readouterr()
    assert "skipped 17 of 67 frames" in captured.err
    assert "fox: 50 photos" in captured.out and (tmp_path / "fox_sheet.png").is_file()


def test_info_tells_versions_backends_and_scores(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    for word in ("torch", "diffusers", "native", "bundled checkpoint", "parameters", "PSNR"):
        assert word in out, word
    assert "flash," not in out.replace("_native_flash,", ""), "flash-attn cannot run here"


def test_backends_that_work_here_do():
    assert "native" in working_attention_backends("cpu")


def test_the_module_runs():
    result = subprocess.run([sys.executable, "-m", "kaleido_diffusers.cli", "--help"], capture_output=True, text=True)
    assert result.returncode == 0
    assert "render" in result.stdout and "info" in result.stdout


HELP = """
import sys
from kaleido_diffusers.cli import VERBS, main

for words in (["--help"], *([verb, "--help"] for verb in VERBS)):
    try:
        main(words)
    except SystemExit as end:
        assert end.code == 0, words
    heavy = {"torch", "diffusers", "transformers", "peft", "numpy", "PIL", "scipy", "matplotlib", "gradio", "pycolmap"}
    assert not heavy & set(sys.modules), (words, heavy & set(sys.modules))
"""


def test_help_waits_for_no_library():
    result = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert result.stdout.count("usage: kaleido") == 1 + len(cli.VERBS)


def test_standard_error_is_for_what_we_say():
    """Not for what libraries say of themselves while they are imported, as torchao does of its kernels."""
    command = [sys.executable, "-m", "kaleido_diffusers.cli", "info", "bundled"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0 and "kaleido-tiny" in result.stdout
    assert all(line.startswith("kaleido: ") for line in result.stderr.splitlines()), result.stderr


def test_training_and_rendering_say_only_what_is_ours(checkpoint, tmp_path):
    words = f"lora sample --checkpoint {checkpoint} --steps 1 --batch 1 --views 3 --rank 2 --denoising-steps 1"
    words += f" --scored-references 1 --validation-photos 0 --dtype bfloat16 --output {tmp_path / 'run'}"
    for _ in range(2):
        program = [sys.executable, "-m", "kaleido_diffusers.cli", *words.split()]
        result = subprocess.run(program, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        ours = ("kaleido: ", "generating: ", "scenes: ")
        for line in filter(None, map(str.strip, re.split(r"[\r\n]|\x1b\[A", result.stderr))):
            assert line.startswith(ours) or re.match(r"\d+%\|", line), line
        follows = result.stdout.splitlines()[-1].removeprefix("next: kaleido ")
        assert f"--checkpoint {checkpoint} --lora {tmp_path / 'run/adapter'}" in follows
        words = f"{follows} --targets 1 --steps 1 --output {tmp_path}"


def test_settings_of_a_verb_are_its_work_s():
    for name, settings in cli.VERBS.items():
        work = getattr(importlib.import_module(f"kaleido_diffusers.cli.{name}"), name.capitalize())
        assert issubclass(work, settings) and fields(work) == fields(settings)


def test_bundled_checkpoints_go_by_name(tmp_path, capsys):
    for name in BUNDLED:
        assert (
            Path(bundled_checkpoint(name), "transformer").is_dir()
            and Path(bundled_checkpoint(name), "README.md").is_file()
        )
        assert "_name_or_path" not in Path(bundled_checkpoint(name), "transformer", "config.json").read_text()
    arguments = "evaluate skull --checkpoint kaleido-tiny --references 6 --steps 1 --device cpu"
    assert cli.main([*arguments.split(), "--output", str(tmp_path)]) == 0
    rows = {row["method"]: row["psnr"] for row in json.loads((tmp_path / "scores.json").read_text())["summary"]}
    assert rows["kaleido"] > rows["flat"] + 2, "it sees photos"
    assert cli.main(["info", "kaleido-tiny"]) == 0
    assert "AutoencoderTAEF2" in capsys.readouterr().out
    with pytest.raises(ValueError, match="one of kaleido-tiny, got"):
        bundled_checkpoint("kaleido-huge")


def test_continuous_integration_fails_where_no_browser_is_found(tmp_path):
    test = tmp_path / "test_page_browser.py"
    test.write_text("import pytest\n\n\n@pytest.mark.skip(reason='no browser')\ndef test_page():\n    pass\n")
    hook = inspect.getsource(conftest.pytest_sessionfinish)
    (tmp_path / "conftest.py").write_text(f"import os\nimport pytest\n\n\n{hook}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)]
    root = str(Path(__file__).parents[1])
    for environment, status in (({"CI": "true"}, 1), ({"CI": ""}, 0)):
        environment = {**os.environ, "PYTHONPATH": root, **environment}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert result.returncode == status, result.stdout
    assert "apt-get install" in Path(root, ".ci", "run").read_text()


# What goes wrong


class _Verb:
    def __init__(self, error: BaseException | None, words: str = ""):
        self.error, self.words = error, words

    def run(self) -> None:
        print(self.words)
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(
    "error, status, said",
    [
        (None, 0, ""),
        (
            KeyboardInterrupt(),
            130,
            "kaleido: stopped. What was written is whole. Run it again, with --overwrite where it asks for that.\n",
        ),
        (KeyboardInterrupt("Step 7 is saved."), 130, "kaleido: stopped. Step 7 is saved.\n"),
        (ValueError("`a` must be b."), 1, "kaleido: `a` must be b.\n"),
        (FloatingPointError("Training diverged."), 1, "kaleido: Training diverged.\n"),
        (OSError(28, "No space left on device", "x/a.mp4"), 1, "kaleido: the disk is full ([Errno 28]"),
        (MemoryError(), 1, "kaleido: out of memory (MemoryError). Smaller views"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), 1, "kaleido: out of memory (CUDA out of memory."),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 1"), 1, "kaleido: out of memory (DefaultCPU"),
        (KeyError("x"), 1, "kaleido: unexpected KeyError: 'x' This is a bug; its traceback is in "),
        (ValueError("name \x1b[31m\x07red"), 1, "kaleido: name \\x1b[31m\\x07red\n"),
    ],
)
def test_a_traceback_is_not_an_answer(error, status, said, capsys):
    assert run_verb(_Verb(error).run) == status
    printed = capsys.readouterr().err
    assert printed.startswith(said) and "Traceback" not in printed and printed.count("\n") == (error is not None)
    if "its traceback is in " in printed:
        file = Path(printed.split("its traceback is in ")[1].strip())
        assert "KeyError: 'x'" in file.read_text()
        file.unlink()


def test_tracebacks_are_shown_when_asked_for(capsys):
    assert run_verb(_Verb(KeyError("x")).run, debug=True) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err
    assert main(["info", "/no/such/place", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
    assert main(["info", "/no/such/place"]) == 1
    assert "Traceback" not in capsys.readouterr().err


def sample_scores(dtype: str) -> torch.Tensor:
    """PSNR of the sample's test photos, rendered by the checkpoint that ships."""
    pipe, scene = load_pipeline("bundled", "cpu", dtype), load_scene(sample_capture())
    pipe.set_progress_bar_config(disable=True)
    test, train = (split_views(len(scene), scene.splits, split) for split in ("test", "train"))
    given, generator = train[::6], torch.Generator().manual_seed(0)
    options = dict(num_inference_steps=4, generator=generator, output_type="pt")
    views = pipe(scene.images[given], scene.cameras[given], scene.cameras[test], **options).images
    return psnr(views, scene.fitted(test, *views.shape[-2:])[0])


def test_bfloat16_scores_as_float32_does():
    wide, narrow = sample_scores("float32"), sample_scores("bfloat16")
    assert wide.shape == (5,) and wide.mean() > 15, "what is compared are views of the sample"
    assert not torch.equal(wide, narrow)
    assert abs(float(wide.mean() - narrow.mean())) < 0.05


@pytest.mark.parametrize("fast", [torch.bfloat16, torch.float32])
def test_auto_takes_the_fast_precision_and_says_so(fast, checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(precision, "product_speed", lambda dtype, _seconds: 2.0 if dtype == fast else 1.0)
    precision.fast_dtype.cache_clear()
    arguments = f"render sample --checkpoint {checkpoint} --targets 3 --references 2 --steps 1 --device cpu"
    try:
        assert cli.main([*arguments.split(), "--output", str(tmp_path)]) == 0
    finally:
        precision.fast_dtype.cache_clear()
    assert f"{checkpoint}: {str(fast).removeprefix('torch.')} on cpu" in capsys.readouterr().out.splitlines()


def test_names_of_others_reach_the_terminal_as_text(capsys):
    assert run_verb(_Verb(None, "capture \x1b]0;title\x07 \x9b31m \u202ename\r\ttab").run) == 0
    assert capsys.readouterr().out == "capture \\x1b]0;title\\x07 \\x9b31m \\x202ename\\x0d\ttab\n"


def test_errors_stand_alone_behind_no_bar(capfd):
    class Busy:
        def run(self) -> None:
            for _ in tqdm(range(3)):
                raise ValueError("no")

    assert run_verb(Busy().run) == 1
    assert capfd.readouterr().err.splitlines()[-1] == "kaleido: no"


def test_what_lora_makes_goes_where_checkpoints_go(tmp_path):
    base = KaleidoViewSynthesisPipeline.from_pretrained(bundled_checkpoint())
    base.transformer.add_adapter(make_lora_config(rank=2))
    info = AdapterInfo.of(base.transformer, base_name="kaleido-tiny")
    save_adapter(tmp_path / "adapter", base.transformer, info)
    pipe = load_pipeline(str(tmp_path / "adapter"), "cpu")
    assert pipe.get_active_adapters() == ["default_0"]
    arguments = f"render skull --checkpoint {tmp_path / 'adapter'} --targets 3 --steps 1 --output {tmp_path / 'out'}"
    assert cli.main(arguments.split()) == 0
    added = load_pipeline("bundled", "cpu", lora=str(tmp_path / "adapter"))
    assert added.get_active_adapters() == ["added"]
    assert load_pipeline(str(tmp_path / "adapter"), "cpu", lora=str(tmp_path / "adapter")).get_active_adapters() == [
        "default_0",
        "added",
    ]
    save_adapter(tmp_path / "lost", base.transformer, replace(info, base_name="gone"))
    with pytest.raises(ValueError, match="its base 'gone' neither ships nor lies here"):
        load_pipeline(str(tmp_path / "lost"), "cpu")
