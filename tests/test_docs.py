"""The README and the pages of docs/ are true: their commands and their Python run, their files exist."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from configparser import ConfigParser
from functools import cache
from pathlib import Path

import pytest
import tyro
from conftest import SHARED, free_port, make_pipeline, served_command
from hub_server import HubServer, client
from test_protocols import make_gso
from test_warm_start import make_lumina2
from tiny_pipelines import TINY_PIPELINES
from world_assets import make_assets

from kaleido_diffusers import cli, load_scene, sample_capture
from kaleido_diffusers.cli.config_files import with_config_files


ROOT = Path(__file__).parents[1]
PAGES = {page.name: page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
SHORTER = {  # the same commands in seconds: the last of two equal options counts
    "kaleido render": "--views 2 --steps 1",
    "kaleido lora": "--steps 2 --batch 1 --views 4 --denoising-steps 1 --scored-references 3",
    "kaleido shard": "--scenes 3 --views 10 --size 16 --samples 1",
    "kaleido train": "--steps 2 --size 16 --scenes 8 --render-samples 1 --validation-scenes 1 --no-compile",
    "kaleido evaluate": "--scenes 2 --steps 1",
    "python examples/overfit_capture.py": "--steps 2 --layers 1 --heads 2 --batch 1 --views 4",
    "python conversion/warm_start.py": "--sample-size 8",
    "python benchmarks/variants.py": "--steps 1 --references 1",
    "torchrun --nproc-per-node": "--views 2 --steps 1",
    "python benchmarks/warm_start.py": "--worlds 34 --donor-steps 1 --steps 1 --evaluations 1 --batch 1 --seeds 0",
}
HAS_PHOTOS = (SHARED / "captures/kermit").exists()
SERVERS = {"kaleido demo": r"serving on (http://\S+)", "kaleido view": r"open (http://\S+) in a browser"}


@cache
def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page].read_text(), re.DOTALL)


def words_of(lines: list[str]) -> list[list[str]]:
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if line]


def block_commands(page: str) -> list[list[str]]:
    """The words of each command of the code blocks."""
    return words_of("\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines())


def text_commands(page: str) -> list[list[str]]:
    """Those of the text, but for verbs that it only speaks of."""
    words = words_of(re.findall(r"`((?:kaleido|python) [^`\n]+)`", PAGES[page].read_text()))
    return [line for line in words if len(line) > 2 or line == ["kaleido", "info"]]


def shape(words: list[str]) -> str:
    """A command whatever the user's photos and capture are called."""
    return re.sub(r"\b(photos|PHOTOS)\b/?", "PHOTOS", " ".join(words).replace("photos-capture", "CAPTURE"))


def furnish(folder: Path) -> Path:
    """Puts everything into `folder` that commands speak of as the user's own."""
    for name in ("my-kaleido", "CHECKPOINT", "FOLDER"):
        make_pipeline().save_pretrained(folder / name)
    for name in ("my-capture", "CAPTURE", "photos-capture"):
        shutil.copytree(sample_capture(), folder / name)
    load_scene(sample_capture()).images[0].convert("RGB").save(folder / "photo.jpg")
    for name in ("photos", "PHOTOS"):
        if HAS_PHOTOS:
            (folder / name).symlink_to(SHARED / "captures/kermit/images")
    make_assets(folder / "my-assets")
    make_gso(folder / "GSO30", ("elephant",))
    make_lumina2().save_pretrained(folder / "path/to/Lumina-Image-2.0/transformer")
    return folder


def as_run(words: list[str]) -> list[list[str]]:
    """A documented command as it is run here: shorter, and by the user `you`; `make` by its recipe."""
    words = [word.replace("NAME/", "you/") for word in words]
    if words[0] == "make":
        recipe = subprocess.run(["make", "--dry-run", words[1]], cwd=ROOT, capture_output=True, text=True, check=True)
        commands = [[Path(line[0]).name, *line[1:]] for line in words_of(recipe.stdout.splitlines()) if line]
        return [found for line in commands if line[0] == "kaleido" for found in as_run(line)]
    if words[0] == "pip":
        extra = re.fullmatch(r"\.\[(\w+)\]", words[2]).group(1)
        setup = ConfigParser()
        setup.read(ROOT / "setup.cfg")
        assert extra in setup["options.extras_require"]
        return []
    if words[:2] == ["kaleido", "poses"] and not HAS_PHOTOS:
        return []
    if "--help" in words:
        return [words]
    return [words + SHORTER.get(" ".join(words[:2]), "").split()]


def as_configured(words: list[str]) -> list[str]:
    """With the settings of its `--config`, whose files lie in the repository."""
    return with_config_files([str(ROOT / word) if word.endswith(".yaml") else word for word in words])


def serves(words: list[str]) -> bool:
    return " ".join(words[:2]) in SERVERS and "--help" not in words


DRIVER = f"""
import importlib, json, os, runpy, subprocess, sys, traceback
from pathlib import Path
from kaleido_diffusers import cli

for verb in ("convert", "evaluate", "info", "lora", "poses", "push", "render", "shard", "train"):
    importlib.import_module(f"kaleido_diffusers.cli.{{verb}}")

def run(folder, words):
    os.chdir(folder)
    print("$", *words, flush=True)
    if words[0] == "kaleido" and "--help" not in words:
        assert cli.main(words[1:]) == 0
    elif words[0] == "python":
        script = Path({str(ROOT)!r}) / words[1]
        sys.argv, sys.path[0] = words[1:], str(script.parent)
        runpy.run_path(str(script), run_name="__main__")
    else:
        module = [sys.executable, "-m", "kaleido_diffusers.cli"]
        program = module if words[0] == "kaleido" else [Path(sys.executable).with_name(words[0])]
        subprocess.run(program + words[1:], check=True)

for line in sys.stdin:
    code, log = json.loads(line)
    child = os.fork()
    if not child:
        status, stream = 1, os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        try:
            exec(code)
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        server.tokens = {"yours": "you"}
        yield server


@pytest.fixture(scope="module")
def driver(hub, tmp_path_factory):
    """A process that has imported everything, with the Hub on loopback. Each page runs in a fork of it."""
    env = client(hub, tmp_path_factory.mktemp("home"), "yours") | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", DRIVER]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.stdin.close()


@pytest.mark.documentation
@pytest.mark.parametrize("page", PAGES)
def test_commands_and_python_run(page, driver, hub, tmp_path):
    code, mine = [], furnish(tmp_path / "mine")
    places = [(mine, words) for documented in block_commands(page) for words in as_run(documented)]
    shown = {shape(words) for words in block_commands(page)}
    for number, documented in enumerate(text_commands(page)):
        if shape(documented) in shown:  # ran with the blocks
            continue
        own = mine if serves(documented) else furnish(tmp_path / f"text{number}")  # served is what the blocks made
        places += [(own, words) for words in as_run(documented)]
    for folder, words in places:
        if words[:2] in (["kaleido", "poses"], ["kaleido", "convert"]):  # which write no folder over
            output = words[words.index("--output") + 1] if "--output" in words else f"{words[2]}-capture"
            shutil.rmtree(folder / output, ignore_errors=True)
        if not serves(words):
            code.append(f"run({str(folder)!r}, {words!r})")
    for name in ("kaleido_diffusers", "examples"):
        (mine / name).symlink_to(ROOT / name)  # `hf upload` is run from the repository's root
    code += [f"os.chdir({str(mine)!r})", *blocks(page, "python")]
    assert all(sum(map(bool, block.splitlines())) < 15 for block in blocks(page, "python")), "short enough to read"
    for name, make in TINY_PIPELINES.items():
        if f'from_pretrained("{name}")' in PAGES[page].read_text():
            make(tmp_path / f"text of {Path(name).name}").save_pretrained(tmp_path / name)
            hub.publish(name, tmp_path / name)
    before = set(hub.repos)
    print(json.dumps(["\n".join(code), str(tmp_path / "log")]), file=driver.stdin, flush=True)
    assert driver.stdout.readline() == "0\n", (tmp_path / "log").read_text()
    made = [repo for name, repo in hub.repos.items() if name not in before]
    spaces = [sorted(repo.commits[repo.branches["main"]]) for repo in made if repo.is_space]
    for files in spaces:
        assert {"app.py", "README.md", "requirements.txt", "kaleido_diffusers/__init__.py"} <= set(files)
    assert len(spaces) == (page == "serving.md")
    for folder, words in places:
        if serves(words):
            announced = SERVERS[" ".join(words[:2])]
            with served_command([*words[1:], "--port", str(free_port())], announced, folder) as (url, _):
                assert b"<html" in urllib.request.urlopen(url, timeout=60).read().lower()


@pytest.mark.parametrize("page", PAGES)
def test_documented_commands_are_understood_as_they_stand(page):
    shown = words_of("".join(blocks(page, "text")).splitlines())  # of data sets that are not here
    for words in [*block_commands(page), *text_commands(page), *(line for line in shown if line[0] == "kaleido")]:
        if words[0] == "kaleido" and "--help" not in words:
            tyro.extras.subcommand_cli_from_dict(cli.VERBS, args=as_configured(words[1:]))
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_the_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", PAGES[page].read_text()):
        assert (PAGES[page].parent / target).exists(), target
