"""The house rules: docstrings match signatures, functions stay short, imports run one way, the README is true."""

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import re
from graphlib import TopologicalSorter
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
                if "__init__" in vars(value):
                    yield f"{name}.{public}", value
                for attribute, method in vars(value).items():
                    method = getattr(method, "__func__", method)
                    if inspect.isfunction(method) and (not attribute.startswith("_") or attribute == "__call__"):
                        yield f"{name}.{public}.{attribute}", method


def parameters_of(function) -> list[str]:
    signature = inspect.signature(function.__init__ if inspect.isclass(function) else function)
    return [name for name in signature.parameters if name not in ("self", "cls")]


def arguments_section(documentation: str) -> list[str] | None:
    """The names in an `Args:` or `Attributes:` section, wherever it is indented to; `None` where there is none."""
    section = re.search(r"^( *)(?:Args|Attributes):\n((?:\1 +\S.*\n?|[ ]*\n)*)", documentation, re.MULTILINE)
    if section is None:
        return None
    depth = re.match(r" *", section[2].lstrip("\n"))[0]
    entries = re.findall(rf"^{depth}(\w+(?:, \w+)*)\s*[\(:]", section[2], re.MULTILINE)
    return [name for entry in entries for name in entry.split(", ")]


def documented_fields(cls) -> set[str]:
    """Fields of a dataclass, or of one that it extends, with a docstring below them or a comment beside them."""
    return {name for owner in cls.__mro__ if dataclasses.is_dataclass(owner) for name in own_documented_fields(owner)}


def own_documented_fields(cls) -> set[str]:
    source = inspect.cleandoc("\n" + inspect.getsource(cls))
    body = ast.parse(source).body[0].body
    beside = {number for number, line in enumerate(source.splitlines(), start=1) if "  # " in line}
    return {
        field.target.id
        for field, below in zip(body, [*body[1:], None])
        if isinstance(field, ast.AnnAssign) and (field.lineno in beside or (below and is_docstring(below)))
    }


def is_protocol(function) -> bool:
    return getattr(function, "_is_protocol", False)


def undocumented(function) -> list[str]:
    """Parameters that the documentation of a function or class does not name, or names in another order."""
    documentation, expected = inspect.getdoc(function) or "", parameters_of(function)
    if documentation.startswith("As in diffusers") or "Args: as for [`" in documentation or is_protocol(function):
        return []
    listed = arguments_section(documentation)
    if listed and expected:
        return [] if listed == expected else [f"listed {listed}, expected {expected}"]
    fields = documented_fields(function) if dataclasses.is_dataclass(function) else ()
    return [name for name in expected if f"`{name}`" not in documentation and name not in fields]


@pytest.mark.parametrize("name, function", list(public_callables()), ids=lambda x: x if isinstance(x, str) else "")
def test_docstrings_name_the_arguments(name, function):
    """In an `Args:` section in the order of the signature, or where there are few, in the text. What overrides a
    method of diffusers and says so is documented there."""
    assert inspect.getdoc(function) or name.split(".")[-1] in ("device", "run"), "public things say what they do"
    assert not undocumented(function)


def test_the_rule_on_documented_arguments_finds_what_is_missing():
    def silent(width, height):
        """Says nothing of them."""

    def short(width, height):
        """As wide as `width`, as high as `height`."""

    def turned(width, height):
        """Sizes.

        Args:
            height (`int`): pixels.
            width (`int`): pixels.
        """

    class Sized:
        """Has a size."""

        def __init__(self, width):
            self.width = width

    assert undocumented(silent) == ["width", "height"] and undocumented(short) == []
    assert len(undocumented(turned)) == 1 and undocumented(Sized) == ["width"]
    call = kaleido_diffusers.KaleidoViewSynthesisPipeline.__call__
    assert arguments_section(inspect.getdoc(call)) == parameters_of(call), "its examples are indented otherwise"
    sections = [arguments_section(inspect.getdoc(function) or "") for _, function in public_callables()]
    assert sum(map(bool, sections)) > 200


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arguments_are_read_and_functions_are_short(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        body = [statement for statement in node.body if not is_docstring(statement)]
        if not body or is_config(node):
            continue
        if node.name != "__call__":
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


FLOAT_FACTORIES = ("zeros", "ones", "empty", "eye", "rand", "randn", "linspace", "logspace", "full", "tensor")


def without_dtype(tree: ast.AST) -> list[str]:
    """Calls that make floating-point tensors in whatever torch's default dtype is. Parameters follow it, as those of
    `torch.nn` do; what holds integers or booleans does not depend on it."""
    parameters = {
        id(inner)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("Parameter")
        for inner in ast.walk(call)
    }
    found = []
    for call in ast.walk(tree):
        name = ast.unparse(call.func) if isinstance(call, ast.Call) and id(call) not in parameters else ""
        if not name.startswith("torch.") or name.removeprefix("torch.") not in FLOAT_FACTORIES:
            continue
        if {"dtype", None} & {keyword.arg for keyword in call.keywords}:
            continue
        values = {"torch.tensor": call.args[:1], "torch.full": call.args[1:2]}.get(name)
        is_float = values is None or any(
            isinstance(inner, ast.Constant)
            and isinstance(inner.value, float)
            or isinstance(inner, ast.Attribute)
            and inner.attr in ("inf", "nan", "pi")
            for value in values
            for inner in ast.walk(value)
        )
        if is_float:
            found.append(f"line {call.lineno}: {ast.unparse(call)}")
    return found


@pytest.mark.parametrize("path", [path for path in SOURCES if "kaleido_diffusers" in path.parts], ids=lambda p: p.name)
def test_tensors_do_not_depend_on_the_default_dtype_of_torch(path):
    assert not without_dtype(ast.parse(path.read_text())), "name a dtype: a program may have set another default"


def test_the_rule_on_dtypes_finds_what_is_missing():
    source = "torch.zeros(3); torch.full((2,), torch.inf); torch.tensor([0.5]); nn.Parameter(torch.ones(2))"
    source += "; torch.tensor([1, 2]); torch.full((2,), 7); torch.eye(3, **like); torch.rand(3, dtype=x.dtype)"
    assert [call.split(": ")[1] for call in without_dtype(ast.parse(source))] == [
        "torch.zeros(3)",
        "torch.full((2,), torch.inf)",
        "torch.tensor([0.5])",
    ]


def test_what_forward_runs_is_read_in_one_file():
    """Layers and their attention are torch's, diffusers', or stand beside the model."""
    model = kaleido_diffusers.KaleidoTransformer3DModel(num_layers=1, num_attention_heads=2, ffn_dim=8)
    for part in [*model.modules(), *model.attn_processors.values()]:
        origin = type(part).__module__
        assert origin == type(model).__module__ or origin.split(".")[0] in ("torch", "diffusers"), origin


PACKAGE = ROOT / "kaleido_diffusers"


def floors() -> list[list[str]]:
    """Which room stands on which floor, as docs/code.md has it."""
    listed = re.search(r"```floors\n(.*?)```", (ROOT / "docs" / "code.md").read_text(encoding="utf-8"), re.DOTALL)
    return [line.split() for line in listed[1].splitlines()]


def imported_modules(path: Path) -> set[Path]:
    """Files of the package that a file of it imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
        for name in node.names:
            module = next(
                module
                for module in (base / f"{name.name}.py", base / name.name / "__init__.py", base.with_suffix(".py"))
                + (base / "__init__.py",)
                if module.is_file()
            )
            found.add(module)
    return found - {path}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_imports_run_one_way():
    rank = {name: number for number, floor in enumerate(floors()) for name in floor}
    checked = 0
    for path in PACKAGE.rglob("*.py"):
        for other in imported_modules(path) if room(path) != "__init__" else ():
            checked += 1
            below = rank[room(other)] < rank[room(path)] or room(other) == room(path)
            assert below, f"{path.relative_to(ROOT)} imports {other.relative_to(ROOT)}"
    assert checked > 100


def test_no_imports_go_in_circles():
    order = TopologicalSorter({path: imported_modules(path) for path in PACKAGE.rglob("*.py")})
    order.prepare()  # raises CycleError


def test_the_tree_is_as_the_page_on_the_code_draws_it():
    rooms = {room(path) for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert sorted(rooms) == sorted(name for floor in floors() for name in floor)
    tree = (ROOT / "docs" / "code.md").read_text(encoding="utf-8").split("```")[1]
    for name in rooms - {"_version"}:
        assert re.search(rf"\b{name}\b", tree), name


def test_public_names_are_importable():
    for name in kaleido_diffusers.__all__:
        assert hasattr(kaleido_diffusers, name)
