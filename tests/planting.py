"""How faults are planted: one expression of one function changed in a copy of the source, and the
test that must notice run there.

A fault is named by function and expression, not by line. The expression is compared as syntax, so
that line breaks, brackets and comments do not matter; it must occur once in its function. So code
that moves costs a path in the list, and the fault stays."""

from __future__ import annotations

import ast
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import textwrap
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("sdesam", "experiments", "tests", "figures", "docs", "pyproject.toml", "README.md")
PRELOADED = [
    "jax",
    "jax.numpy",
    "matplotlib.figure",
    "optax",
    "pytest",
    "scipy.stats",
    "sklearn.datasets",
    "sympy",
]
TIMEOUT = 240
"""Seconds that a test may take; the slowest takes 30 on two cores that are not alone."""
ENOUGH = 0.97
_CRASHED = 99
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class Mutation:
    """A wrong number in the source, and the fast test that fails because of it.

    Args:
        module: with dots.
        function: with dots inside the module (`Class.method`, `outer.inner`); empty for the whole
            module.
        old: an expression or a statement that occurs once in the function.
        new: what stands in its place.
        caught_by: the tests of which one must fail, as pytest names them.
        argued: in place of `caught_by`, why the fault does no harm.
    """

    module: str
    function: str
    old: str
    new: str
    caught_by: tuple[str, ...] = ()
    argued: str = ""

    def __str__(self) -> str:
        place = f"{self.module}.{self.function}" if self.function else self.module
        return f"{place}: {_one_line(self.old)}  ->  {_one_line(self.new)}"

    @property
    def file(self) -> Path:
        """Where the module is, from the root of the tree."""
        place = Path(*self.module.split("."))
        return place / "__init__.py" if (ROOT / place).is_dir() else place.with_suffix(".py")

    def applied(self, source: str) -> str:
        """`source` with the fault in it.

        Raises:
            LookupError: there is no such module or function, or the expression does not occur once
                in it.
        """
        scope = _scope(ast.parse(source), self)
        wanted = _syntax(self.old)
        found = [
            node
            for node in ast.walk(scope)
            if type(node) is type(wanted) and ast.dump(node) == ast.dump(wanted)
        ]
        if len(found) != 1:
            raise LookupError(
                f"{self}: the expression occurs {len(found)} times in the function, not once"
            )
        node = found[0]
        # columns of syntax trees count bytes
        lines = [line.encode() for line in source.splitlines(keepends=True)]
        starts = [0]
        for line in lines:
            starts.append(starts[-1] + len(line))
        begin, end = (
            starts[node.lineno - 1] + node.col_offset,
            starts[node.end_lineno - 1] + node.end_col_offset,
        )
        new = textwrap.dedent(self.new).strip()
        new = (
            f"({new})"
            if isinstance(node, ast.expr)
            else textwrap.indent(new, " " * node.col_offset).lstrip()
        )
        whole = b"".join(lines)
        mutated = (whole[:begin] + new.encode() + whole[end:]).decode()
        if ast.dump(ast.parse(mutated)) == ast.dump(ast.parse(source)):
            raise LookupError(f"{self}: it changes nothing")
        return mutated


def _one_line(code: str) -> str:
    return re.sub(r"\s+", " ", code.strip())


def _scope(tree: ast.AST, mutation: Mutation) -> ast.AST:
    for name in filter(None, mutation.function.split(".")):
        found = [node for node in _definitions(tree) if node.name == name]
        if len(found) != 1:
            raise LookupError(
                f"{mutation}: there are {len(found)} definitions of {name!r}, not one"
            )
        tree = found[0]
    return tree


def _definitions(tree: ast.AST) -> Iterator[Any]:
    """Functions and classes in a scope, not those inside of them."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, _DEFINITIONS):
            yield node
        else:
            yield from _definitions(node)


def _syntax(code: str) -> ast.AST:
    (statement,) = ast.parse(textwrap.dedent(code).strip()).body
    return statement.value if isinstance(statement, ast.Expr) else statement


def unfit(mutations: Iterable[Mutation], root: Path = ROOT) -> list[str]:
    """Why some mutations do not apply to the source as it is."""
    reasons = []
    for mutation in mutations:
        place = root / mutation.file
        try:
            mutation.applied(place.read_text())
        except FileNotFoundError:
            reasons.append(f"{mutation}: there is no file {mutation.file}")
        except (LookupError, SyntaxError) as error:
            reasons.append(str(error))
    return reasons


@dataclass(frozen=True)
class Fate:
    """What became of a mutation: `"caught"`, `"LIVES"`, or what went wrong with the test."""

    mutation: Mutation
    word: str
    seconds: float


def _child(tree: str, words: list[str], output: str) -> None:
    """In a process of its own, forked from one that has imported what is slow to import: pytest on
    a copy of the tree.
    """
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(tree)
    os.environ["PYTHONPATH"] = tree
    sys.path[:] = [tree, *(place for place in sys.path if Path(place).resolve() != ROOT)]
    for name in [name for name in sys.modules if name.split(".")[0] in COPIED]:
        del sys.modules[name]  # this module, too, is of the tree that was copied
    try:
        import pytest

        import sdesam

        assert Path(sdesam.__file__).is_relative_to(tree), (
            f"the copy of the source is not what is imported, but {sdesam.__file__}"
        )
        status = int(
            pytest.main(
                [
                    "-q",
                    "--no-header",
                    "--tb=line",
                    "-p",
                    "no:cacheprovider",
                    "-p",
                    "no:xdist",
                    "-m",
                    "",  # slow tests too: an entry names the one test that must notice
                    *words,
                ]
            )
        )
    # not a test that fails: a process that ends with an error has the status of one
    except Exception:
        traceback.print_exc()
        status = _CRASHED
    sys.exit(status)


class Planter:
    """Copies of the source tree, one for each process, and tests run in them.

    Args:
        processes: how many tests run at a time.
        folder: for the copies.
    """

    def __init__(self, processes: int, folder: Path):
        self.pool = ThreadPoolExecutor(processes)
        self.trees: SimpleQueue[Path] = SimpleQueue()
        # no bytecode: it is told from its source by the second and the length, which a fault may
        # leave as they were
        os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "JAX_PLATFORMS": "cpu", "MPLBACKEND": "Agg"}
        os.environ |= {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED)
        for k in range(processes):
            tree = folder / f"tree{k}"
            tree.mkdir()
            for name in COPIED:
                place = ROOT / name
                if place.is_dir():
                    shutil.copytree(
                        place, tree / name, ignore=shutil.ignore_patterns("__pycache__")
                    )
                else:
                    shutil.copy(place, tree / name)
            self.trees.put(tree)

    def _pytest(self, tree: Path, words: Sequence[str], timeout: float) -> tuple[int | None, str]:
        """Exit status (None: the time was up) and output."""
        output = tree / "output"
        process = self.context.Process(target=_child, args=(str(tree), list(words), str(output)))
        process.start()
        process.join(timeout)
        status = process.exitcode
        process.kill()
        process.join()
        return status, output.read_text() if output.exists() else ""

    def failing(self, tests: Sequence[str]) -> str:
        """The output of the tests on the source as it is, if they do not all pass; each is run
        once.
        """
        shares = [tests[k :: self.trees.qsize()] for k in range(self.trees.qsize())]

        def run(share: Sequence[str]) -> str:
            tree = self.trees.get()
            try:
                status, output = (
                    self._pytest(tree, share, TIMEOUT * len(share)) if share else (0, "")
                )
                return "" if status == 0 else output or "the time was up"
            finally:
                self.trees.put(tree)

        return "\n".join(filter(None, self.pool.map(run, shares)))

    def fate(self, mutation: Mutation) -> Fate:
        """Plant it, run its test, and take it out again."""
        tree = self.trees.get()
        place = tree / mutation.file
        source, begun = place.read_text(), time.monotonic()
        try:
            place.write_text(mutation.applied(source))
            status, output = self._pytest(tree, ["-x", *mutation.caught_by], TIMEOUT)
        finally:
            place.write_text(source)
            self.trees.put(tree)
        words = {0: "LIVES", 1: "caught", None: "TIME IS UP", 4: "NO SUCH TEST", 5: "NO TEST"}
        word = words.get(
            status, f"BROKEN ({output.strip().splitlines()[-1] if output.strip() else status})"
        )
        return Fate(mutation, word, time.monotonic() - begun)


def run(
    kinds: dict[str, tuple[Mutation, ...]], argued: Sequence[Mutation], processes: int = 2
) -> int:
    """Plant all; print what becomes of each, and the counts. The exit status: 0 if enough are
    caught.
    """
    begun = time.monotonic()
    planted = [mutation for many in kinds.values() for mutation in many]
    reasons = unfit([*planted, *argued])
    if reasons:
        print(
            "\n".join(
                [*reasons, f"{len(reasons)} mutations do not fit the source: mend their entries"]
            )
        )
        return 2
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        planter = Planter(processes, Path(folder))
        tests = list(dict.fromkeys(test for mutation in planted for test in mutation.caught_by))
        output = planter.failing(tests)
        if output:
            print(output, "without any fault the tests must pass", sep="\n")
            return 2
        print(
            f"{len(tests)} tests pass without a fault ({time.monotonic() - begun:.0f} s)",
            flush=True,
        )
        fates: dict[Mutation, Fate] = {}
        for fate in planter.pool.map(planter.fate, planted):
            fates[fate.mutation] = fate
            print(f"{fate.word:<8} {fate.seconds:5.1f} s  {fate.mutation}", flush=True)
    print(f"\n{'kind':<24} {'planted':>8} {'caught':>8}")
    for kind, many in kinds.items():
        print(f"{kind:<24} {len(many):>8} {sum(fates[m].word == 'caught' for m in many):>8}")
    counts = Counter(fate.word for fate in fates.values())
    rate = counts["caught"] / max(len(planted), 1)
    print(
        f"{'all':<24} {len(planted):>8} {counts['caught']:>8}   {rate:.1%}, in"
        f" {time.monotonic() - begun:.0f} s; {len(argued)} argued as harmless"
    )
    left = [
        f"{fate.word}: {fate.mutation} (by {', '.join(fate.mutation.caught_by)})"
        for fate in fates.values()
        if fate.word != "caught"
    ]
    print("\n".join(left))
    return 0 if rate >= ENOUGH else 1
