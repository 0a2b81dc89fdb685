"""The rooms of the package import each other in one direction, and no function asks for more than
it can be read with.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sdesam"


def order_of_rooms() -> list[str]:
    """The rooms as CONTRIBUTING.md lists them, the lowest first."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paragraph = re.search(r"Imports go in one direction:(.*?)\n\n", text, re.S).group(1)
    return re.findall(r"`([a-z_0-9]+)`", paragraph)


def files() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    named = {
        path: ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted(PACKAGE.rglob("*.py"))
    }
    return {name.removesuffix(".__init__"): path for path, name in named.items()}


def imports(source: str, modules: set[str]) -> set[str]:
    """The modules of `modules` that a source imports when it runs, also inside functions; not those
    for types alone.
    """
    found = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "imports name the whole path"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules else node.module)
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source))
    return found & modules


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@cache
def arrows() -> dict[str, set[str]]:
    """`module -> modules that it imports`."""
    modules = files()
    return {name: imports(path.read_text(), set(modules)) for name, path in modules.items()}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Walks that end where they began."""
    found, done = [], set()

    def walk(path: list[str]) -> None:
        for then in sorted(graph.get(path[-1], ())):
            if then in path:
                found.append([*path[path.index(then) :], then])
            elif then not in done:
                walk([*path, then])
        done.add(path[-1])

    for name in sorted(graph):
        if name not in done:
            walk([name])
    return found


def test_imports_go_in_one_direction():
    order = order_of_rooms()
    assert len(order) == len(set(order))
    places = {name: place for place, name in enumerate(order)}
    assert {room(name) for name in files()} - {""} == set(places), (
        "CONTRIBUTING.md lists every room"
    )
    against = [
        f"{module} imports {other}"
        for module, others in arrows().items()
        for other in others
        # the package itself knows every room, and its command line knows the package
        if room(module) and room(module) not in ("cli", "__main__") and room(other) != room(module)
        if not room(other) or places[room(other)] >= places[room(module)]
    ]
    assert not against


def test_there_are_no_circles():
    # `import sdesam.a` runs sdesam/__init__.py, which every module may
    graph = {
        module: {other for other in others if other != "sdesam"}
        for module, others in arrows().items()
    }
    assert circles(graph) == []


def test_the_symbolic_side_imports_no_jax():
    for name, path in files().items():
        if room(name) in ("variants", "sampling", "symbolic"):
            assert not imports(path.read_text(), {"jax", "jax.numpy"}), name


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from a.b import c", {"a.b"}),
        ("import a.b", {"a.b"}),
        ("def f():\n    from a import b", {"a.b"}),
        ("if TYPE_CHECKING:\n    from a import b", set()),
        ("from os import path", set()),
    ],
)
def test_what_counts_as_an_import(source, found):
    assert imports(source, {"a", "a.b"}) == found


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c", "b"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


MOST = 8
EDGE = {
    "sdesam.cli.experiments": ["reproduce"],
    "sdesam.cli.runs": ["simulate", "train", "compare"],
    "sdesam.cli.verification": ["verify"],
    "sdesam.verify.comparison._compare": ["compare"],
    "sdesam.verify.coupling": ["coupled"],
    "sdesam.optim.chain": ["Chain.__init__", "train"],
    "sdesam.verify.effective": ["effective_micro_batch"],
    "sdesam.verify.exact.weak": ["signature", "weak_error"],
    "sdesam.optim.makers": ["from_variant", "m_sam", "rw_sam", "usam"],
    "sdesam.optim.optimizer": ["Optimizer.__init__"],
    "sdesam.sde.binding": ["bind"],
    "sdesam.sde.equation": ["SDE.from_step"],
    "sdesam.sde.stepping": ["estimate", "simulate"],
    "sdesam.symbolic.equation": ["ModifiedEquation.bind"],
}
"""What users call: it may have more parameters, by keyword alone."""


def signatures(source: str) -> dict[str, tuple[int, int]]:
    """`function -> (parameters, those that may be given by position)`, `self` not counted."""
    found = {}

    def visit(node: ast.AST, inside: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = inside
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{inside}.{child.name}".lstrip(".")
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                by_place = [a.arg for a in child.args.posonlyargs + child.args.args]
                by_place = by_place[by_place[:1] in (["self"], ["cls"]) :]
                found[name] = len(by_place) + len(child.args.kwonlyargs), len(by_place)
            visit(child, name)

    visit(ast.parse(source), "")
    return found


def test_no_function_has_too_many_parameters():
    for name, path in files().items():
        for function, (count, by_place) in signatures(path.read_text()).items():
            edge = function in EDGE.get(name, ())
            assert (by_place if edge else count) <= MOST, f"{name}.{function}"


def test_what_counts_as_a_parameter():
    source = "class A:\n    def f(self, a, *, b, **c): pass\nasync def g(a, /, b): pass"
    assert signatures(source) == {"A.f": (2, 1), "g": (2, 2)}


FRAGMENTS = re.compile(r"(Of|For|With|As|In|From|By|Like|To|And|Also|The same)\b")


def first_lines(source: str) -> dict[str, str]:
    """`function or class -> first paragraph of its docstring`."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                found[f"{node.name} in line {node.lineno}"] = docstring.split("\n\n")[0]
    return found


def is_fragment(line: str) -> bool:
    """Whether it needs something before it to be understood, or has no end."""
    ends = line.endswith((".", ":", "?"))
    return bool(FRAGMENTS.match(line)) or len(line.split()) < 2 or not ends


def test_docstrings_begin_with_whole_phrases():
    for name, path in files().items():
        for function, line in first_lines(path.read_text()).items():
            assert not is_fragment(line), f"{name}.{function}: {line}"


@pytest.mark.parametrize(
    ("line", "fragment"),
    [
        ("Of the samples in the noise: of mean 0.", True),
        ("The same, after each step.", True),
        ("`B(x)`.", True),
        ("The drift", True),
        ("The drift `B(x)`.", False),
        ("Ofuro is a bath.", False),
    ],
)
def test_what_a_fragment_is(line, fragment):
    assert is_fragment(line) == fragment
