"""For the site: names in docstrings, as diffusers writes them ([`Cameras`]), become links where they are public."""

import re

import griffe


TYPE = re.compile(r"^(?P<start> +\w+ \()\[`~?(?P<name>\w+)`\](?:, \*(?P<optional>optional)\*)?(?=\):)", re.MULTILINE)
NAME = re.compile(r"\[`(?P<name>~?[\w.]+)`\](?!\[|\()")


class References(griffe.Extension):
    def on_package(self, *, pkg: griffe.Module, **_) -> None:
        paths: dict[str, str] = {}
        objects = list(walk(pkg))
        for item in objects:
            if item.is_public and item.has_docstring and not item.is_module:
                paths.setdefault(item.name, item.path)
                if item.parent is not None and item.parent.is_class:
                    paths.setdefault(f"{item.parent.name}.{item.name}", item.path)
        for item in objects:
            if item.docstring:
                text = TYPE.sub(as_annotation, item.docstring.value)  # a type is code, which gets its links by itself
                item.docstring.value = NAME.sub(lambda match: link(match["name"], paths), text)


def walk(item: griffe.Object):
    yield item
    for member in item.members.values():
        if not member.is_alias:
            yield from walk(member)


def as_annotation(match: re.Match) -> str:
    return f"{match['start']}{match['name']}{', optional' if match['optional'] else ''}"


def link(name: str, paths: dict[str, str]) -> str:
    shown = name.rsplit(".", 1)[-1] if name.startswith("~") else name
    path = paths.get(name.lstrip("~"))
    return f"[`{shown}`][{path}]" if path else f"`{shown}`"
