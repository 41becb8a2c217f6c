"""The house rules: docstrings match signatures, functions stay short, imports run one way, the README is true."""

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import kaleido_diffusers


ROOT = Path(__file__).parents[1]
FOLDERS = ("kaleido_diffusers", "examples", "conversion", "benchmarks")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(kaleido_diffusers.__path__, "kaleido_diffusers.")
    if not module.name.endswith("__main__")
)


def public_callables():
    for name in MODULES:
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", ()):
            value = getattr(module, public)
            if getattr(value, "__module__", None) != name:
                continue
            if inspect.isfunction(value):
                yield f"{name}.{public}", value
            elif inspect.isclass(value):
                if "Args:" in (inspect.getdoc(value) or "") and "__init__" in vars(value):
                    yield f"{name}.{public}", value
                for attribute, method in vars(value).items():
                    method = getattr(method, "__func__", method)
                    if inspect.isfunction(method) and (not attribute.startswith("_") or attribute == "__call__"):
                        yield f"{name}.{public}.{attribute}", method


@pytest.mark.parametrize("name, function", list(public_callables()), ids=lambda x: x if isinstance(x, str) else "")
def test_docstrings_name_the_arguments_that_exist(name, function):
    documentation = inspect.getdoc(function)
    assert documentation or name.split(".")[-1] in ("device", "run", "to", "cat"), "public things say what they do"
    section = re.search(r"^Args:\n((?:[ ].*\n?|\n)*)", documentation or "", re.MULTILINE)
    if not section:
        return
    documented = re.findall(r"^    (\w+)\s*[\(:]", section.group(1), re.MULTILINE)
    signature = inspect.signature(function.__init__ if inspect.isclass(function) else function)
    expected = [p for p in signature.parameters if p not in ("self", "cls")]
    assert documented == expected


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arguments_are_read_and_functions_are_short(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        body = [statement for statement in node.body if not is_docstring(statement)]
        if not body or is_config(node):
            continue
        if node.name not in ("__call__", "main"):
            length = node.end_lineno - body[0].lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"
        used = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
        for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
            documented_as_unread = "Not read" in (ast.get_docstring(node) or "")
            free = argument.arg in ("self", "cls") or argument.arg.startswith("_")
            if not free and not documented_as_unread and not is_hook(node):
                assert argument.arg in used, f"{node.name} does not read {argument.arg}"


def is_docstring(statement) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def is_config(node) -> bool:
    """Constructors whose arguments diffusers stores."""
    return any(getattr(decorator, "id", None) == "register_to_config" for decorator in node.decorator_list)


def is_hook(node) -> bool:
    """Functions whose signature another library decides."""
    return node.name == "_show_warning"


def test_the_model_file_stays_readable():
    assert len((ROOT / "kaleido_diffusers" / "models" / "transformer_kaleido.py").read_text().splitlines()) < 700


LAYERS = [  # what stands further down may import what stands further up
    {"_version", "files", "bundled"},
    {"geometry"},
    {"loaders", "models", "schedulers"},
    {"captures"},
    {"worlds"},
    {"pipelines"},
    {"_registration"},
    {"training", "evaluation"},
    {"viewer", "demo"},
    {"cli"},
]


def test_imports_run_one_way():
    rank = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    package = ROOT / "kaleido_diffusers"
    for path in package.rglob("*.py"):
        parts = path.relative_to(package).with_suffix("").parts
        if parts[0] == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or node.level == 0:
                continue
            base = parts[: len(parts) - node.level]
            target = (
                [*base, *(node.module or "").split(".")] if node.module else [*base, *[a.name for a in node.names]]
            )
            names = [target[0]] if node.module or base else [alias.name for alias in node.names]
            for name in names:
                assert rank[name] <= rank[parts[0]], f"{path.name} imports {name}"


def test_public_names_are_importable():
    for name in kaleido_diffusers.__all__:
        assert hasattr(kaleido_diffusers, name)
