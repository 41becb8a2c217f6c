# Copyright 2026 The Kaleido for diffusers team.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""Folders of pipelines and adapters on the Hugging Face Hub, with model cards.

A card is made from what the folder holds. Text between `<!-- generated: NAME -->` and `<!-- end: NAME -->` is
rewritten when the folder is pushed again; all other text, and metadata that is set, belongs to whoever writes it.
"""

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from diffusers.utils import logging
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, ModelCard, ModelCardData, get_token
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError
from huggingface_hub.utils import httpx

from ..bundled import BUNDLED
from ..files import write_text, written_whole
from ..loaders.adapter_files import AdapterInfo, read_adapter_info
from ..loaders.fitting import on_meta
from ..models.transformer_kaleido import KaleidoTransformer3DModel


__all__ = ["explain_hub_error", "model_card", "push_folder", "update_card", "write_card", "write_code"]

logger = logging.get_logger(__name__)  # pylint: disable=invalid-name

CARD, INDEX, SCORES, CODE = "README.md", "model_index.json", "scores.json", "pipeline.py"
MODULAR_INDEX = "modular_model_index.json"
PICTURES = {
    "test_photos.png": "Photos that training did not see: by the base, by the adapter, and as they are",
    "sheet.png": "Held-out views: references, generated, baselines, and as they are",
}
METRICS = {"psnr": ("PSNR (dB)", ".2f"), "ssim": ("SSIM", ".3f"), "lpips": ("LPIPS", ".3f")}

# What a pipeline's repository holds as `pipeline.py`. diffusers runs it for `custom_pipeline="pipeline"`, where the
# user says `trust_remote_code=True`. `model_index.json` does not name it: diffusers would then want that word from
# those too who have imported the package. One class and no subclass: it looks for the only pipeline in the file.
PIPELINE_CODE = '''"""The pipeline of this repository is in the package kaleido-diffusers; here is only its name."""

try:
    from kaleido_diffusers import KaleidoViewSynthesisPipeline  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "kaleido_diffusers":
        raise
    raise ImportError("This pipeline is in a package that is absent: `pip install kaleido-diffusers`.") from None
'''

_MARKED = re.compile(
    r"(?P<heading>## [^\n]+\n\s*\n)?(?P<block><!-- generated: (?P<mark>\w+) -->.*?<!-- end: (?P=mark) -->)", re.DOTALL
)
_SCORE_NAME = re.compile(r"(?P<metric>.+?)(?: \(dB\) with |, )(?P<references>\d+) references")


class _Part(NamedTuple):
    """A part of a card. Those with a mark are kept up to date, the others are a start for someone to go on from."""

    mark: str | None
    heading: str | None
    text: str


# Cards


def model_card(
    folder: str | os.PathLike,
    repo_id: str | None = None,
    evaluation: str | os.PathLike | None = None,
    license: str | None = None,
    base_model: str | None = None,
) -> ModelCard:
    """
    A new card for a pipeline, or for an adapter of [`save_adapter`].

    Args:
        folder (`str` or `os.PathLike`): with `model_index.json`, or with `pytorch_lora_weights.safetensors`; its
            `scores.json` and its picture of test photos are shown, if there are any.
        repo_id (`str`, *optional*): where the card is for; without it, it speaks of the folder.
        evaluation (`str` or `os.PathLike`, *optional*): what `kaleido evaluate` wrote: its scores and sheet are taken.
        license (`str`, *optional*): the Hub's name of a licence, such as `"apache-2.0"`.
        base_model (`str`, *optional*): Hub id of an adapter's base.

    Raises:
        `ValueError`: if the folder holds neither, or `evaluation` no scores.
    """
    files = _files(Path(folder), evaluation)
    scores = json.loads(files[SCORES].read_text(encoding="utf-8")) if SCORES in files else {}
    data = {"library_name": "diffusers", "pipeline_tag": "image-to-3d", "license": license}
    tags = ["kaleido", "novel-view-synthesis"]
    if INDEX in files:
        title = repo_id.split("/")[-1] if repo_id else Path(folder).resolve().name
        parts = _pipeline_parts(Path(folder), repo_id, scores)
    else:
        info = read_adapter_info(files[LORA_WEIGHT_NAME_SAFE])
        scores = scores or (info.scores if info else {})
        title = f"Kaleido on {info.capture}" if info and info.capture else "An adapter for Kaleido"
        parts = _adapter_parts(info, repo_id, scores, base_model)
        tags.append("lora")
        data |= {"base_model": base_model, "base_model_relation": "adapter" if base_model else None}
    pictures = [f"\n\n![{text}]({name})" for name, text in PICTURES.items() if name in files]
    parts.insert(-1, _Part("scores", "Scores", _score_tables(scores) + "".join(pictures)))
    parts.append(_Part("licence", "Licence", license or "No licence is stated: ask the author before you use it."))
    return ModelCard(f"---\n{ModelCardData(**data, tags=tags).to_yaml()}\n---\n\n{_markdown(title, parts)}")


def update_card(card: ModelCard, fresh: ModelCard) -> ModelCard:
    """
    Brings a card up to date, in place, and returns it. Metadata that it lacks is filled in and tags are joined. Its
    marked parts become those of `fresh`, but for the licence where `fresh` has none; a card without marks gets the
    parts whose headings it does not have, at its end.

    Args:
        card (`ModelCard`): as someone may have written it.
        fresh (`ModelCard`): of [`model_card`].
    """
    for key, value in fresh.data.to_dict().items():
        if card.data.get(key) is None:
            card.data[key] = value
    card.data["tags"] = list(dict.fromkeys([*card.data.get("tags", ()), *fresh.data.get("tags", ())]))
    parts = {found["mark"]: found for found in _MARKED.finditer(fresh.text)}
    if card.data.get("license") and not fresh.data.get("license"):
        parts.pop("licence", None)  # what the card says of its licence is more than nothing

    def renewed(old: re.Match) -> str:
        return (old["heading"] or "") + parts[old["mark"]]["block"] if old["mark"] in parts else old[0]

    if _MARKED.search(card.text):
        card.text = _MARKED.sub(renewed, card.text)
    else:
        lines = card.text.splitlines()
        new = [part[0] for part in parts.values() if part["heading"] and part["heading"].strip() not in lines]
        card.text = "\n\n".join([card.text.rstrip(), *new]) + "\n"
    return card


def write_code(folder: str | os.PathLike) -> None:
    """Writes the `pipeline.py` of a pipeline's folder, unless it has one: code that knows diffusers alone loads the
    folder by it.

    Args:
        folder (`str` or `os.PathLike`): of a pipeline.
    """
    path = Path(folder) / CODE
    if not path.exists():
        write_text(path, PIPELINE_CODE)


def write_card(folder: str | os.PathLike) -> Path:
    """Makes the card of a folder, `README.md`, or brings it up to date; see [`model_card`] and [`update_card`].

    Args:
        folder (`str` or `os.PathLike`): of a pipeline or an adapter.
    """
    path, fresh = Path(folder) / CARD, model_card(folder)
    card = update_card(_read_card(path), fresh) if path.is_file() else fresh
    with written_whole(path) as part:
        card.save(part)
    return path


def _read_card(path: Path) -> ModelCard:
    try:
        return ModelCard.load(path)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: the metadata at the top of the card cannot be read ({reason}).") from error


def _files(folder: Path, evaluation: str | os.PathLike | None) -> dict[str, Path]:
    """What is uploaded: paths in the repository and here. Hidden and half-written files stay behind."""
    found = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files = {
        name.as_posix(): path
        for name, path in found.items()
        if path.suffix != ".part" and not any(part.startswith(".") for part in name.parts)
    }
    if INDEX not in files and LORA_WEIGHT_NAME_SAFE not in files:
        raise ValueError(
            f"{folder} holds neither a pipeline ({INDEX}) nor an adapter ({LORA_WEIGHT_NAME_SAFE}): push the folder"
            " that `save_pretrained`, `kaleido train` or `kaleido lora` wrote."
        )
    if evaluation is not None:
        taken = {name: Path(evaluation) / name for name in (SCORES, "sheet.png")}
        if not taken[SCORES].is_file():
            raise ValueError(f"{evaluation} holds no {SCORES}: pass the folder that `kaleido evaluate` wrote.")
        files |= {name: path for name, path in taken.items() if path.is_file()}
    return files


# What cards say


def _markdown(title: str, parts: list[_Part]) -> str:
    blocks = [f"# {title}"]
    for mark, heading, text in parts:
        block = f"<!-- generated: {mark} -->\n\n{text}\n\n<!-- end: {mark} -->" if mark else text
        blocks.append(f"## {heading}\n\n{block}" if heading else block)
    return "\n\n".join(blocks) + "\n"


def _pipeline_parts(folder: Path, repo_id: str | None, scores: dict) -> list[_Part]:
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    stored: Any = KaleidoTransformer3DModel.load_config(folder, subfolder="transformer")  # more where it is asked for
    model = on_meta(KaleidoTransformer3DModel, stored)
    vae, config = index.get("vae", [None, None])[1], model.config
    width = config.num_attention_heads * config.attention_head_dim
    about = (
        "A [Kaleido](https://arxiv.org/abs/2510.04236) view synthesis pipeline: photos with camera poses go in, photos"
        f" from other poses come out. {model.num_parameters() / 1e6:.1f}M parameters, {config.num_layers} layers of"
        f" width {width}, {config.sample_size} x {config.sample_size}"
        f" {f'latents of an {vae}' if vae else 'pixels'} in patches of {config.patch_size}, cameras by"
        f" `{config.camera_encoding}`, {index.get('prediction_type', 'velocity')} prediction."
    )
    limits = (
        "Views are generated, not measured: what no reference shows is invented, and details may differ from view to"
        " view. Poses must share one world frame and one scale with the references."
    )
    if "fitted to" in scores:
        only = f"It knows {scores['fitted to']} and renders no other scene."
        about, limits = f"{about} {only}", f"{only} {limits}"
    return [
        _Part("about", None, about),
        _Part("usage", "How to use", _usage(json.dumps(repo_id or "path/to/this/folder")) + _usage_by_code(repo_id)),
        _Part(None, "Training data", "The author has not said what it was trained on."),
        _Part(None, "Limits", limits),
    ]


def _adapter_parts(info: AdapterInfo | None, repo_id: str | None, scores: dict, base_model: str | None) -> list[_Part]:
    about = "A LoRA adapter of a [Kaleido](https://arxiv.org/abs/2510.04236) view synthesis pipeline"
    base, origin, data = (
        json.dumps(base_model or "path/to/its/base"),
        "",
        "The author has not said what it was trained on.",
    )
    if info is not None:
        about += f" (rank {info.rank}, {' and '.join(info.targets)})"
        origin = f" Its base is `{base_model or info.base_name}`; other weights are refused (a fingerprint is stored)."
        if info.base_name in BUNDLED and base_model is None:
            base = f'bundled_checkpoint("{info.base_name}")'
        if info.capture:
            about += f", fine-tuned on the capture {info.capture} at {info.size} x {info.size} pixels"
            about += f" for {info.steps} steps"
            about += f" and {scores['minutes']:.0f} minutes" if "minutes" in scores else ""
            data = f"The photos of the capture {info.capture}, without those that the scores are taken on."
    place = json.dumps(repo_id or "path/to/this/folder")
    adapter = f'pipe.load_lora_weights({place}, weight_name="{LORA_WEIGHT_NAME_SAFE}")'
    limits = (
        "The adapter knows this scene and no other. It holds what it has learnt from the photos: their licence applies"
        " to it."
    )
    return [
        _Part("about", None, f"{about}.{origin}"),
        _Part("usage", "How to use", _usage(base, adapter)),
        _Part(None, "Training data", data),
        _Part(None, "Limits", limits),
    ]


def _usage(checkpoint: str, adapter: str | None = None) -> str:
    names = ["KaleidoViewSynthesisPipeline", "load_scene", "sample_capture"]
    names += ["bundled_checkpoint"] if checkpoint.startswith("bundled_checkpoint") else []
    adapter = f"{adapter}\n" if adapter else ""
    return (
        f"```python\nfrom kaleido_diffusers import {', '.join(sorted(names))}\n\n"
        f"pipe = KaleidoViewSynthesisPipeline.from_pretrained({checkpoint})\n{adapter}"
        "scene = load_scene(sample_capture())  # or a folder of yours: transforms.json, COLMAP, ...\n"
        "references, targets = range(1, 40, 7), range(0, 40, 20)\n"
        "views = pipe(scene.images[references], scene.cameras[references], scene.cameras[targets]).images\n"
        'views[0].save("new_view.png")\n```'
    )


def _usage_by_code(repo_id: str | None) -> str:
    """For those who do not import the package: a card of a repository, which has a `pipeline.py`."""
    if repo_id is None:
        return ""
    name, _ = CODE.split(".")
    return (
        "\n\nIn code that knows diffusers alone, with the package installed (`pip install kaleido-diffusers`):\n\n"
        "```python\nfrom diffusers import DiffusionPipeline\n\n"
        f'pipe = DiffusionPipeline.from_pretrained("{repo_id}", custom_pipeline="{name}", trust_remote_code=True)\n```'
    )


def _score_tables(scores: dict) -> str:
    """From the JSON of `kaleido evaluate`, or from values by names such as `"PSNR, 3 references"`."""
    tables: dict[tuple[str, str], dict[str, dict[int, float]]] = {}  # metric -> method -> references -> value
    for row in scores.get("summary", ()):
        for key, metric in METRICS.items():
            if row.get(key) is not None:
                tables.setdefault(metric, {}).setdefault(row["method"], {})[row["references"]] = row[key]
    for name, values in scores.items():
        found = _SCORE_NAME.fullmatch(name)
        if found:
            metric = METRICS.get(found["metric"].lower(), (found["metric"], ".3f"))
            for method, value in (values if isinstance(values, dict) else {"this adapter": values}).items():
                tables.setdefault(metric, {}).setdefault(method, {})[int(found["references"])] = value
    where = scores.get("scored on") or Path(scores.get("settings", {}).get("data", "")).name
    lines = [f"Held-out views{f' of {where}' if where else ''}, by the number of references."] if tables else []
    for (title, form), methods in tables.items():
        counts = sorted({count for values in methods.values() for count in values})
        lines += ["", f"| {title} | {' | '.join(map(str, counts))} |", "|---|" + "---|" * len(counts)]
        for method, values in methods.items():
            cells = (format(values[count], form) if count in values else "" for count in counts)
            lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) or "Not scored yet: `kaleido evaluate` scores it beside simple baselines."


# The Hub


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    evaluation: str | os.PathLike | None = None,
    license: str | None = None,
    base_model: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    replace_card: bool = False,
    token: str | None = None,
    create_pr: bool = False,
    subfolder: str | None = None,
) -> CommitInfo:
    """
    Uploads a pipeline or an adapter in one commit, with its card. With a pipeline goes a `pipeline.py`, unless the
    folder has one, by which diffusers loads it for those who do not import this package. After a broken connection a
    second call sends only what has not arrived.

    Args:
        folder (`str` or `os.PathLike`): see [`model_card`].
        repo_id (`str`): `name/repository`; made if it is not there.
        evaluation (`str` or `os.PathLike`, *optional*): see [`model_card`]; scores and sheet are uploaded too.
        license (`str`, *optional*): the Hub's name of a licence; the one that the card has when not given.
        base_model (`str`, *optional*): Hub id of an adapter's base; the base that it names, if the Hub has
            it, when not given.
        private (`bool`, *optional*): whether a new repository is private; what the owner has set when not given.
        revision (`str`, *optional*): branch to commit to, made if it is not there; `main` when not given.
        commit_message (`str`, *optional*): first line of the commit's message.
        replace_card (`bool`, defaults to `False`): start from the card of `folder` although the Hub has one.
        token (`str`, *optional*): of the Hub; the one of `hf auth login` or `HF_TOKEN` when not given.
        create_pr (`bool`, defaults to `False`): open a pull request instead.
        subfolder (`str`, *optional*): of the repository, to upload into, without a card.

    Raises:
        `ValueError`: for a folder that holds neither, metadata that cannot be read, and a repository that is public
            where a private one was asked for; the Hub's own errors, see [`explain_hub_error`].
    """
    folder, api = Path(folder), HfApi(token=token)
    files = _files(folder, evaluation)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if private and not api.model_info(repo_id).private:
        raise ValueError(f"{repo_id} is there already, and public: make it private in its settings first.")
    if revision is not None:
        _make_branch(api, repo_id, revision)
    prefix = f"{subfolder}/" if subfolder else ""
    contents: dict[str, Path | bytes] = {name: path for name, path in files.items() if name != CARD}
    if subfolder and CODE in files and files[CODE].read_text(encoding="utf-8") == PIPELINE_CODE:
        del contents[CODE]  # diffusers looks for it at the top alone
    if INDEX in files:
        contents[INDEX] = _index_for_all(files[INDEX])
    if MODULAR_INDEX in files:
        contents[MODULAR_INDEX] = _modular_index_for(files[MODULAR_INDEX], repo_id, subfolder, files)
    operations = [CommitOperationAdd(prefix + name, content) for name, content in contents.items()]
    if not subfolder:
        if INDEX in files and CODE not in files:
            operations.append(CommitOperationAdd(CODE, PIPELINE_CODE.encode()))
        if base_model is None and INDEX not in files:
            base_model = _base_on_the_hub(api, read_adapter_info(files[LORA_WEIGHT_NAME_SAFE]))
        card = _card_to_push(api, folder, repo_id, revision, license, replace_card)
        license = license or (card.data.get("license") if card else None)
        fresh = model_card(folder, repo_id, evaluation, license, base_model)
        card = update_card(card, fresh) if card else fresh
        operations.append(CommitOperationAdd(CARD, str(card).encode()))
    # One commit, not `upload_folder`: that splits large folders, and readers would meet halves of them.
    return api.create_commit(
        repo_id,
        operations,
        commit_message=commit_message or f"Upload {folder.resolve().name}",
        revision=revision,
        create_pr=create_pr,
    )


def _index_for_all(path: Path) -> bytes:
    """`model_index.json` with our components under `diffusers`, where this package puts them when it is imported.
    Before it is, diffusers refuses a repository that names a library of which it has not heard."""
    index = json.loads(path.read_text(encoding="utf-8"))
    package = __name__.partition(".")[0]
    index = {
        key: ["diffusers", *value[1:]] if isinstance(value, list) and value[:1] == [package] else value
        for key, value in index.items()
    }
    return (json.dumps(index, indent=2) + "\n").encode()


def _modular_index_for(path: Path, repo_id: str, subfolder: str | None, files: dict[str, Path]) -> bytes:
    """`modular_model_index.json` with the repository as the place of the components that are uploaded with it."""
    index = json.loads(path.read_text(encoding="utf-8"))
    for name, entry in index.items():
        if isinstance(entry, list) and len(entry) == 3 and any(file.startswith(f"{name}/") for file in files):
            there = f"{subfolder}/{name}" if subfolder else name
            entry[2] |= {"pretrained_model_name_or_path": repo_id, "subfolder": there}
    return (json.dumps(index, indent=2) + "\n").encode()


def explain_hub_error(error: BaseException, repo_id: str) -> str | None:
    """
    An error of the Hub's client in one sentence; `None` for errors of other kinds.

    Args:
        error (`BaseException`): as it was raised; its causes are looked at too.
        repo_id (`str`): what was asked for.
    """
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    answers = [link for link in chain if isinstance(link, HfHubHTTPError)]
    if not answers:
        broken = [link for link in chain if isinstance(link, httpx.TransportError)]
        return (
            f"The connection to the Hub broke ({broken[0]}): call again, what has arrived stays." if broken else None
        )
    status, said = answers[0].response.status_code, " ".join((answers[0].server_message or "").split()).rstrip(".")
    if status == 401 and get_token() is None:
        return f"The Hub does not show or change {repo_id} without a token: log in with `hf auth login`."
    if status == 401:
        return f"The Hub does not accept the token for {repo_id} ({said}): log in again with `hf auth login`."
    if status == 403:
        return f"The token gives no right to {repo_id} ({said}): log in with one that does, by `hf auth login`."
    return f"The Hub refused {repo_id} with status {status}{f' ({said})' if said else ''}."


def _make_branch(api: HfApi, repo_id: str, revision: str) -> None:
    try:
        api.model_info(repo_id, revision=revision)
    except RevisionNotFoundError:
        api.create_branch(repo_id, branch=revision, exist_ok=True)


def _base_on_the_hub(api: HfApi, info: AdapterInfo | None) -> str | None:
    """The base that an adapter names, if that is a Hub id: names of folders may look like one."""
    name = "" if info is None else info.base_name
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or Path(name).exists():
        return None
    return name if api.repo_exists(name) else None


def _card_to_push(
    api: HfApi, folder: Path, repo_id: str, revision: str | None, license: str | None, replace: bool
) -> ModelCard | None:
    """The card to go on from: the Hub's, or else the folder's; `None` if there is neither."""
    here = _read_card(folder / CARD) if (folder / CARD).is_file() else None
    try:
        there = _read_card(Path(api.hf_hub_download(repo_id, CARD, revision=revision)))
    except EntryNotFoundError:
        there = None
    card = here
    if there is not None and not replace:
        card = there
        if here is not None and _MARKED.sub("", here.text) != _MARKED.sub("", there.text):
            logger.warning(f"The Hub has a card of {repo_id}, which is kept; the text of {folder / CARD} is another.")
    if card is not None and license is not None:
        card.data["license"] = license
    return card
