"""The site of `make docs`: builds without a warning, and its reference is made from the docstrings."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PACKAGES = ("mkdocs", "material", "mkdocstrings", "mkdocstrings_handlers")


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PACKAGES), reason="the extra `docs` is not installed"
)
def test_the_site_builds(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    reference = (tmp_path / "reference" / "pipelines" / "index.html").read_text(encoding="utf-8")
    text = re.sub("<[^>]+>", " ", reference)
    for said in ("num_samples", "Samples of each target", "encode_references"):
        assert said in text, said
    assert re.search(r'href="[^"]*models/#kaleido_diffusers\.models\.[^"]*KaleidoTransformer3DModel"', reference)
    home = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert 'href="training/"' in home and (tmp_path / "skull_sheet.png").is_file() and "skull_sheet.png" in home
    assert (tmp_path / "repository" / "benchmarks" / "README" / "index.html").is_file() or (
        tmp_path / "repository" / "benchmarks" / "index.html"
    ).is_file(), "what pages link to outside of docs/ comes along"
