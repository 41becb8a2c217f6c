"""The README and the pages of docs/ are true: their Python runs, their commands are understood, their files exist."""

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import tyro
from conftest import make_pipeline
from hub_server import HubServer, client

from kaleido_diffusers import cli


ROOT = Path(__file__).parents[1]
PAGES = {page.name: page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
BEFORE = {  # commands that make what the Python of a page needs; what a page says of training takes minutes
    "finetuning.md": ["kaleido lora sample --output runs/my-scene --steps 2 --batch 1 --views 4 --denoising-steps 1"],
    "conversion.md": ["kaleido push my-kaleido you/kaleido-garden"],
}
QUICK = ("kaleido convert", "kaleido info")  # commands of such pages that are run, too


@cache
def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page].read_text(), re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """The words of each command, of the code blocks and of the text."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    lines += re.findall(r"`((?:kaleido|python) [^`\n]+)`", PAGES[page].read_text())
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if line]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_python_runs(page, tmp_path):
    code = ["from kaleido_diffusers import cli"]
    lines = [line for text in blocks(page, "bash") for line in text.splitlines() if line.startswith(QUICK)]
    lines = [shlex.split(line, comments=True) for line in BEFORE.get(page, []) + lines]
    code += [f"assert cli.main({words[1:]!r}) == 0" for words in lines]
    make_pipeline().save_pretrained(tmp_path / "my-kaleido")
    with HubServer() as server:
        server.tokens = {"yours": "you"}
        env = client(server, tmp_path / "home", "yours")
        text = "\n".join(code + blocks(page, "python"))
        run = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_are_understood(page):
    for words in commands(page):
        program, arguments = words[0], words[1:]
        if program == "kaleido":
            if "--help" in arguments or len(arguments) == 1 and arguments[0] in cli.VERBS:
                continue  # a verb that the text speaks of
            tyro.extras.subcommand_cli_from_dict(cli.VERBS, args=arguments)
        elif program == "python":
            script = ROOT / arguments[0]
            told = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, cwd=ROOT)
            flags = [word for word in arguments if word.startswith("--")]
            assert told.returncode == 0 and all(flag in told.stdout for flag in flags), (words, told.stderr)
        elif program == "make":
            assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        else:
            assert program in ("pip", "hf"), f"{page}: {' '.join(words)}"


@pytest.mark.parametrize("page", PAGES)
def test_the_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", PAGES[page].read_text()):
        assert (PAGES[page].parent / target).exists(), target
