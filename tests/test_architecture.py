"""The house rules, held by a test: who imports whom, what stays free of torch, how large things may grow."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "maskrcnn_coco"
FILES = sorted(p for p in PACKAGE.rglob("*.py"))
TORCH_FREE = (
    *("errors", "records", "wording", "recovery", "config.settings", "config.recipes"),
    *(
        "cli.arguments",
        "cli.diagnose",
        "cli.command_line",
        "cli.flags",
        "cli.verbs",
        "data.builtin_shapes",
        "data.layouts",
        "data.masks",
        "data.plan",
    ),
    *("data.prepare", "diagnosis.facts", "diagnosis.investigate", "diagnosis.explain", "replay.outcome"),
    *("findings.facts", "findings.judge", "findings.extents", "report.console", "report.page", "training.folders"),
    *(
        "inference.predictor",
        "inference.load",
        "inference.onnx_engine",
        "inference.openvino_engine",
        "inference.formats",
    ),
    "training.signals",
)
TORCH_FREE_FOLDERS = ("data/coco", "data/audit", "diagnosis/rules", "findings/rules")
LEAVES = {"errors", "records", "wording", "components", "recovery"}
EVERYTHING = None
TABLE: dict[str, set[str] | None] = {
    "cli": EVERYTHING,
    "integrations": {"anywhere", "guard"},
    "training": {"findings", "advice", "report", "evaluation", "model", "diagnosis", "replay", "checkpoint", "guard"}
    | {"data", "config", "distributed", "system"},
    "advice": {"report", "model", "replay", "guard", "data", "config", "distributed", "system"},
    "report": {"findings", "diagnosis", "config", "system"},
    "inference": {"evaluation", "model", "data", "distributed", "system"},
    "evaluation": {"findings", "data", "distributed", "system"},
    "model": {"replay", "checkpoint", "data", "config", "system"},
    "diagnosis": {"findings", "replay", "system"},
    "anywhere": {"diagnosis", "replay", "guard", "report", "distributed", "system"},
    "replay": {"guard", "system"},
    "guard": {"findings", "distributed", "system"},
    "findings": set(),
    "checkpoint": {"system"},
    "data": {"findings", "config", "distributed", "system"},
    "config": {"system"},
    "distributed": set(),
    "system": set(),
}
"""Which wing may import which, beside itself and the leaves; a new wing gets its line here."""
GENERIC = ("anywhere", "guard", "findings", "replay", "diagnosis", "recovery")
"""Serve any PyTorch training: nothing of data, of the model or of torchvision."""


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


KNOWN = {module_name(p) for p in FILES}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path, *, top_only: bool) -> set[str]:
    """Modules of this package that a file imports; at the top of the file only, or anywhere."""
    tree = parsed(path)
    nodes = top_level(tree) if top_only else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("maskrcnn_coco"):
            for alias in node.names:
                found.add(f"{node.module}.{alias.name}")
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.startswith("maskrcnn_coco")}
    return found & KNOWN


def top_level(tree: ast.Module) -> list[ast.stmt]:
    # `if TYPE_CHECKING:` blocks are not run, so they cannot make a cycle.
    return [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]


GRAPH = {module_name(p): imports(p, top_only=True) - {module_name(p), "maskrcnn_coco"} for p in FILES}


def test_imports_point_one_way():
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"import cycle: {' → '.join((*above[above.index(name) :], name))}"
        if name not in done:
            for other in sorted(GRAPH[name]):
                visit(other, (*above, name))
            done.add(name)

    for name in sorted(GRAPH):
        visit(name, ())


HANDED_DOWN = {("maskrcnn_coco.inference.result", "maskrcnn_coco.inference.formats")}
"""`ImageResult.save` is a door for people: the formats read a result, and a result can be asked to write itself."""


def test_no_circle_is_hidden_inside_functions_or_under_type_checking():
    """Imports put off into functions, or made for types alone, form no circle of files either."""
    packages = {module_name(p) for p in FILES if p.name == "__init__.py"}
    graph = {module_name(p): imports(p, top_only=False) - packages - {module_name(p)} for p in FILES}
    for above, below in HANDED_DOWN:
        graph[above].remove(below)
    parts = {name: reached(name, graph) for name in graph}
    circles = sorted({tuple(sorted(o for o in parts[n] if n in parts[o])) for n in graph if n in parts[n]})
    assert not circles, circles


def test_the_generic_half_reaches_nothing_of_data_or_model():
    """Not by way of another file either, and not inside a function."""
    graph = {module_name(p): imports(p, top_only=False) - {"maskrcnn_coco"} for p in FILES}
    for name in graph:
        if wing_of(name) in GENERIC:
            found = {
                other for other in reached(name, graph) if wing_of(other) in ("data", "model", "config", "training")
            }
            assert not found, f"{name} reaches {sorted(found)}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_import_gives_a_module_another_name(path: Path):
    for node in ast.walk(parsed(path)):
        for alias in node.names if isinstance(node, (ast.Import, ast.ImportFrom)) else []:
            whole = alias.name if isinstance(node, ast.Import) else f"{node.module}.{alias.name}"
            assert whole not in KNOWN or alias.asname in (None, alias.name), f"{whole} as {alias.asname}"


def test_guard_and_recovery_never_meet():
    reach = {name: reachable(name) for name in ("maskrcnn_coco.guard.guard", "maskrcnn_coco.recovery")}
    assert "maskrcnn_coco.recovery" not in reach["maskrcnn_coco.guard.guard"]
    assert "maskrcnn_coco.guard.guard" not in reach["maskrcnn_coco.recovery"]


def reachable(name: str) -> set[str]:
    return reached(name, GRAPH)


def reached(name: str, graph: dict[str, set[str]]) -> set[str]:
    """Modules that ``name`` imports, directly or by way of others."""
    seen: set[str] = set()
    todo = [name]
    while todo:
        for other in graph[todo.pop()]:
            if other not in seen:
                seen.add(other)
                todo.append(other)
    return seen


def wing_of(module: str) -> str:
    """The wing, or the single file at the top, that ``maskrcnn_coco.X.Y`` belongs to; "" for the package itself."""
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_wing_imports_what_the_table_says(path: Path):
    """Also inside functions and under TYPE_CHECKING."""
    own = wing_of(module_name(path))
    if own in ("", "main_mlops", "__main__"):
        return
    for module in imports(path, top_only=False):
        other = wing_of(module)
        if other in (own, ""):
            continue
        if own in LEAVES:
            allowed = other in ("errors", "records")
        elif TABLE[own] is EVERYTHING:
            allowed = True
        else:
            allowed = other in TABLE[own] or (
                other == "errors" if own in ("system", "distributed") else other in LEAVES
            )
        assert allowed, f"{own} imports {module}"


def test_wings_make_no_circle():
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"circle of wings: {' → '.join((*above, name))}"
        if name not in done:
            for other in sorted(TABLE[name] or set()):
                visit(other, (*above, name))
            done.add(name)

    for name in TABLE:
        visit(name, ())


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_generic_half_imports_no_torchvision(path: Path):
    if wing_of(module_name(path)) not in GENERIC:
        return
    for node in ast.walk(parsed(path)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not any(n.split(".")[0] == "torchvision" for n in names), path.name


def test_a_wing_hands_nothing_on():
    for path in PACKAGE.rglob("__init__.py"):
        if path.parent not in (PACKAGE, PACKAGE / "cli"):
            body = ast.parse(path.read_text(encoding="utf-8")).body
            assert len(body) == 1 and isinstance(body[0], ast.Expr), f"{path} is more than a docstring"


@pytest.mark.parametrize("name", ("errors", "records"))
def test_leaves_import_only_the_standard_library(name: str):
    tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert {n.split(".")[0] for n in names} <= set(sys.stdlib_module_names)


PROMISES = re.compile(r"no torch|torch-free|standard library only|numpy (and pillow )?only", re.IGNORECASE)
"""What a module's docstring says of its imports, at its end or in a sentence of its own."""


def test_what_answers_at_once_does_not_import_torch():
    """The files named above, and every file whose docstring says so."""
    said = [p for p in FILES if PROMISES.search(ast.get_docstring(ast.parse(p.read_text(encoding="utf-8"))) or "")]
    assert len(said) > 20
    folders = [module_name(p) for p in said]
    folders += [module_name(p) for folder in TORCH_FREE_FOLDERS for p in sorted((PACKAGE / folder).glob("*.py"))]
    names = [f"maskrcnn_coco.{n}" for n in TORCH_FREE] + folders
    code = "import sys, importlib\nfor n in sys.argv[1:]:\n importlib.import_module(n)\n"
    code += " assert 'torch' not in sys.modules, n"
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_no_module_carries_the_name_of_one_of_the_standard_library():
    # main_mlops.py may run as a plain script: its folder is then first on sys.path.
    names = {p.stem for p in PACKAGE.glob("*.py")} | {p.name for p in PACKAGE.iterdir() if p.is_dir()}
    assert not names & set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path: Path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400, f"{path.name} has {text.count(chr(10))} lines"
    for node in ast.walk(parsed(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= 60, f"{path.name}: {node.name} has {lines} lines"


def test_only_the_command_line_exits():
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        if path.name not in ("command_line.py", "main_mlops.py"):
            assert "sys.exit(" not in text, path.name


def test_nothing_is_loaded_by_pickle():
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"weights_only\s*=\s*False|pickle\.loads?\(|Unpickler\(", text), path.name
