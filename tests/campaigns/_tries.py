"""What the campaigns share: a worker process that may hang or crash, what a good refusal is, and
the report.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

REFUSALS = (TypeError, ValueError, OSError, LookupError, ImportError)
"""What bad input may raise; `NotImplementedError`, `AssertionError`, `RecursionError` and
`StopIteration` are none of these.
"""
LONGEST = 700
"""Characters of a sentence."""
RAW = re.compile(
    r"Traced|Tracer|Concretization|jaxpr|ShapedArray|\blax\.|shard_map|dot_general|while_loop|pjit|vmap"
    r" was|JAX-traced"
    r"|PyTreeDef|traced for jit|not a valid JAX|valid value for jnp|unsupported operand|has no"
    r" attribute|out of range|too many values to unpack"
)
"""Words of jax and of Python that say nothing to who made the call."""


@dataclass
class Outcome:
    """What came of one try.

    Args:
        kind: of the try, for the counts.
        status: `"done"`, `"refused"`, or, of a violation, what is wrong in a few words.
        text: what was tried; of a violation, all that is known.
        violation: whether it is one.
    """

    kind: str
    status: str
    text: str = ""
    violation: bool = False


def wrong(kind: str, what: str, text: str) -> Outcome:
    """A violation."""
    return Outcome(kind, what, text, violation=True)


def fault_of(error: BaseException, names: Iterable[str] = ()) -> str | None:
    """What is wrong with the error as an answer to a person; None for one clear sentence.

    Args:
        error: what was raised.
        names: words of the call, of which the sentence must have one; none are asked for if there
            are none.
    """
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if not isinstance(error, REFUSALS):
        return f"raises {type(error).__name__}"
    if not text.strip():
        return f"raises {type(error).__name__} without words"
    if found := RAW.search(text):
        return f"raises raw words ({found[0]})"
    if "\n" in text.strip():
        return "raises more than one line"
    if len(text) > LONGEST:
        return f"raises {len(text)} characters"
    names = list(names)
    if names and not any(re.search(rf"\b{re.escape(name)}", text) for name in names):
        return "raises a sentence that names nothing of the call"
    return None


def tell(error: BaseException) -> str:
    """The error and the lines where it comes from."""
    last = traceback.extract_tb(error.__traceback__)[-3:]
    where = " < ".join(
        f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in reversed(last)
    )
    return f"{type(error).__name__}: {str(error)[:1500]} [{where}]"


def _serve(pipe: Any, work: Callable[[int], Outcome], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    tqdm.set_lock(threading.RLock())  # the one between processes outlives a kill
    while (seed := pipe.recv()) is not None:
        try:
            outcome = work(seed)
        except Exception as error:
            outcome = wrong("the campaign itself", "fails", f"seed {seed}: {tell(error)}")
        pipe.send(outcome)


def tries(
    work: Callable[[int], Outcome],
    seeds: Iterable[int],
    *,
    seconds: float = 60.0,
    environment: dict[str, str] | None = None,
    renew: int = 100,
) -> Iterator[tuple[int, Outcome]]:
    """The outcome of each seed, worked out in another process; a hang or a crash is an outcome, and
    ends that process alone.

    Args:
        work: a function of a module, so that the other process finds it.
        seeds: of the tries.
        seconds: after which a try counts as a hang.
        environment: variables of the other process, set before jax starts in it.
        renew: tries of one process, which keeps its memory small.
    """
    context = multiprocessing.get_context("spawn")
    worker, pipe, done = None, None, 0
    for seed in seeds:
        if worker is None:
            pipe, theirs = context.Pipe()
            worker, done = (
                context.Process(target=_serve, args=(theirs, work, environment or {}), daemon=True),
                0,
            )
            worker.start()
            theirs.close()
        pipe.send(seed)
        try:
            # the first try of a process waits for imports too
            outcome = (
                pipe.recv()
                if pipe.poll(seconds if done else seconds + 30)
                else wrong("unknown", f"hangs for {seconds:g} s", "")
            )
        except (EOFError, ConnectionResetError):
            worker.join()
            outcome = wrong("unknown", f"crashes its process (exit code {worker.exitcode})", "")
        yield seed, outcome
        done += 1
        if outcome.status.startswith(("hangs", "crashes")) or done >= renew:
            worker.kill()
            worker.join()
            worker = None
    if worker is not None:
        pipe.send(None)
        worker.join()


def planted(seed: int) -> Outcome:
    """A try of the test of `tries`: one hangs, one crashes, the others are good."""
    if seed == 1:
        time.sleep(60)
    if seed == 2:
        os._exit(7)
    return Outcome("planted", "done")


def arguments(doc: str | None, count: int) -> argparse.Namespace:
    """`--count`, `--seed`, `--first`."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--count", type=int, default=count, help=f"how many tries (default {count})"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the campaign (default 0)")
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first try, to repeat one (default 0)"
    )
    return parser.parse_args()


def seeds(given: argparse.Namespace) -> range:
    """The seeds of the tries: a million for each campaign."""
    start = given.seed * 1_000_000 + given.first
    return range(start, start + given.count)


def report(name: str, outcomes: Iterable[tuple[int, Outcome]], single: bool = True) -> int:
    """Print violations as they come, with what repeats each, and counts at the end; the exit
    status.

    Args:
        name: of the campaign's module.
        outcomes: seeds and what came of them.
        single: whether one try can be repeated by itself.
    """
    kinds: Counter[tuple[str, str]] = Counter()
    violations: Counter[str] = Counter()
    total = 0
    for seed, outcome in outcomes:
        total += 1
        kinds[outcome.kind, "violation" if outcome.violation else outcome.status] += 1
        if outcome.violation:
            violations[f"{outcome.kind}: {outcome.status}"] += 1
            campaign, number = divmod(seed, 1_000_000)
            print(f"VIOLATION {outcome.kind}: {outcome.status}\n  {outcome.text}")
            one = f" --count 1 --seed {campaign} --first {number}" if single else ""
            print(f"  repeat: python -m tests.campaigns.{name}{one}", flush=True)
    for kind, status in sorted(kinds):
        print(f"{kinds[kind, status]:5}  {kind}: {status}")
    print(f"{total} tries, {sum(violations.values())} violations")
    for what, count in violations.most_common():
        print(f"{count:5}  {what}")
    return 1 if violations else 0
