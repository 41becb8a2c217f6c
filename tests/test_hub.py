"""The Hub: the real client against a server on loopback, in processes that know no other."""

import hashlib
import json
import os
import re
import textwrap
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import make_pipeline
from hub_server import HubServer, client
from huggingface_hub import ModelCard
from interpreters import Interpreter, run_alone

from kaleido_diffusers.loaders.adapter_files import AdapterInfo, save_adapter
from kaleido_diffusers.loaders.lora_settings import make_lora_config
from kaleido_diffusers.pipelines.hub import MODULAR_INDEX, model_card, update_card


LOOP = """
import contextlib, io, json, os, sys, traceback
import kaleido_diffusers, torch
from diffusers import AutoModel, DiffusionPipeline
from kaleido_diffusers import KaleidoTransformer3DModel, KaleidoViewSynthesisPipeline, cli
for line in sys.stdin:
    out, err, error = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            exec(compile(json.loads(line), "test", "exec"), globals())
        except Exception:
            error = traceback.format_exc()
    print(json.dumps([out.getvalue(), err.getvalue(), error]), flush=True)
"""


class Process:
    """A Python process that has imported the package, with the Hub on loopback."""

    def __init__(self, server: HubServer, home: Path, token: str | None = "alices", offline: bool = False):
        self.home = home
        self._process = Interpreter(LOOP, env=client(server, home, token, offline))

    def run(self, code: str, fails: bool = False) -> str:
        """What the code prints, or the error in which it must end."""
        self._process.stdin.write(json.dumps(textwrap.dedent(code)) + "\n")
        self._process.stdin.flush()
        out, _, error = json.loads(self._process.stdout.readline())
        assert bool(error) == fails, error or out
        return error or out

    def kaleido(self, *words, token: str | None = "alices", status: int = 0) -> str:
        """Runs a verb: what it prints, or its one line on standard error."""
        code = f"""
        os.environ.pop("HF_TOKEN", None)
        os.environ |= {{"HF_TOKEN": {token!r}}} if {token!r} else {{}}
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            status = cli.main({[str(word) for word in words]!r})
        assert status == {status}, errors.getvalue()
        print(errors.getvalue() if status else "", end="")
        """
        return self.run(code)

    def close(self) -> None:
        assert self._process.close() == 0


@contextmanager
def process(*args, **options):
    one = Process(*args, **options)
    try:
        yield one
    finally:
        one.close()


@pytest.fixture(scope="module")
def server():
    with HubServer() as server:
        server.tokens = {"alices": "alice", "bobs": "bob", "yours": "you"}
        yield server


@pytest.fixture(scope="module")
def alice(server, tmp_path_factory):
    with process(server, tmp_path_factory.mktemp("alice")) as one:
        yield one


@pytest.fixture(scope="module")
def pipes(tmp_path_factory) -> tuple[Path, Path]:
    """Folders of two pipelines of one shape: the first and the second version."""
    folders = tuple(tmp_path_factory.mktemp(name) for name in ("first", "second"))
    for seed, folder in enumerate(folders):
        make_pipeline(seed=seed).save_pretrained(folder)
    return folders


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    folder, model = tmp_path_factory.mktemp("adapter"), make_pipeline().transformer
    model.add_adapter(make_lora_config(2))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(0.1) if "lora_B" in name else None
    about = {"capture": "room", "steps": 7, "size": 8, "scores": {"PSNR, 3 references": 20.125}}
    save_adapter(folder, model, AdapterInfo.of(model, base_name="alice/scene", **about))
    return folder


@pytest.fixture(scope="module")
def scene(server, alice, pipes) -> list[str]:
    """Commits of `alice/scene`, which holds the first version and then the second."""
    commits = []
    for folder in pipes:
        alice.kaleido("push", folder, "alice/scene", "--license", "apache-2.0")
        commits.append(server.repos["alice/scene"].branches["main"])
    return commits


def card_of(server: HubServer, name: str) -> ModelCard:
    repo = server.repos[name]
    return ModelCard(repo.commits[repo.branches["main"]]["README.md"].decode())


def weights_of(folder: Path) -> bytes:
    return (folder / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()


# Cards


def test_cards_name_what_is_known(pipes, adapter, tmp_path):
    scores = {"settings": {"data": "/home/me/garden"}, "summary": []}
    for references, psnr in ((3, 21.0), (6, 22.5)):
        scores["summary"].append({"method": "kaleido", "references": references, "psnr": psnr, "lpips": None})
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    (tmp_path / "sheet.png").write_bytes(b"")
    card = model_card(pipes[0], "alice/scene", tmp_path, "apache-2.0")
    assert card.data.to_dict() == {
        "library_name": "diffusers",
        "license": "apache-2.0",
        "pipeline_tag": "image-to-3d",
        "tags": ["kaleido", "novel-view-synthesis"],
    }
    for words in ("# scene\n", "3 layers of width 128, 8 x 8 pixels in patches of 4", "views of garden", "sheet.png"):
        assert words in card.text, card.text
    assert "| PSNR (dB) | 3 | 6 |\n|---|---|---|\n| kaleido | 21.00 | 22.50 |" in card.text
    assert "LPIPS" not in card.text and "/home/me" not in card.text

    card = model_card(adapter, base_model="alice/scene")
    assert (card.data.base_model, card.data.tags[-1]) == ("alice/scene", "lora") and card.data.license is None
    for words in ("# Kaleido on room", "rank 2", "7 steps", "| this adapter | 20.12 |", "No licence is stated"):
        assert words in card.text, card.text
    with pytest.raises(ValueError, match="neither a pipeline"):
        model_card(tmp_path)
    with pytest.raises(ValueError, match="no scores.json"):
        model_card(adapter, evaluation=adapter)


def test_hand_written_parts_stay(pipes):
    old = model_card(pipes[0], "alice/scene")
    old.text = old.text.replace("The author has not said what it was trained on.", "On \\1 my photos.")
    old.text = old.text.replace("# scene", "# My scene").replace("Not scored yet", "Ninety") + "\nThanks to Bob.\n"
    old.text = re.sub("## Licence.*end: licence -->", "", old.text, flags=re.DOTALL)
    old.data.pipeline_tag, old.data.tags, old.data["doi"] = "image-to-video", ["mine"], "10/1"
    card = update_card(ModelCard(str(old)), model_card(pipes[0], "alice/other", license="mit"))
    for words in ("# My scene\n", "On \\1 my photos.", "Not scored yet", "Thanks to Bob.\n", '"alice/other"'):
        assert words in card.text, card.text
    assert "alice/scene" not in card.text and "Licence" not in card.text, "a part that was removed stays away"
    expected = {"pipeline_tag": "image-to-video", "license": "mit", "doi": "10/1", "library_name": "diffusers"}
    assert card.data.to_dict() == {**expected, "tags": ["mine", "kaleido", "novel-view-synthesis"]}
    assert str(update_card(ModelCard(str(card)), model_card(pipes[0], "alice/other", license="mit"))) == str(card)
    assert str(update_card(ModelCard(str(card)), model_card(pipes[0], "alice/other"))) == str(card), "licence kept"

    own = ModelCard("---\nlicense: mit\n---\n\n# Mine\n\n## Scores\n\nGood.\n")
    text = update_card(own, model_card(pipes[0], "alice/scene", license="mit")).text
    assert text.startswith("\n# Mine\n\n## Scores\n\nGood.\n\n## How to use\n") and text.count("## Scores") == 1


# Uploads


def test_push_makes_a_repository_and_a_card(server, scene, pipes):
    repo = server.repos["alice/scene"]
    first, second = (repo.commits[commit] for commit in scene)
    assert not repo.private and len(repo.commits) == 3, "one commit a push, after the Hub's first"
    for files, folder in ((first, pipes[0]), (second, pipes[1])):
        assert files["transformer/diffusion_pytorch_model.safetensors"] == weights_of(folder)
        names = {"model_index.json", "pipeline.py", "scheduler/scheduler_config.json", "transformer/config.json"}
    assert names < files.keys()
    card = card_of(server, "alice/scene")
    assert card.data.license == "apache-2.0" and 'from_pretrained("alice/scene")' in card.text
    assert not (pipes[0] / "README.md").exists()


def test_push_keeps_what_was_written_on_the_hub(server, alice, pipes, tmp_path):
    folder = tmp_path / "pipe"
    os.symlink(pipes[0], folder)
    alice.kaleido("push", folder, "alice/written", "--message", "As it is")
    repo = server.repos["alice/written"]
    files = dict(repo.commits[repo.branches["main"]])
    text = files["README.md"].decode().replace("The author has not said what", "What")
    files["README.md"] = text.replace("---\n\n#", "license: mit\n---\n\n#", 1).encode()
    repo.commit("main", files)
    alice.kaleido("push", folder, "alice/written", "--revision", "next")
    assert repo.branches["next"] != repo.branches["main"]
    after = repo.commits[repo.branches["next"]]["README.md"].decode()
    assert "What it was trained on." in after and "license: mit" in after
    assert re.search(r"## Licence\n\n<!-- generated: licence -->\n\nmit\n", after)


def test_the_folders_card_is_taken_when_asked_for(server, alice, adapter, tmp_path):
    for path in adapter.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n\n# One\n")
    alice.kaleido("push", tmp_path, "alice/replaced")
    assert card_of(server, "alice/replaced").text.startswith("\n# One\n")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n\n# Two\n")
    alice.kaleido("push", tmp_path, "alice/replaced", "--license", "cc-by-4.0")
    card = card_of(server, "alice/replaced")
    assert card.text.startswith("\n# One\n") and card.data.license == "cc-by-4.0"
    alice.kaleido("push", tmp_path, "alice/replaced", "--replace-card")
    assert card_of(server, "alice/replaced").text.startswith("\n# Two\n")
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    line = alice.kaleido("push", tmp_path, "alice/replaced", "--replace-card", status=1)
    assert "README.md: the metadata at the top of the card cannot be read" in line


def test_push_to_hub_gives_the_same_card(server, alice, scene, pipes):
    code = f"""
    pipe = KaleidoViewSynthesisPipeline.from_pretrained({str(pipes[1])!r})
    pipe.push_to_hub("alice/method")
    pipe.save_pretrained({str(pipes[0].parent / "saved")!r}, push_to_hub=True, repo_id="alice/option", private=True)
    pipe.push_to_hub("alice/method", subfolder="half", variant="fp16")
    """
    alice.run(code)
    expected = model_card(pipes[1], "alice/method")
    assert str(card_of(server, "alice/method")) == str(expected)
    assert str(card_of(server, "alice/option")) == str(expected).replace("method", "option")
    assert server.repos["alice/option"].private
    files = server.repos["alice/method"].commits[server.repos["alice/method"].branches["main"]]
    assert "half/transformer/diffusion_pytorch_model.fp16.safetensors" in files and "half/README.md" not in files
    assert "pipeline.py" in files and "half/pipeline.py" not in files


def test_the_modular_form_is_pushed_and_loaded(server, alice, pipes):
    code = f"""
    from diffusers import ModularPipeline
    from kaleido_diffusers import KaleidoGuidance, KaleidoModularPipeline
    pipe = KaleidoModularPipeline.from_pretrained({str(pipes[0])!r})
    pipe.load_components()
    pipe.update_components(guider=KaleidoGuidance(2.5))
    folder = {str(pipes[0].parent / "in blocks")!r}
    pipe.save_pretrained(folder, push_to_hub=True, repo_id="alice/blocks", private=True)
    pipe.push_to_hub("alice/modular", max_shard_size="100KB")
    loaded = ModularPipeline.from_pretrained("alice/modular")
    loaded.load_components()
    assert loaded.guider.guidance_scale == 2.5
    standard = KaleidoViewSynthesisPipeline.from_pretrained("alice/modular")
    for one, other in zip(loaded.transformer.parameters(), standard.transformer.parameters(), strict=True):
        assert torch.equal(one, other)
    """
    alice.run(code)
    repo = server.repos["alice/modular"]
    files = repo.commits[repo.branches["main"]]
    index = json.loads(files[MODULAR_INDEX])
    for name in ("transformer", "scheduler", "guider"):
        spec = index[name][2]
        assert (spec["pretrained_model_name_or_path"], spec["subfolder"]) == ("alice/modular", name)
    assert "modular_config.json" not in files and "pipeline.py" in files
    assert len([name for name in files if name.startswith("transformer/") and "-of-" in name]) > 1
    assert server.repos["alice/blocks"].private and not repo.private
    blocks = server.repos["alice/blocks"]
    index = json.loads(blocks.commits[blocks.branches["main"]][MODULAR_INDEX])
    assert index["guider"][2]["pretrained_model_name_or_path"] == "alice/blocks"
    assert 'from_pretrained("alice/modular")' in card_of(server, "alice/modular").text


@pytest.mark.parametrize("form", ["KaleidoViewSynthesisPipeline", "KaleidoModularPipeline"])
def test_an_option_that_pushing_does_not_know_is_refused_before_anything_is_saved(alice, pipes, tmp_path, form):
    """A misspelt `repo_id` would push to a repository of the folder's name."""
    code = f"""
    import kaleido_diffusers
    pipe = getattr(kaleido_diffusers, {form!r}).from_pretrained({str(pipes[0])!r})
    pipe.save_pretrained({str(tmp_path / "saved")!r}, push_to_hub=True, repo="alice/option")
    """
    assert "unexpected keyword argument 'repo'" in alice.run(code, fails=True)
    assert not (tmp_path / "saved").exists()


def test_a_broken_upload_goes_on_where_it_was(server, alice, pipes, tmp_path):
    pipe = make_pipeline(seed=5)
    pipe.transformer.save_pretrained(tmp_path / "transformer", max_shard_size="100KB")
    pipe.scheduler.save_pretrained(tmp_path / "scheduler")
    (tmp_path / "model_index.json").write_bytes((pipes[0] / "model_index.json").read_bytes())
    shards = len(list(tmp_path.rglob("*.safetensors")))
    before = len(server.requests("PUT", "/storage/"))
    server.breaks |= {"upload": 1, "commit": 1}
    line = alice.kaleido("push", tmp_path, "alice/broken", status=1)
    assert re.fullmatch(
        r"kaleido: The connection to the Hub broke \(.+\): call again, what has arrived stays\.\n", line
    )
    assert len(server.requests("PUT", "/storage/")) == before + shards + 1, "one was cut in half, and sent again"
    assert server.repos["alice/broken"].commits.keys() == {server.repos["alice/broken"].branches["main"]}
    alice.kaleido("push", tmp_path, "alice/broken")
    assert len(server.requests("PUT", "/storage/")) == before + shards + 1, "nothing is sent again"
    assert card_of(server, "alice/broken").data.library_name == "diffusers"


def test_refusals_are_one_sentence(server, alice, scene, pipes, tmp_path):
    alice.kaleido("push", pipes[0], "alice/secret", "--private")
    assert server.repos["alice/secret"].private
    log_in = r"log in.* `hf auth login`\.\n"
    for token, name, sentence in (
        (None, "alice/secret", f"kaleido: The Hub does not show or change alice/secret without a token: {log_in}"),
        ("forged", "alice/secret", rf"kaleido: The Hub does not accept the token for alice/secret \(.+\): {log_in}"),
        ("bobs", "alice/secret", rf"kaleido: The token gives no right to alice/secret \(.+\): {log_in}"),
        ("bobs", "alice/scene", rf"kaleido: The token gives no right to alice/scene \(.+\): {log_in}"),
    ):
        line = alice.kaleido("push", pipes[0], name, token=token, status=1)
        assert re.fullmatch(sentence, line), line
    line = alice.kaleido("push", pipes[0], "alice/scene", "--private", status=1)
    assert line == "kaleido: alice/scene is there already, and public: make it private in its settings first.\n"
    line = alice.kaleido("push", tmp_path, "alice/empty", status=1)
    assert "holds neither a pipeline" in line and line.count("\n") == 1 and "alice/empty" not in server.repos


# Downloads

LOAD = """
from safetensors.torch import load_file
def same(model, folder):
    there = load_file(folder + "/transformer/diffusion_pytorch_model.safetensors")
    assert type(model) is KaleidoTransformer3DModel
    assert all(torch.equal(x, there[key]) for key, x in model.state_dict().items())
"""


def test_loading_with_and_without_a_cache_online_and_offline(server, scene, pipes, tmp_path):
    first, second = map(str, pipes)
    load = f"""
    {LOAD.replace(chr(10), chr(10) + "    ")}
    pipe = DiffusionPipeline.from_pretrained("alice/scene")
    assert type(pipe) is KaleidoViewSynthesisPipeline
    same(pipe.transformer, {second!r})
    same(AutoModel.from_pretrained("alice/scene", subfolder="transformer"), {second!r})
    """
    with process(server, tmp_path, token=None) as fresh, process(server, tmp_path / "no", offline=True) as lost:
        server.breaks["download"] = 1
        fresh.run(load)
        oid = hashlib.sha256(weights_of(pipes[1])).hexdigest()
        assert len(server.requests("GET", f"/storage/{oid}")) == 2, "one was cut in half, and fetched again"
        old = f'same(KaleidoViewSynthesisPipeline.from_pretrained("alice/scene", revision={scene[0]!r})'
        fresh.run(f"{old}.transformer, {first!r})")
        assert "offline" in lost.run('DiffusionPipeline.from_pretrained("alice/scene")', fails=True).lower()
    fetched = len(server.requests("GET", "/storage/"))
    with process(server, tmp_path, token=None) as again, process(server, tmp_path, offline=True) as offline:
        again.run(load)
        assert len(server.requests("GET", "/storage/")) == fetched, "what is cached is not fetched again"
        seen = len(server.log)
        offline.run(load)
        offline.run(f"{old}.transformer, {first!r})")
        assert len(server.log) == seen, "offline is offline"


def run_without_import(env: dict[str, str], code: str) -> list[str]:
    """Runs code that does not name the package in a fresh process: the lines that it prints."""
    assert "import kaleido_diffusers" not in code
    return run_alone(code, env=env).splitlines()


SAME = """
from safetensors.torch import load_file
there = load_file({folder!r} + "/transformer/diffusion_pytorch_model.safetensors")
assert all((value == there[key]).all() for key, value in pipe.transformer.state_dict().items())
print(type(pipe).__module__, type(pipe).__name__)
"""


def test_loading_without_importing_the_package(server, scene, pipes, tmp_path):
    """By the repository's `pipeline.py`, as the card says: fresh, from the cache, at a revision, offline."""
    card = card_of(server, "alice/scene").text
    code = next(block for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "custom_pipeline" in block)
    first, second = (SAME.format(folder=str(folder)) for folder in pipes)
    online, offline = (client(server, tmp_path / "home", offline=value) for value in (False, True))
    name = "kaleido_diffusers.pipelines.pipeline_kaleido KaleidoViewSynthesisPipeline"
    saved = tmp_path / "saved"
    assert run_without_import(online, f"{code}{second}\npipe.save_pretrained({str(saved)!r})") == [name]
    index = json.loads((saved / "model_index.json").read_text())
    assert index["_class_name"] == "KaleidoViewSynthesisPipeline" and index["transformer"][0] == "kaleido_diffusers"

    fetched = len(server.requests("GET", "/storage/"))
    old = code.replace("trust_remote_code", f"revision={scene[0]!r}, trust_remote_code")
    assert old != code and run_without_import(online, code + second + old + first) == [name, name]
    assert len(server.requests("GET", "/storage/")) == fetched + 1, "the first version alone was not there"

    # diffusers asks the Hub for the commit of code by a Hub id, offline too: a folder has none
    fetch = 'from huggingface_hub import snapshot_download; print(snapshot_download("alice/scene"))'
    folder = run_without_import(online, fetch)[0]
    there = code.replace('"alice/scene"', repr(folder))
    assert there != code and run_without_import(offline, there + second) == [name]


def test_code_of_a_repository_that_does_not_run(server, scene, tmp_path):
    code = """
import sys
from diffusers import DiffusionPipeline
for arguments in ({}, {"custom_pipeline": "pipeline"}, {"custom_pipeline": "pipeline", "trust_remote_code": True}):
    try:
        sys.modules["kaleido_" "diffusers"] = None  # as if it were not installed
        DiffusionPipeline.from_pretrained("alice/scene", **arguments)
    except Exception as error:
        print(type(error).__name__, " ".join(str(error).split()))
"""
    plain, untrusted, absent = run_without_import(client(server, tmp_path), code)
    assert "no attribute KaleidoViewSynthesisPipeline" in plain
    assert untrusted.startswith("ValueError") and "Pass `trust_remote_code=True`" in untrusted
    assert absent == "ImportError This pipeline is in a package that is absent: `pip install kaleido-diffusers`."


def test_code_goes_with_pipelines_alone(server, alice, pipes, adapter, tmp_path):
    alice.kaleido("push", adapter, "alice/codeless")
    repo = server.repos["alice/codeless"]
    assert "pipeline.py" not in repo.commits[repo.branches["main"]]
    for path in (path for path in pipes[0].rglob("*") if path.is_file()):
        target = tmp_path / path.relative_to(pipes[0])
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    (tmp_path / "pipeline.py").write_text("# mine\n")
    alice.kaleido("push", tmp_path, "alice/own-code")
    repo = server.repos["alice/own-code"]
    assert repo.commits[repo.branches["main"]]["pipeline.py"] == b"# mine\n"


def test_the_cards_code_runs_as_written(server, alice, scene, adapter, tmp_path):
    alice.kaleido("push", adapter, "alice/adapter")
    card = card_of(server, "alice/adapter")
    assert card.data.base_model == "alice/scene", "a Hub id that the Hub knows"
    code = re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1]
    assert "The adapter was made for the base alice/scene, not for" in alice.run(code, fails=True), "its first version"
    code = code.replace('from_pretrained("alice/scene"', f'from_pretrained("alice/scene", revision={scene[0]!r}')
    alice.run(f"os.chdir({str(tmp_path)!r})\n{code}")
    assert (tmp_path / "new_view.png").is_file()
    check = """
    weights = [x for key, x in pipe.transformer.named_parameters() if "lora_B" in key]
    assert weights and all((x == 0.1).all() for x in weights)
    """
    alice.run(check)
    alice.run('pipe.unload_lora_weights(); pipe.load_lora_weights("alice/adapter")')
    alice.run(check)
    with process(server, alice.home, offline=True) as offline:
        offline.run(code.partition("scene =")[0])
        offline.run(check)


def test_what_is_missing_or_private_is_named(server, alice, scene):
    repo = server.repos["alice/scene"]
    files = dict(repo.commits[scene[1]])
    del files["transformer/diffusion_pytorch_model.safetensors"]
    repo.commit("torn", files)
    error = alice.run('DiffusionPipeline.from_pretrained("alice/scene", revision="torn")', fails=True)
    assert "no file named diffusion_pytorch_model" in error, error
    error = alice.run('DiffusionPipeline.from_pretrained("alice/scene", revision="absent")', fails=True)
    assert "absent" in error, error
    alice.run('os.environ["HF_TOKEN"] = "bobs"')
    error = alice.run('KaleidoTransformer3DModel.from_pretrained("alice/hidden", subfolder="transformer")', fails=True)
    alice.run('os.environ["HF_TOKEN"] = "alices"')
    assert "token having permission" in error, error
