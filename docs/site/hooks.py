"""For the site (`make docs`): the README is its home, files that pages link to outside of docs/ come along, and every
room of the package gets a page of its reference."""

import ast
import os
import re
from pathlib import Path

from mkdocs.structure.files import File


ROOT = Path(__file__).parents[2]
HOME = ROOT / "README.md"
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)(?P<path>[^)#\s]+)(?P<place>#[^)\s]*)?(?=\))")


def place_of(path: Path) -> str:
    """Where a file of the repository is on the site."""
    if path == HOME:
        return "index.md"
    inside = path.relative_to(ROOT).as_posix()
    return inside.removeprefix("docs/") if inside.startswith("docs/") else f"repository/{inside}"


def linked(page: Path) -> set[Path]:
    """Files of the repository that a page links to."""
    found = {(page.parent / match["path"]).resolve() for match in LINK.finditer(page.read_text(encoding="utf-8"))}
    return {path for path in found if path.is_file() and path.is_relative_to(ROOT)}


def public_modules() -> dict[str, list[str]]:
    """By room of the package, its modules that say what of them is public."""
    rooms: dict[str, list[str]] = {}
    for path in sorted((ROOT / "kaleido_diffusers").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
        name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
        if "." in name and any(getattr(target, "id", "") == "__all__" for target in targets):
            rooms.setdefault(name.split(".")[1], []).append(name)
    return rooms


def on_config(config):
    reference = [{room: f"reference/{room}.md"} for room in public_modules()]
    named = set(re.findall(r"[\w-]+\.md", str(config.nav)))
    others = [page.name for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in named]
    more = {"Reference": reference, "Guides": others}
    config.nav = [
        {name: [*(pages if isinstance(pages, list) else []), *more[name]] if name in more else pages}
        for entry in config.nav
        for name, pages in entry.items()
    ]
    return config


def on_files(files, config):
    pages = [HOME, *(Path(file.abs_src_path) for file in files.documentation_pages())]
    places = {file.src_uri for file in files}
    while pages:
        page = pages.pop()
        for path in sorted({page, *linked(page)}):
            if place_of(path) not in places:
                places.add(place_of(path))
                files.append(File.generated(config, place_of(path), abs_src_path=str(path)))
                pages += [path] if path.suffix == ".md" else []
    for room, modules in public_modules().items():
        text = f"# {room}\n\n" + "\n\n".join(f"::: {module}" for module in modules) + "\n"
        files.append(File.generated(config, f"reference/{room}.md", content=text))
    return files


def on_page_markdown(markdown, page, **_):
    source = Path(page.file.abs_src_path) if page.file.abs_src_path else None
    if source is None or not source.is_relative_to(ROOT):
        return markdown

    def moved(match: re.Match) -> str:
        target = (source.parent / match["path"]).resolve()
        if not target.exists():
            return match[0]
        folder = Path(page.file.src_uri).parent
        return os.path.relpath(place_of(target), folder) + (match["place"] or "")

    return LINK.sub(moved, markdown)
