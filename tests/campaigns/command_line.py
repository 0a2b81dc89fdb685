"""Random calls of the command line, right ones and wrong ones, and what must hold of each.

    python -m tests.campaigns.command_line --count 300 --seed 0
    python -m tests.campaigns.command_line --seed 0 --only 17         call 17 again, with all that
    it printed

A worker process makes the calls one after the other, each in a folder of its own; every twentieth
is a program of its own. Of every call must hold:

* it ends within a minute, with a status that is documented, and without a traceback;
* status 2 or 3 comes with one sentence, and after status 2 there is no new file;
* status 0 comes with no number that is not finite, neither in a table nor among the means of the
  JSON;
* with `--json -` the standard output is JSON and nothing else, whatever the problem prints.

The calls depend on the seed and their number alone. It ends with status 1 if any call violates a
rule."""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60
"""What a call may take."""
APART = 20
"""One call of so many is a program of its own."""

MINE = """
import os, sys
import jax, jax.numpy as jnp, sdesam
print("printed at import")
os.write(1, b"written at import\\n")
def _loss(x, a):
    print("printed while it is traced")
    return jnp.sum(jnp.cos(x - a))
def _sum(loss=_loss, n=3, x0=1.0, **observables):
    return sdesam.FiniteSum(loss, jnp.arange(float(n)), x0, observables=observables)
def good(n=6):
    print("printed when it is made")
    return _sum(n=n, x=lambda x: x)
def vector(): return _sum(x0=jnp.ones(3), x=lambda x: x, size=lambda x: jnp.sum(x))
def pytree():
    return _sum(
        lambda x, a: jnp.sum(jnp.cos(x["w"] - a)) + x["b"] ** 2, x0={"w": jnp.ones(2), "b": 0.5}
    )
def one(): return _sum(n=1)
def outside(): return _sum(log=lambda x: jnp.log(x - 5))
def sometimes(): return _sum(x0=0.05, root=lambda x: jnp.sqrt(x))
def steep(): return _sum(lambda x, a: (x - a) ** 4, x0=9.0)
def nan_start(): return _sum(lambda x, a: jnp.log(x - a - 9))
def nan_gradient(): return _sum(lambda x, a: jnp.sqrt(x - 1.0) * (1 + a))
def kink(): return _sum(lambda x, a: jnp.abs(x - a))
def late():
    def fails(x): raise ValueError("not today")
    return _sum(late=fails)
def leaves():
    def ends(x): raise SystemExit(0)
    return _sum(ends=ends)
def wordless():
    def fails(x): raise NotImplementedError
    return _sum(fails=fails)
def words(): return _sum(word=lambda x: "a word")
def nothing(): return _sum(nothing=lambda x: None)
def noisy(): return _sum(x=lambda x: (jax.debug.print("late {}", x), x)[1])
def exits(): sys.exit(3)
def interrupts(): raise KeyboardInterrupt
def fails(): return {}["key"]
def number(): return 3
def needs(n): return _sum(n=n)
def integers(): return sdesam.FiniteSum(_loss, jnp.arange(3), 1)
def strings(): return sdesam.FiniteSum(_loss, ["a", "b"], 1.0)
def named(): return sdesam.FiniteSum(_loss, jnp.arange(3.0), 1.0, name="../x/y")
problem = _sum()
"""
EXPERIMENT = """
from sdesam.lab import Experiment
from sdesam.lab.runs import Numbers

def runs(preset, seeds=3, rate=1.0):
    return [{"run": "NAME", "seed": seed, "rate": rate} for seed in range(seeds)]

def execute(config, needed, device):
    if "NAME" == "failing" and config["seed"] == 1:
        raise NotImplementedError
    return Numbers({"end": config["rate"] * config["seed"]})

def summarise(stored):
    total = sum(run.numbers.values["end"] for run in stored)
    return {
        "lines": [f"sum {total:.3g}"],
        "verdicts": {"NAME": {"status": "confirmed", "reason": "it ends"}},
    }

def figure(data):
    from matplotlib.figure import Figure
    drawn = Figure(figsize=(3.3, 2))
    drawn.subplots().plot([run["end"] for run in data["results"]["runs"]])
    return drawn

EXPERIMENT = Experiment("NAME", "Numbers", "nothing", runs, execute, summarise, figure)
"""

VARIANTS = ["sgd", "usam", "m-usam", "n-usam", "sam", "m-sam", "n-sam", "dnsam", "rw-sam"]
PROBLEMS = [
    "quadratic",
    "linear-regression",
    "torus1d",
    "torus2d",
    "mine:good",
    "./mine.py:vector",
    "mine:pytree",
    "mine:one",
    "mine:noisy",
]
BAD_PROBLEMS = [f"mine:{name}" for name in re.findall(r"^def ([a-z]\w+)", MINE, re.M)] + [
    *(
        "digit",
        "",
        ":",
        "mine",
        "mine.py",
        "mine:",
        ":good",
        "none:good",
        "./none.py:good",
        "broken:make",
        "./syntax.py:make",
        "mine:nowhere",
    ),
    *(
        "mine:problem",
        "json:loads",
        "os:getcwd",
        "wave:make",
        "./mine.py:good:x",
        "sub/mine:good",
        "sub/mine.py:good",
        ".x:y",
        "digits:x",
    ),
]
BAD_NUMBERS = [
    "nan",
    "inf",
    "-inf",
    "-1",
    "0",
    "1e300",
    "1e-300",
    "-0.0",
    "x",
    "",
    "1e999",
    "0x10",
    "1_0",
    "٣",
    "1,2",
    " 1",
    "99999999999999999999",
]
BAD_INTEGERS = [
    *BAD_NUMBERS,
    "1.5",
    "2147483648",
    "4294967295",
    "4294967296",
    "9223372036854775808",
    "-9223372036854775809",
    "1" * 400,
    "1" * 5000,
]
# these are asked for rightly, and take days
_TOO_MANY = [
    value for value in BAD_INTEGERS if value not in ("2147483648", "4294967295", "4294967296")
]
BAD_NAMES = [
    ",",
    "",
    "loss,loss",
    "los",
    "loss,",
    "nope,loss",
    "loss;grad_norm2",
    "LOSS",
    "x",
    "log",
    "trace_cov,",
    "word",
    "a" * 300,
]
BAD_FILES = [
    *(
        "",
        ".",
        "..",
        "a/b/c/d.out",
        "a" * 246,
        "a" * 256,
        "é" * 130,
        "folder",
        "file/below",
        "nowhere/x",
        "-",
        "x\n",
        "./mine.py/x",
        "link",
        "~",
    ),
    *(
        "same",
        "./same",
        "folder/../same",
        "/proc/nowhere/x",
        "same.json",
        "a b",
        ".hidden",
        "*",
        "\udcff",
    ),
]
BAD_LISTS = [",", "", "1,,2", "4,4", "3", "0", "-1", "1.5", "2,x", "16,4,1", "1" * 30, "2,3,4"]
ORDERS = [
    "1,2",
    "2,3",
    "1,1",
    "2,2",
    "1,3",
    "2",
    "3,3",
    "0,0",
    "-1,2",
    "1,20",
    "x,y",
    "2,3,4",
    "",
    "2,4",
    "1,100000",
]


_OWN_OBSERVABLES = [
    *((f"mine:{name}", name) for name in ("late", "nothing")),
    *(
        ("mine:leaves", "ends"),
        ("mine:wordless", "fails"),
        ("mine:words", "word"),
        ("mine:outside", "log,loss"),
        ("mine:sometimes", "root,loss"),
    ),
    *(
        ("mine:noisy", "x"),
        ("mine:steep", "loss"),
        ("mine:vector", "x,size"),
        ("mine:nan_gradient", "loss"),
        ("mine:kink", "loss"),
    ),
]


def call(rng: random.Random) -> list[str]:
    """A call: right but for what is then made wrong in every second."""
    command = rng.choices(
        ["derive", "simulate", "train", "compare", "verify", "reproduce", "figures"],
        [2, 6, 6, 4, 4, 3, 2],
    )[0]
    words, options = {
        "derive": _derive,
        "simulate": _simulate,
        "train": _train,
        "compare": _compare,
        "verify": _verify,
        "reproduce": _reproduce,
        "figures": _figures,
    }[command](rng)
    for _ in range(rng.choice([0, 0, 1, 1, 1, 2])):
        words, options = _spoilt(rng, command, words, options)
    told = [
        word for name, value in options for word in ([name] if value is None else [name, value])
    ]
    return [command, *words, *told]


def _derive(rng):
    return [rng.choice(VARIANTS)], [
        ("--order", rng.choice(["1,2", "2,3"])),
        ("--format", rng.choice(["text", "latex", "json"])),
    ]


def _numbers(rng, variant):
    found = [("--lr", rng.choice(["0.1", "0.05", "0.01"])), ("--batch", "4")]
    problem = rng.choice(PROBLEMS)
    found.append(("--problem", problem))
    if variant != "sgd":
        found.append(("--rho", rng.choice(["0.1", "0.01", "0"])))
    if variant == "rw-sam":
        found.append(("--lam", rng.choice(["0", "1", "100"])))
    if "sam" in variant and "usam" not in variant and rng.random() < 0.5:
        found.append(("--eps", "0.1"))
    if rng.random() < 0.3:
        found.append(("--no-replace", None))
    if rng.random() < 0.5:
        own = {"mine:good": "x", "./mine.py:vector": "x", "mine:noisy": "x"}.get(
            problem, "grad_norm2"
        )
        found.append(("--observe", rng.choice(["loss", f"{own},loss", "trace_cov,loss"])))
    if rng.random() < 0.4:
        found.append(("--seed", str(rng.randrange(2**32))))
    return found


def _outputs(rng, *names):
    found = [("--json", "-" if rng.random() < 0.5 else "out.json")] if rng.random() < 0.6 else []
    return found + [(name, f"out{name.strip('-')}") for name in names if rng.random() < 0.3]


def _simulate(rng):
    variant = rng.choice(VARIANTS)
    found = [*_numbers(rng, variant), ("--paths", str(rng.choice([1, 2, 5, 8])))]
    lr = float(dict(found)["--lr"])
    found += [
        ("--horizon", f"{lr * rng.choice([1, 4, 10]):g}"),
        ("--method", rng.choice(["heun", "euler", "richardson"])),
    ]
    if variant.startswith("m-"):
        found.append(("--micro", rng.choice(["1", "2", "4"])))
    if rng.random() < 0.2:
        found.append(("--normals", "jax"))
    return [variant], [
        *found,
        ("--order", rng.choice(["1,2", "2,3"])),
        *_outputs(rng, "--save", "--snapshot"),
    ]


def _train(rng):
    variant = rng.choice(VARIANTS)
    found = [
        *_numbers(rng, variant),
        ("--runs", str(rng.choice([1, 2, 5]))),
        ("--steps", str(rng.choice([1, 3, 10]))),
    ]
    if variant.startswith("m-"):
        found.append(("--micro", rng.choice(["1", "2", "4"])))
    return [variant], [*found, *_outputs(rng, "--save", "--snapshot")]


def _compare(rng):
    variant = rng.choice(VARIANTS)
    found = [
        (name, value)
        for name, value in _numbers(rng, variant)
        if name != "--observe" or value == "loss"
    ]
    found += [
        ("--runs", rng.choice(["8", "16"])),
        ("--steps", rng.choice(["1", "4"])),
        ("--judge", rng.choice(["loss", "trace_cov"])),
    ]
    if variant.startswith("m-"):
        found.append(("--micro", rng.choice(["4", "2,1"])))
    return [variant], [*found, *_outputs(rng)]


def _verify(rng):
    if rng.random() < 0.1:
        return [], [("--list", None)]
    output = [("--output", "report")] if rng.random() < 0.4 else []
    if rng.random() < 0.3:
        return [rng.choice(["LTE", "L-3.9", "L-RW2", "L-FIM", "L-3.5n"])], [*output, *_outputs(rng)]
    found = [
        ("--variant", rng.choice(VARIANTS)),
        ("--problem", rng.choice(["torus1d", "quadratic"])),
        ("--problem-arg", "samples=3"),
    ]
    if dict(found)["--variant"] == "rw-sam":
        found.append(("--lam", "1"))
    return ["signature"], [*found, ("--order", rng.choice(["1,2", "2,3"])), *output, *_outputs(rng)]


def _reproduce(rng):
    names = rng.choice([["sums"], ["failing"], ["sums", "sums"], ["all"], []])
    found = [("--option", f"seeds={rng.choice([1, 2, 5])}")]
    if rng.random() < 0.2:
        found.append(("--list", None))
    if rng.random() < 0.3:
        found.append(("--minutes", rng.choice(["1", "0.5"])))
    return names, [*found, ("--store", "runs"), ("--output", "pictures")]


def _figures(rng):
    return rng.choice([["stored"], [], ["sums"], ["stored", "stored"]]), [
        ("--output", rng.choice(["data", "nowhere", "damaged"]))
    ]


_BAD = {
    "--lr": BAD_NUMBERS,
    "--rho": BAD_NUMBERS,
    "--eps": BAD_NUMBERS,
    "--lam": BAD_NUMBERS,
    "--delta": BAD_NUMBERS,
    "--dt": BAD_NUMBERS,
    "--horizon": BAD_NUMBERS,
    "--minutes": BAD_NUMBERS,
    "--batch": BAD_INTEGERS,
    "--micro": [*BAD_INTEGERS, *BAD_LISTS],
    "--paths": _TOO_MANY,
    "--runs": _TOO_MANY,
    "--steps": BAD_INTEGERS,
    "--seed": BAD_INTEGERS,
    "--directions": BAD_INTEGERS,
    "--micro-batches": BAD_INTEGERS,
    "--observe": BAD_NAMES,
    "--judge": BAD_NAMES,
    "--problem": BAD_PROBLEMS,
    "--order": ORDERS,
    "--json": BAD_FILES,
    "--save": BAD_FILES,
    "--snapshot": BAD_FILES,
    "--output": BAD_FILES,
    "--name": BAD_FILES,
    "--store": BAD_FILES,
    "--data": BAD_FILES,
    "--without": ["noise", "rho^1", "rho^9", "", "eta", "rho^1 variance", "x" * 400],
    "--variant": ["usan", "", "SGD", "rw-sam", "sam"],
    "--problem-arg": [
        "samples=0",
        "samples=1",
        "samples=1e9",
        "samples=10000000000000",
        "dim=0",
        "dim=30",
        "seed=-1",
        "noise=nan",
        "x",
        "=",
        "samples=",
        "n=2",
        "samples=[1]",
        "samples=null",
        "samples=" + "9" * 5000,
        "spec=1",
        "dim={}",
        "width=" + "[" * 2000,
        "samples=true",
        "self=1",
    ],
    "--option": [
        "seeds=0",
        "seeds=x",
        "seeds=",
        "nope=1",
        "rate=nan",
        "rate=0",
        "seeds=1e9",
        "seeds=-3",
        "rate=1e308",
        "=",
        "seeds=[2]",
    ],
    "--method": ["heun", "euler", "richardson", "milstein", ""],
    "--normals": ["jax", "x"],
    "--format": ["xml", ""],
    "--norms": ["exact", "gaussian", "x"],
    "--preset": ["quick", "full", "x"],
    "--expectation": ["exact", "sampled", "x"],
    "--scheduler": ["tcp://127.0.0.1:1", "", "x"],
    "--devices": ["cpu"],
}
_NUMBERS = "lr rho eps lam delta batch micro observe problem problem-arg seed norms json"
_OF = {
    "derive": "order without format",
    "simulate": (
        f"{_NUMBERS} dt horizon paths directions micro-batches order save snapshot without method"
        " normals expectation"
    ),
    "train": f"{_NUMBERS} runs steps directions save snapshot",
    "compare": f"{_NUMBERS} dt runs steps micro-batches judge order output name without method",
    "verify": "variant problem problem-arg order batch micro eps lam seed output json",
    "reproduce": "option data minutes store output preset scheduler",
    "figures": "output",
}


def _spoilt(rng, command, words, options):
    """One thing made wrong, or only odd."""
    what = rng.random()
    if what < 0.72:
        name = f"--{rng.choice(_OF[command].split())}"
        if name == "--problem" and "observe" in _OF[command] and rng.random() < 0.6:
            problem, observable = rng.choice(_OWN_OBSERVABLES)
            kept = [
                (n, v) for n, v in options if n not in ("--problem", "--observe", "--no-replace")
            ]
            return words, [*kept, ("--problem", problem), ("--observe", observable)]
        return words, [
            (n, v) for n, v in options if n != name or n in ("--problem-arg", "--option")
        ] + [(name, rng.choice(_BAD[name]))]
    if what < 0.8 and options:  # one left out
        left = rng.randrange(len(options))
        return words, options[:left] + options[left + 1 :]
    if what < 0.85:
        return words, [
            *options,
            (
                rng.choice(
                    [
                        "--nope",
                        "--devices",
                        "--runz",
                        "-x",
                        "--help",
                        "--plan",
                        "--square",
                        "--replace",
                    ]
                ),
                None,
            ),
        ]
    if what < 0.9:
        return [
            rng.choice(
                ["", "usan", "all of it", "SGD", "sgd,usam", "\udcff", "../x", "a" * 300, "-"]
            )
        ], options
    if what < 0.95:
        return [*words, rng.choice(VARIANTS)], options
    return [], options


def furnish(folder: Path, data: bytes) -> None:
    """The files that calls find in their folder."""
    for name, text in {
        "mine.py": MINE,
        "sub/mine.py": MINE,
        "broken.py": "import none_such\n",
        "syntax.py": "def make(:\n",
        "wave.py": "def make(): pass\n",
        "optax.py": 'raise SystemExit("the optax of the current folder was run")\n',
        "file": "",
        "folder/inside": "",
        "damaged/stored/stored.json": "{",
    }.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    (folder / "data" / "stored").mkdir(parents=True)
    (folder / "data" / "stored" / "stored.json").write_bytes(data)
    (folder / "link").symlink_to("same")


# the worker


def work() -> None:
    """Make the calls that come as lines of JSON, and answer each by one."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # prints that get past everything must not spoil the answers
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "experiments").mkdir()
        for name in ("__init__", "sums", "failing", "stored"):
            text = "" if name == "__init__" else EXPERIMENT.replace("NAME", name)
            (Path(home) / "experiments" / f"{name}.py").write_text(text)
        path, data = list(sys.path), _stored(Path(home))
        for number, line in enumerate(sys.stdin):
            asked = json.loads(line)
            for name in [
                name
                for name, module in sys.modules.items()
                if str(getattr(module, "__file__", "")).startswith(f"{home}/{number - 1}/")
            ]:
                del sys.modules[name]  # the next call has a module of the name, too
            sys.path[:] = path
            folder = Path(home) / str(number)
            folder.mkdir()
            furnish(folder, data)
            signal.alarm(SECONDS + 15)
            answer = _call(asked["call"], folder, apart=asked["apart"], experiments=Path(home))
            signal.alarm(0)
            print(json.dumps(answer), file=answers, flush=True)
            if number % 40 == 39:
                import jax

                jax.clear_caches()


def _stored(home: Path) -> bytes:
    """The data of a picture."""
    from click.testing import CliRunner

    from sdesam.cli import cli

    words = ["reproduce", "stored", "--store", str(home / "runs")]
    done = CliRunner().invoke(cli, _own([*words, "--output", str(home / "pictures")], home))
    assert done.exit_code == 0, done.output
    return (home / "pictures" / "stored" / "stored.json").read_bytes()


def _own(arguments: list[str], home: Path) -> list[str]:
    """The arguments, with the folder of the experiments made above where a command takes one."""
    if arguments[:1] not in (["reproduce"], ["figures"]):
        return arguments
    return [arguments[0], "--experiments", str(home / "experiments"), *arguments[1:]]


def _call(arguments: list[str], folder: Path, *, apart: bool, experiments: Path) -> dict:
    before = _listing(folder)
    arguments = _own(arguments, experiments)
    os.chdir(folder)
    begun = time.monotonic()
    if apart:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-m", "sdesam", *arguments],
            env=environment,
            capture_output=True,
            check=False,
            timeout=SECONDS,
        )
        status, raised = done.returncode, ""
        out, err = (text.decode(errors="backslashreplace") for text in (done.stdout, done.stderr))
    else:
        from click.testing import CliRunner

        from sdesam.cli import cli

        result = CliRunner().invoke(cli, arguments, prog_name="sdesam")
        status, out, err = result.exit_code, result.stdout, result.stderr
        known = result.exception is None or isinstance(result.exception, SystemExit)
        raised = "" if known else "".join(traceback.format_exception(result.exception))
    seconds = time.monotonic() - begun
    os.chdir("/")
    added = sorted(_listing(folder) - before)
    files = {
        name: (folder / name).read_text()
        for name in added
        if name == "out.json" or re.match(r"(figures|pictures)/.*\.json", name)
    }
    return {
        "status": status,
        "out": out,
        "err": err,
        "raised": raised,
        "seconds": seconds,
        "added": added,
        "files": files,
    }


def _listing(folder: Path) -> set[str]:
    found = (
        place
        for place in folder.rglob("*")
        if not place.is_dir() and "__pycache__" not in place.parts
    )
    return {
        str(place.relative_to(folder)).encode(errors="backslashreplace").decode() for place in found
    }


# what must hold


def violations(arguments: list[str], answer: dict) -> list[str]:
    """The rules that a call violates."""
    status, out, err = answer["status"], answer["out"], answer["err"]
    found = []
    if answer["raised"] or "Traceback (most recent" in out + err:
        found.append(f"a traceback: {(answer['raised'] or err).strip().splitlines()[-1]}")
    if status not in (0, 1, 2, 3) and not (status == 130 and "mine:interrupts" in arguments):
        found.append(f"status {status}")
    if answer["seconds"] > SECONDS:
        found.append(f"{answer['seconds']:.0f} seconds")
    errors = [
        line for line in err.splitlines() if line.startswith(("Error: ", "could not finish: "))
    ]
    if status in (2, 3):
        start = "Error: " if status == 2 else "could not finish: "
        if (
            len(errors) != 1
            or not errors[0].startswith(start)
            or err.rstrip().splitlines()[-1] != errors[0]
        ):
            found.append(f"status {status} without its one sentence: {err.strip()[-300:]!r}")
        elif not 20 < len(errors[0]) < 1100:
            found.append(f"a sentence of {len(errors[0])} characters: {errors[0][:200]!r}")
    elif errors:
        found.append(f"status {status} with {errors[0]!r}")
    if status == 2 and (out or answer["added"]):
        found.append(
            f"status 2, and yet there is output or a file: {out[:100]!r} {answer['added']}"
        )
    if any(
        Path(name).name.startswith(".")
        and not name.startswith((".hidden", "runs/.lock"))
        and "/.lock" not in name
        for name in answer["added"]
    ):
        found.append(f"left behind: {answer['added']}")
    if status == 0 and re.search(r"(?<![\w.])[-+]?(nan|inf)(?![\w])", out, re.IGNORECASE):
        found.append(f"status 0 with a number that is not finite: {out[:400]!r}")
    texts = [
        text for name, text in answer["files"].items() if name == "out.json" or status in (0, 1)
    ]
    at = [k for k, word in enumerate(arguments) if word == "--json"]
    if (
        at
        and arguments[at[-1] + 1 : at[-1] + 2] == ["-"]
        and out
        and "--help" not in arguments
        and "--list" not in arguments
    ):
        texts.append(out)
    for text in texts:
        try:
            data = json.loads(text, parse_constant=lambda name: found.append(f"JSON with {name}"))
        except ValueError as error:
            found.append(f"no JSON ({error}): {text[:200]!r}")
        else:
            if status == 0 and any(_not_finite(means) for means in _means(data)):
                found.append("status 0 with a mean that is not finite in the JSON")
    return found


def _means(data):
    if isinstance(data, dict):
        yield from ([data["mean"]] if "mean" in data else [])
        for value in data.values():
            yield from _means(value)
    elif isinstance(data, list):
        for value in data:
            yield from _means(value)


def _not_finite(data) -> bool:
    if isinstance(data, dict):
        return any(map(_not_finite, data.values()))
    return any(map(_not_finite, data)) if isinstance(data, list) else data is None


# the campaign


class Worker:
    """The process that makes the calls; another follows where one hangs or dies."""

    def __init__(self, loud: bool) -> None:
        self.loud = loud
        self.process: subprocess.Popen | None = None

    def ask(self, asked: dict) -> dict:
        """The answer to a call, or how the worker ended."""
        if self.process is None or self.process.poll() is not None:
            flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
            environment = {
                **os.environ,
                "XLA_FLAGS": flags,
                "JAX_PLATFORMS": "cpu",
                "MPLBACKEND": "Agg",
            }
            command = [sys.executable, "-m", "tests.campaigns.command_line", "--worker"]
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=None if self.loud else subprocess.DEVNULL,
                text=True,
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], 3 * SECONDS)
        line = self.process.stdout.readline() if ready else ""
        if line:
            answer: dict = json.loads(line)
            return answer
        if ready:
            end = self.process.wait(10)
            how = (
                f"no answer within {SECONDS} seconds"
                if end == -signal.SIGALRM
                else f"the worker ended with status {end}"
            )
        else:
            self.process.kill()
            how = f"no answer within {3 * SECONDS} seconds"
        return {
            "status": None,
            "out": "",
            "err": "",
            "raised": how,
            "seconds": 0.0,
            "added": [],
            "files": {},
        }

    def close(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def main() -> None:
    """Run the campaign, or one call of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this call alone, with all that it printed")
    parser.add_argument(
        "--show", action="store_true", help="every call, with its status and its sentence"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        work()
        return
    worker, statuses, violated, begun = (
        Worker(loud=asked.only is not None),
        Counter(),
        0,
        time.monotonic(),
    )
    for number in range(asked.count) if asked.only is None else [asked.only]:
        rng = random.Random(f"{asked.seed}-{number}")
        arguments = call(rng)
        apart = number % APART == APART - 1 and not any(
            "\udcff" in word or len(word) > 4000 for word in arguments
        )
        answer = worker.ask({"call": arguments, "apart": apart})
        statuses[answer["status"]] += 1
        broken = violations(arguments, answer)
        violated += bool(broken)
        if broken or asked.show or asked.only is not None:
            shown = shlex.join(
                word if len(word) < 80 else f"{word[:20]}...({len(word)})" for word in arguments
            )
            print(
                f"call {number} of seed {asked.seed}: sdesam {shown}".encode(
                    errors="backslashreplace"
                ).decode()
            )
            print("".join(f"  {one}\n" for one in broken), end="")
        if asked.show:
            last = (answer["err"].strip().splitlines() or [""])[-1]
            print(
                f"  status {answer['status']}, {answer['seconds']:.1f} s: {last}".encode(
                    errors="backslashreplace"
                ).decode()
            )
        if asked.only is not None:
            print(
                answer["out"],
                answer["err"],
                answer["raised"],
                answer["added"],
                f"status {answer['status']}, {answer['seconds']:.1f} s",
                sep="\n",
            )
    worker.close()
    told = ", ".join(
        f"{count} with status {status}" for status, count in sorted(statuses.items(), key=str)
    )
    print(
        f"{sum(statuses.values())} calls in {time.monotonic() - begun:.0f} s: {told}; {violated}"
        " violate a rule"
    )
    sys.exit(bool(violated))


if __name__ == "__main__":
    main()
