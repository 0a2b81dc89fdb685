"""The command line: outputs, exit statuses, one sentence for bad input and nothing half-written."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import sdesam
from sdesam._util.terminal import _no_lost_interrupts
from sdesam.cli import cli
from sdesam.ensemble import work

SMALL = [
    "--problem",
    "linear-regression",
    "--problem-arg",
    "samples=16",
    "--lr",
    "0.05",
    "--batch",
    "4",
]

RW_SAM = ["rw-sam", *SMALL, "--rho", "0.1", "--lam", "1"]


def invoke(*arguments):
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def test_derive():
    out = invoke("derive", "m-usam")
    assert out.exit_code == 0
    assert "mean_i(H~_i g~_i)" in out.output
    assert invoke("derive", "usam", "--format", "latex", "--order", "1,2").output.startswith(
        r"\begin{align*}"
    )
    data = json.loads(
        invoke("derive", "m-usam", "--no-replace", "--without", "noise", "--format", "json").output
    )
    assert set(data) == {"schema", "config", "provenance", "results"}
    assert data["results"]["noise"] == []


def test_identify(tmp_path):
    out = invoke("identify", "usam", "--order", "1,2")
    assert out.exit_code == 0
    assert "(b - 1)/b" in out.stdout
    file = tmp_path / "found.json"
    out = invoke("identify", "n-sam", "--order", "1,2", "--eps", "0.1", "--json", file)
    assert out.exit_code == 1, "it is no combination of plain trees"
    assert "outside the span of plain trees" in out.stdout
    data = json.loads(file.read_text())
    assert data["schema"] == "sdesam.identification/1"
    assert data["config"]["variant"] == "n-sam"
    assert data["results"]["residual"] > 1e-3
    out = invoke("identify", "f-usam", "--order", "1,2", "--number", "sigma=0.5", "--json", "-")
    (_, first, _) = json.loads(out.stdout)["results"]["powers"]
    assert [row["formula"] for row in first["trees"]] == ["1/m", "(m - 2)/(2*m)"]
    sizes = ["--sizes", "2=2", "--sizes", "3=3", "--format", "latex"]
    out = invoke("identify", "usam", "--order", "1,2", *sizes)
    assert out.stdout.startswith(r"\begin{array}")


OWN_STEP = """
import jax, jax.numpy as jnp, sdesam
print("printed at import")
torus = sdesam.problems.torus(dim=2, samples=5)
def problem():
    return torus
def gradient(x, samples):
    return jax.grad(lambda y: jnp.mean(jax.vmap(torus.sample_loss, (None, 0))(y, samples)))(x)
def usam(x, samples, rho):
    return gradient(x + rho * gradient(x, samples), samples)
number = 3
"""


def test_identify_a_step_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("step_a.py").write_text(OWN_STEP)
    where = ["--problem", "./step_a.py:problem", "--order", "1,2"]
    out = invoke("identify", "--step", "./step_a.py:usam", *where)
    assert out.exit_code == 0
    assert "(m - 1)/m" in out.stdout
    assert "printed at import" not in out.stdout
    for arguments, told in [
        (["--step", "./step_a.py:usam"], "a direction needs problem="),
        (["--step", "./step_a.py:number", *where], "names an int: it must name a function"),
        (["--step", "usam", *where], "write module:function"),
        (["usam", "--step", "./step_a.py:usam", *where], "one of the two"),
        ([], "name a VARIANT, or a direction of your own by --step"),
        (["usam", "--problem-arg", "samples=3"], "it goes with --problem"),
        (["m-usam", "--sizes", "4=2"], "do not tell"),
        (["m-usam", "--sizes", "4=two"], "the size of a mini-batch and that of a micro-batch"),
        (["rwp"], "cannot be listed"),
    ]:
        out = invoke("identify", *arguments)
        assert out.exit_code == 2, out.output
        assert told in " ".join(out.stderr.split())


def test_simulate_and_train(tmp_path):
    for command, extra in [
        ("simulate", ["--paths", 6, "--horizon", 0.5]),
        ("train", ["--runs", 6, "--steps", 10]),
    ]:
        file, archive = tmp_path / f"{command}.json", tmp_path / f"{command}.npz"
        out = invoke(
            command,
            "m-usam",
            *SMALL,
            "--rho",
            0.1,
            "--micro",
            2,
            *extra,
            "--json",
            file,
            "--save",
            archive,
        )
        assert out.exit_code == 0, out.output
        assert "none of 6 paths diverged" in out.output
        data = json.loads(file.read_text())
        assert data["schema"] == "sdesam.run/1"
        assert data["config"]["seed"] == 0
        assert data["results"]["time"][-1] == pytest.approx(0.5)
        np.testing.assert_allclose(
            sdesam.Result.load(archive).mean["loss"], data["results"]["mean"]["loss"]
        )
        printed = json.loads(
            invoke(
                command, "m-usam", *SMALL, "--rho", 0.1, "--micro", 2, *extra, "--json", "-"
            ).output
        )
        assert printed["results"]["mean"] == data["results"]["mean"], (
            "the same seed gives the same numbers"
        )


def test_compare(tmp_path):
    arguments = [
        "compare",
        "m-usam",
        "--problem",
        "linear-regression",
        "--problem-arg",
        "samples=32",
        "--problem-arg",
        "noise=1.0",
    ]
    arguments += [
        "--lr",
        0.02,
        "--rho",
        0.05,
        "--batch",
        8,
        "--steps",
        50,
        "--runs",
        400,
        "--name",
        "mine",
        "--output",
        tmp_path / "new",
    ]
    out = invoke(*arguments, "--micro", "1")
    assert out.exit_code == 0, out.output
    assert "verdict: confirmed" in out.output
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "mine.json",
        "mine.pdf",
        "mine.png",
    ]
    assert (
        json.loads((tmp_path / "new" / "mine.json").read_text())["results"]["verdict"]
        == "confirmed"
    )
    assert invoke(*arguments, "--micro", "8").exit_code == 1, "inconclusive is no success"
    coarse = [*arguments, "--micro", "1", "--lr", 0.2, "--rho", 0.5, "--steps", 5, "--runs", 1000]
    out = invoke(*coarse)
    assert (out.exit_code, "verdict: outside the range" in out.output) == (
        1,
        True,
    ), "nor is a range that was left"
    assert "verdict: refuted" in invoke(*coarse, "--no-halving").output


def test_the_options_of_norms_reach_the_optimizer():
    out = invoke(
        "train",
        *RW_SAM,
        "--norms",
        "gaussian",
        "--directions",
        2,
        "--square",
        "--delta",
        0.01,
        "--runs",
        2,
        "--steps",
        2,
        "--json",
        "-",
    )
    norms = json.loads(out.output)["config"]["norms"]
    assert norms == {"law": "gaussian", "directions": 2, "square": True, "delta": 0.01}


def test_names_with_dots_do_not_collide(tmp_path):
    arguments = ["compare", "sgd", *SMALL, "--steps", 4, "--runs", 8, "--output", tmp_path]
    for name in ("eta0.05", "eta0.1"):
        assert invoke(*arguments, "--name", name).exit_code in (0, 1)
    assert len(list(tmp_path.iterdir())) == 6
    assert invoke(*arguments, "--name", "a/b").exit_code == 2


def test_interruption_is_not_a_verdict(tmp_path):
    code = (
        "import sdesam.cli as cli, sdesam.verify.comparison as comparison\n"
        "def stop(*a, **k): raise KeyboardInterrupt\n"
        "comparison.compare = stop\n"
        f"cli.main(['compare', 'sgd', '--problem', 'quadratic', '--output', {str(tmp_path)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 130, "as a shell reports programs that SIGINT ended"
    assert "interrupted" in done.stderr
    assert not list(tmp_path.iterdir())


def test_total_divergence_cannot_finish():
    out = invoke(
        "train",
        "usam",
        *SMALL[:-4],
        "--lr",
        9,
        "--rho",
        9,
        "--batch",
        4,
        "--runs",
        2,
        "--steps",
        200,
    )
    assert out.exit_code == 3
    assert "every path diverged" in out.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["derive", "usan"], "unknown variant 'usan'"),
        (["derive", "usam", "--order", "3,3"], "no SDE driven by Brownian motion"),
        (["derive", "usam", "--order", "two"], "is no list of whole numbers"),
        (["derive", "usam", "--order", "2"], "a pair (alpha, beta)"),
        (["derive", "usam", "--without", "tr V"], "unknown term 'tr V'"),
        (["train", "usam", *SMALL], "usam needs rho"),
        (["train", "usan", *SMALL], "unknown variant 'usan'"),
        (["train", "usam", *SMALL, "--rho", "0.1", "--runs", "0"], "runs=0: it must be at least 1"),
        (["simulate", "usam", *SMALL, "--rho", "-1"], "rho=-1.0"),
        (
            ["simulate", "usam", *SMALL, "--rho", "0.1", "--observe", "los"],
            "unknown observable 'los'",
        ),
        (
            ["simulate", "usam", *SMALL, "--rho", "0.1", "--horizon", "0.51"],
            "horizon=0.51 is no multiple",
        ),
        (["simulate", "usam", "--problem", "digit"], "unknown problem 'digit'"),
        (
            ["simulate", "usam", "--problem", "quadratic", "--problem-arg", "dims=3"],
            "does not take",
        ),
        (["simulate", "usam", "--problem-arg", "dims"], "is not of the form KEY=VALUE"),
        (
            ["compare", "m-usam", *SMALL, "--rho", "0.1", "--micro", "3"],
            "micro=3 does not divide batch=4",
        ),
        (
            ["compare", "m-usam", *SMALL, "--rho", "0.1", "--output", "/proc/nowhere"],
            "cannot be written",
        ),
        (
            ["compare", "m-usam", *SMALL, "--rho", "0.1", "--output", "file/below"],
            "cannot be written: Not a directory",
        ),
        (
            ["simulate", "usam", *SMALL, "--rho", "0.1", "--json", "file/below.json"],
            "cannot be written",
        ),
        (
            ["train", *RW_SAM, "--norms", "exact", "--directions", "3"],
            "directions=3: exact norms are taken from gradients",
        ),
        (
            ["train", *RW_SAM, "--norms", "exact", "--delta", "0.1"],
            "--delta 0.1: exact norms are taken from gradients, not from differences",
        ),
        (["simulate", *RW_SAM, "--delta", "1e-9"], "delta=1e-09 is below the rounding level"),
        (["compare", *RW_SAM, "--delta", "0"], "delta=0.0: it must be a finite number above 0"),
        (
            ["verify", "signature", "--variant", "rw-sam", "--problem", "torus1d"],
            "rw-sam needs lam",
        ),
        (
            ["verify", "signature", "--lam", "1"],
            "m-usam has no Gibbs weights; leave lam out, or use rw-sam",
        ),
        (
            ["verify", "signature", "--square"],
            "m-usam has no Gibbs weights; leave square out, or use rw-sam",
        ),
        (
            ["verify", "signature", "--variant", "sam", "--problem", "quadratic"],
            "a step of sam is not affine, because it normalises",
        ),
        (
            ["verify", "signature", "--variant", "dnsam", "--problem", "quadratic"],
            "a step of dnsam is not affine, because it normalises",
        ),
        (
            ["verify", "L-3.5", "--variant", "sam", "--lam", "1"],
            "--variant, --lam: a claim has numbers of its own",
        ),
        (["verify", "--json", "x.json"], "nothing to verify"),
        (["train", "sgd", "--observe", ","], "',' names nothing: name at least one, such as loss"),
        (["train", "sgd", "--observe", ""], "'' names nothing"),
        (["compare", "sgd", "--micro", ","], "',' is no list of whole numbers"),
        (["train", "sgd", *SMALL, "--observe", "loss,trace"], "unknown observable 'trace'"),
        (
            ["train", "sgd", "--seed", "4294967296"],
            "4294967296 is not in the range 0<=x<=4294967295",
        ),
        (
            ["compare", "sgd", "--seed", "9223372036854775808"],
            "9223372036854775808 is not in the range",
        ),
        (["simulate", "sgd", "--seed", "-1"], "-1 is not in the range"),
        (
            ["verify", "LTE", "--seed", "12345678901234567890"],
            "12345678901234567890 is not in the range",
        ),
        (["train", "sgd", "--seed", "nan"], "'nan' is not a valid integer."),
        (
            ["simulate", "sgd", *SMALL, "--horizon", "1e300"],
            "horizon=1e+300 is 2e+301 steps of dt=0.05: at most 2**31 - 1 are counted",
        ),
        (
            ["simulate", "sgd", *SMALL, "--horizon", "1e300", "--dt", "1e-300"],
            "horizon=1e+300 is inf steps of dt=1e-300",
        ),
        (
            ["compare", "sgd", *SMALL, "--dt", "1e-300"],
            "steps of dt=1e-300: at most 2**31 - 1 are counted",
        ),
        (
            ["train", "sgd", *SMALL, "--steps", "2147483648"],
            "2147483648 is not in the range x<=2147483647",
        ),
        (
            ["train", "sgd", *SMALL, "--batch", "99999999999999999999"],
            "99999999999999999999 is not in the range",
        ),
        (
            ["simulate", "sgd", *SMALL, "--paths", "4294967297"],
            "4294967297 is not in the range x<=4294967296",
        ),
        (["simulate", "sgd", "--paths", "1e3"], "'1e3' is not a valid integer"),
        (
            ["train", "m-sam", *SMALL, "--batch", "1000000000", "--rho", "1", "--micro", "3"],
            "choose one of 1, 2, 4, 5, 8, 10, 16, 20, ..., 200000000, 250",
        ),
        *(
            (
                ["simulate", "rw-sam", *SMALL, *good, option, bad],
                f"{option.strip('-')}={bad}: it must be a finite number",
            )
            for option in ("--lr", "--rho", "--eps", "--lam", "--delta", "--dt", "--horizon")
            for bad in ("nan", "inf")
            for good in [["--rho", "0.1", "--lam", "1"]]
        ),
        (
            ["train", "sgd", "--problem-arg", "samples=" + "9" * 5000],
            "problem 'digits' does not take",
        ),
        (["train", "sgd", "--problem-arg", "x=" + "[" * 100_000], "problem 'digits' does not take"),
        (["train", "sgd", "--devices", "cpu"], "No such option '--devices'"),
        (["simulate", "sgd", *SMALL, "--plan", "--json", "x.json"], "--plan writes nothing"),
        (["train", "sgd", *SMALL, "--save", ""], "the file has an empty name"),
        (
            ["train", "sgd", *SMALL, "--save", "-"],
            "--save -: only --json goes to the standard output",
        ),
        (["train", "sgd", *SMALL, "--snapshot", "x" * 300], ""),
        (
            ["train", "sgd", *SMALL, "--save", "x", "--json", "x"],
            "--save and --json name the same file 'x'",
        ),
        (
            ["train", "sgd", *SMALL, "--save", "x", "--json", "./x"],
            "--save and --json name the same file",
        ),
        (
            ["train", "sgd", *SMALL, "--save", "x", "--snapshot", "{folder}/x"],
            "--save and --snapshot name the same file",
        ),
        (
            ["train", "sgd", *SMALL, "--save", "file", "--json", "../{name}/file"],
            "--save and --json name the same file",
        ),
        (
            ["compare", "sgd", *SMALL, "--output", "", "--name", "a"],
            "the name is empty: name a folder",
        ),
        (["compare", "sgd", *SMALL, "--name", ""], "--name '': it must be a plain file name"),
        (
            ["compare", "sgd", *SMALL, "--output", ".", "--name", "a", "--json", "a.json"],
            "--json and --output name the same file",
        ),
        (
            ["verify", "LTE", "--output", ".", "--json", "report.md"],
            "--json and --output name the same file",
        ),
        (
            ["verify", "signature", "--json", "figures/signature-m-usam.pdf"],
            "--json and --output name the same file",
        ),
    ],
)
def test_bad_input(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    out = invoke(*(str(word).format(folder=tmp_path, name=tmp_path.name) for word in arguments))
    assert out.exit_code == 2, out.output
    assert out.stdout == ""
    assert [line.startswith("Error: ") for line in out.stderr.splitlines()].count(True) == 1
    assert message in " ".join(out.stderr.splitlines()[-1].split())
    assert [p.name for p in tmp_path.iterdir()] == ["file"], "nothing is written"


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "sgd", "--runs", "1" * 5000],
        ["train", "sgd", "--steps", "x" * 5000],
        ["train", "x" * 5000],
        ["x" * 5000],
        ["train", "sgd", "--" + "x" * 5000],
        ["train", "sgd", "x" * 5000],
        ["verify", "x" * 5000],
        ["simulate", "sgd", "--observe", "x" * 5000],
        ["train", "sgd", "--problem", "x" * 5000],
    ],
)
def test_a_long_value_is_not_repeated_whole(arguments):
    out = invoke(*arguments)
    assert out.exit_code == 2
    assert len(" ".join(out.stderr.split())) < 1000


def test_every_command_has_help():
    for command in cli.commands:
        out = invoke(command, "--help")
        assert out.exit_code == 0
        assert "Example: sdesam" in out.output


OWN_VARIANT = """
import sdesam
print("printed at import")
from sdesam.variants import gradient, unit
m_dnsam = sdesam.Variant(
    "m-dnsam",
    gradient("micro", at=unit(gradient("micro"), norm_of=gradient("data"))),
    title="m-DNSAM",
)
number = 3
"""


def test_a_variant_of_ones_own(tmp_path, monkeypatch):
    """One declaration runs through every command, and names the files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("rule_a.py").write_text(OWN_VARIANT)
    numbers = ["--problem", "torus1d", "--rho", "0.1", "--eps", "0.1", "--batch", "2"]
    m = ["--micro", "1"]
    short = ["--order", "1,2", "--runs", "8", "--steps", "4", "--without", "rho^1"]
    on_torus = ["--problem", "torus1d", "--order", "1,2", "--batch", "2"]
    for arguments, told in [
        (["derive", "./rule_a.py:m_dnsam", "--order", "1,2"], "m-DNSAM, batches with replacement"),
        (["train", "./rule_a.py:m_dnsam", *numbers, *m, "--runs", "2", "--steps", "2"], "loss"),
        (
            ["simulate", "./rule_a.py:m_dnsam", *numbers, *m, "--paths", "2", "--horizon", "1"],
            "loss",
        ),
        (["compare", "./rule_a.py:m_dnsam", *numbers, *m, *short], "verdict: "),
        (["verify", "signature", "--variant", "./rule_a.py:m_dnsam", *on_torus], "order reached"),
    ]:
        out = invoke(*arguments)
        assert out.exit_code in (0, 1), out.output
        assert told in out.stdout
        assert "printed at import" not in out.stdout
    assert Path("figures/compare-m-dnsam-torus1d.json").is_file()
    assert Path("figures/signature-m-dnsam.png").is_file()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rule_b:m_dnsan", "did you mean 'm_dnsam'"),
        ("rule_b:number", "variant 'rule_b:number' names an int: it must name a sdesam.Variant"),
        ("rule_b:", "names nothing in a module: write module:name"),
        ("none_such:x", "there is no module 'none_such'"),
        ("none_such.py:x", "there is no file 'none_such.py'"),
    ],
)
def test_what_is_no_variant_of_ones_own(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "rule_b", raising=False)
    Path("rule_b.py").write_text(OWN_VARIANT)
    for command in (["derive"], ["train"], ["verify", "signature", "--variant"]):
        out = invoke(*command, name)
        assert out.exit_code == 2
        assert message in " ".join(out.stderr.split())
    sys.modules.pop("rule_b", None)


MINE = """
import ctypes, os, sys
import jax, jax.numpy as jnp, sdesam
print("printed at import")
os.write(1, b"written at import\\n")
ctypes.CDLL(None).puts(b"put by C at import")
def _loss(x, a):
    print("printed by the loss")
    return jnp.cos(x - a)
def _sum(n=4, **observables):
    return sdesam.FiniteSum(_loss, jnp.arange(float(n)), 1.0, observables=observables)
def good(n=3):
    print("printed by the function")
    return _sum(n, x=lambda x: (jax.debug.print("late {}", x), x)[1])
problem = _sum()
class Waves(sdesam.FiniteSum):
    def __init__(self): super().__init__(_loss, jnp.arange(4.0), 1.0)
class Thing: pass
async def later(): pass
def exits(): sys.exit("no data")
def fails(): return {}["key"]  # line 21
def badly(): return sdesam.FiniteSum(lambda x, a: x @ jnp.ones(7), jnp.ones(2), jnp.ones(3))  # 22
def number(): return 3
def needs(n): return _sum()
def late():
    def fails(x): raise ValueError("not today")  # line 26
    return _sum(it=fails)
def leaves():
    def ends(x): raise SystemExit(0)  # line 29
    return _sum(it=ends)
def wordless():
    def fails(x): raise NotImplementedError  # line 32
    return _sum(it=fails)
def shapes():
    return _sum(it=lambda x: jnp.dot(jnp.ones(3) * x, jnp.ones(7)))  # line 35
def outside(): return _sum(log=lambda x: jnp.log(x - 5))
def vector(): return _sum(pair=lambda x: jnp.stack([x, 2 * x]))
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder to work in, with modules of a user's own; Python's path and modules are as before
    afterwards.
    """
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    known = set(sys.modules)
    for name, text in {
        "mine.py": MINE,
        "deep/below/theirs.py": "from beside import number\n" + MINE,
        "deep/below/beside.py": "number = 3\n",
        "lacks.py": "import jax\nimport none_such\n",
        "syntax.py": "x = 1\ndef make(:\n",
        "wave.py": "def good(): pass\n",  # the standard library has one
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


TRAIN = ["train", "sgd", "--batch", "2", "--runs", "2", "--steps", "4", "--observe", "loss"]


@pytest.mark.parametrize(
    "spec",
    [
        "mine:good",
        "./mine.py:good",
        "{folder}/mine.py:good",
        "deep/below/theirs.py:good",
        "mine:problem",
        "mine:Waves",
    ],
)
def test_a_problem_in_a_module_or_a_file(spec, mine):
    out = invoke(*TRAIN, "--problem", spec.format(folder=mine), "--json", "-")
    assert out.exit_code == 0, out.output
    samples = 3 if "good" in spec else 4
    start = np.cos(1.0 - np.arange(samples)).mean()
    data = json.loads(out.stdout)
    assert data["results"]["mean"]["loss"][0] == pytest.approx(start, rel=1e-6)
    assert data["config"]["problem_spec"] == spec.format(folder=mine)
    assert "printed by the loss" in out.stderr


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "mine:exits",
            (
                "problem 'mine:exits' cannot be made: it ends the program with sys.exit('no data')"
                " ({folder}/mine.py, line 20)"
            ),
        ),
        (
            "mine:fails",
            "problem 'mine:fails' cannot be made: KeyError: 'key' ({folder}/mine.py, line 21)",
        ),
        ("mine:badly", "({folder}/mine.py, line 22)"),
        ("mine:number", "problem 'mine:number' gives an int: it must give a sdesam.FiniteSum"),
        ("mine:Thing", "problem 'mine:Thing' gives a Thing"),
        ("mine:needs", "problem 'mine:needs' does not take {{}}: missing a required argument: 'n'"),
        ("mine:godo", "cannot be loaded: unknown name in mine 'godo': the valid names are"),
        ("mine:__name__", "problem 'mine:__name__' names a str: it must name a function"),
        ("mine.py:godo", "did you mean 'good'?"),
        ("mine", "unknown problem 'mine': the valid names are"),
        ("mine:", "names nothing in a module: write module:name or path/to/file.py:name"),
        ("mine.py", "names nothing in a module"),
        (":good", "names nothing in a module"),
        ("none.py:good", "there is no file 'none.py'"),
        ("none:good", "there is no module 'none', here or installed"),
        (
            "deep/below/theirs:good",
            (
                "there is no module 'deep/below/theirs', here or installed; name the file,"
                " deep/below/theirs.py:good"
            ),
        ),
        (
            "lacks:good",
            (
                "cannot be loaded: ModuleNotFoundError: No module named 'none_such'"
                " ({folder}/lacks.py, line 2)"
            ),
        ),
        ("./lacks.py:good", "No module named 'none_such' ({folder}/lacks.py, line 2)"),
        ("syntax:make", "SyntaxError: invalid syntax ({folder}/syntax.py, line 2)"),
        ("wave:good", "the module 'wave' in the current folder is hidden by"),
        ("./wave.py:good", "gives a NoneType"),
        ("sys:exit", "it ends the program with sys.exit()"),
    ],
)
def test_a_problem_that_is_none(spec, message, mine):
    out = invoke(*TRAIN, "--problem", spec, "--json", "-")
    assert out.exit_code == 2, out.output
    assert out.stdout == ""
    assert message.format(folder=mine) in out.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("late", "ValueError: not today ({folder}/mine.py, line 26)"),
        ("leaves", "the code that was run calls sys.exit ({folder}/mine.py, line 29)"),
        ("wordless", "NotImplementedError: without a word ({folder}/mine.py, line 32)"),
        ("shapes", "({folder}/mine.py, line 35)"),
    ],
)
def test_an_error_within_a_run_is_no_bad_usage(function, message, mine, monkeypatch):
    arguments = [*TRAIN, "--problem", f"mine:{function}", "--observe", "it", "--json", "out.json"]
    out = invoke(*arguments)
    assert out.exit_code == 3, out.output
    assert out.stdout == ""
    last = out.stderr.splitlines()[-1]
    assert last.startswith("could not finish: ")
    assert message.format(folder=mine) in last
    assert "Traceback" not in out.stderr
    assert not (mine / "out.json").exists()
    monkeypatch.setenv("SDESAM_TRACEBACK", "1")
    whole = invoke(*arguments)
    assert whole.exit_code == 3
    assert "Traceback (most recent call last)" in whole.stderr
    assert whole.stderr.splitlines()[-1] == last.removesuffix("  (SDESAM_TRACEBACK=1 shows where)")


def test_the_whole_traceback_of_bad_usage(mine, monkeypatch):
    monkeypatch.setenv("SDESAM_TRACEBACK", "1")
    out = invoke(*TRAIN, "--problem", "mine:fails")
    assert out.exit_code == 2
    assert 'return {}["key"]  # line 21' in out.stderr
    assert "KeyError" in out.stderr.splitlines()[-1]
    monkeypatch.setenv("SDESAM_TRACEBACK", "0")
    assert "Traceback" not in invoke(*TRAIN, "--problem", "mine:fails").stderr


def test_an_error_of_the_package_once_a_run_has_begun(monkeypatch):
    """What is the same error before a run, such as of a file, is no bad argument after it."""

    def full(*arguments, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr(work.Work, "run", full)
    out = invoke("train", "sgd", *SMALL)
    assert out.exit_code == 3
    assert "could not finish: OSError: No space left on device" in out.stderr


def test_what_could_not_be_saved_is_printed(tmp_path, monkeypatch):
    """One file fails: the table is there, and the other file."""

    def full(*arguments, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr("sdesam._util.store.write_arrays", full)
    out = invoke(
        "train",
        "sgd",
        *SMALL,
        "--runs",
        2,
        "--steps",
        2,
        "--save",
        tmp_path / "a.npz",
        "--json",
        tmp_path / "a.json",
    )
    assert out.exit_code == 3
    assert "none of 2 paths diverged" in out.stdout
    assert out.stderr.splitlines()[-1].startswith(
        "could not finish: OSError: No space left on device"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_links_to_one_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("real").write_text("")
    Path("soft").symlink_to("real")
    Path("dangling").symlink_to("new")
    os.link("real", "hard")
    Path("folder").mkdir()
    Path("way").symlink_to("folder")
    for one, other in [
        ("real", "soft"),
        ("real", "hard"),
        ("soft", "hard"),
        ("dangling", "new"),
        ("folder/new", "way/new"),
    ]:
        out = invoke("train", "sgd", *SMALL, "--save", one, "--json", other)
        assert out.exit_code == 2, (one, other)
        assert "--save and --json name the same file" in out.stderr


def result(**means):
    return sdesam.Result(
        time=np.array([0.0, 0.1]),
        mean={name: np.array(mean) for name, mean in means.items()},
        stderr={name: np.zeros_like(mean) for name, mean in means.items()},
        final=None,
        diverged=sdesam.Divergence(np.array([], int), np.array([]), 2),
        config={},
    )


@pytest.mark.parametrize(
    ("bad", "when"),
    [
        ([1.0, np.nan], "1 of 2 times, first at 0.1"),
        ([[np.inf, 1.0], [np.nan, 1.0]], "2 of 2 times, first at 0"),
    ],
)
def test_means_that_are_no_numbers_are_no_success(bad, when, tmp_path, monkeypatch):
    monkeypatch.setattr("sdesam.optim.train", lambda *_, **__: result(loss=[1.0, 2.0], log=bad))
    out = invoke("train", "sgd", *SMALL, "--json", tmp_path / "out.json")
    assert out.exit_code == 3
    assert (
        out.stderr.splitlines()[-1]
        == f"could not finish: the mean of 'log' is not finite at {when}"
    )
    assert out.stdout.startswith("    time             loss")
    assert (tmp_path / "out.json").exists()
    monkeypatch.setattr(
        "sdesam.optim.train", lambda *_, **__: result(loss=[1.0, 2.0], log=[1.0, 3.0])
    )
    assert invoke("train", "sgd", *SMALL).exit_code == 0, "the control"


def test_an_observable_outside_its_domain_everywhere(mine):
    out = invoke(*TRAIN, "--problem", "mine:outside", "--observe", "log")
    assert out.exit_code == 2, "it is seen at the start, before any work"
    assert "observable 'log' is" in out.stderr


def test_an_observable_that_is_no_number_is_named_beside_the_table(mine):
    out = invoke(*TRAIN, "--problem", "mine:vector", "--observe", "pair,loss")
    assert out.exit_code == 0, out.output
    assert "not shown: pair, of shape (2,); --json and --save hold it" in out.stdout


@pytest.mark.slow
def test_the_program_itself(mine):
    """As a program, with files of the names of libraries beside it and other keys as the default:
    the numbers are those of this process.
    """
    for name in ("jax", "optax", "click", "numpy.random", "experiments", "benchmarks"):
        place = (
            mine / name.replace(".", "/") / "__init__.py"
            if name in ("experiments", "benchmarks")
            else mine / f"{name}.py"
        )
        place.parent.mkdir(exist_ok=True)
        place.write_text(f"raise SystemExit('the {name} of the folder was run')\n")
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
        "JAX_DEFAULT_PRNG_IMPL": "rbg"
    }
    arguments = [
        "train",
        "sgd",
        "--problem",
        "./mine.py:good",
        "--problem-arg",
        "n=4",
        "--batch",
        "2",
        "--observe",
        "loss,x",
        "--steps",
        "4",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "sdesam", *arguments, "--json", "-"],
        cwd=mine,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    for text in (
        "printed at import",
        "written at import",
        "put by C at import",
        "printed by the function",
        "printed by the loss",
        "late ",
    ):
        assert text in done.stderr
    assert list(data["results"]["mean"]) == ["loss", "x"]
    assert data["provenance"]["devices"] == len(os.sched_getaffinity(0))
    assert data["config"]["problem_args"] == {"n": 4}
    for name in ("jax", "optax", "click"):
        (mine / f"{name}.py").unlink()  # this process has its folder first on the path
    here = json.loads(invoke(*arguments, "--json", "-").stdout)
    np.testing.assert_allclose(
        data["results"]["mean"]["loss"], here["results"]["mean"]["loss"], rtol=1e-5
    )
    assert data["config"]["key"] == here["config"]["key"]


def test_keys_are_of_one_kind_whatever_the_default_is(tmp_path):
    import jax

    from sdesam._util.keys import seed_key

    for seed in (0, 1, 2**32 - 1):
        with jax.default_prng_impl("rbg"):
            key = seed_key(seed)
        assert (
            jax.random.key_data(key).tolist()
            == jax.random.key_data(jax.random.key(seed)).tolist()
            == [0, seed]
        )
    for seed, error in [
        (2**32, ValueError),
        (2**63, ValueError),
        (-1, ValueError),
        (1.5, TypeError),
        (True, TypeError),
    ]:
        with pytest.raises(error, match="seed="):
            seed_key(seed)
    with jax.default_prng_impl("rbg"):
        rbg = invoke("simulate", "sgd", *SMALL, "--paths", 2, "--horizon", 0.1, "--json", "-")
        assert (
            invoke("simulate", "sgd", *SMALL, "--paths", 2, "--horizon", 0.1, "--plan").exit_code
            == 0
        )
        assert invoke(
            "compare", "sgd", *SMALL, "--runs", 8, "--steps", 2, "--json", "-", "--output", tmp_path
        ).exit_code in (0, 1)
    usual = invoke("simulate", "sgd", *SMALL, "--paths", 2, "--horizon", 0.1, "--json", "-")
    assert json.loads(rbg.stdout)["results"] == json.loads(usual.stdout)["results"]


def unread(*arguments, **options):
    """A program whose standard output nobody reads."""
    read, write = os.pipe()
    os.close(read)
    try:
        return subprocess.run(
            [sys.executable, "-m", "sdesam", *map(str, arguments)],
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            **options,
        )
    finally:
        os.close(write)


def test_a_closed_pipe(tmp_path):
    done = unread(
        "train",
        "sgd",
        *SMALL,
        "--runs",
        2,
        "--steps",
        2,
        "--json",
        "a.json",
        "--save",
        "a.npz",
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (141, "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.npz"]
    for arguments in (["verify", "--list"], ["simulate", "--help"], ["--version"]):
        done = unread(*arguments, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (141, "")


def test_a_full_output():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "sdesam", "derive", "sgd"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 3
    assert (
        done.stderr
        == "could not finish: the standard output cannot be written: No space left on device\n"
    )


@pytest.mark.slow
def test_an_interrupt_in_a_callback_is_not_lost():
    class Doomed:
        def __del__(self):
            raise KeyboardInterrupt

    def collected():
        Doomed()  # Python has nobody to raise it to
        time.sleep(30)

    with _no_lost_interrupts(), pytest.raises(KeyboardInterrupt):
        collected()


@pytest.mark.slow
def test_a_fork_after_jax_has_started(tmp_path):
    """A child that would hang ends with a sentence; a child of a process that has not used jax
    runs.
    """
    code = """
import os, sys, warnings
warnings.simplefilter("ignore")  # jax's own
import jax, sdesam
def work(problem):
    return sdesam.train(
        sdesam.Chain("sgd", problem, lr=0.1, batch=4),
        jax.random.key(0),
        2,
        2,
        observe=["loss"],
        progress=False,
    )
def child(make):
    if pid := os.fork():
        return os.waitpid(pid, 0)
    try:
        work(make())
        print("ran", flush=True)
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
child(sdesam.problems.quadratic)
problem = sdesam.problems.quadratic()
work(problem)
child(lambda: problem)
child(sdesam.problems.linear_regression)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    ran, *refused = done.stdout.splitlines()
    assert ran == "ran", done.stderr
    assert len(refused) == 2
    assert all(
        "start workers with the spawn method, multiprocessing.get_context('spawn')" in line
        for line in refused
    )


def test_the_names_of_the_pictures_of_signatures():
    from pathlib import PurePath

    from sdesam import report

    found = [
        str(file)
        for file in report.files(
            report.plan(["signature"]), None, PurePath("x"), pictures_only=True
        )
    ]
    assert found == [
        f"x/signature-{name}{suffix}"
        for name in ("m-usam", "m-sam", "m-sam-m2")
        for suffix in (".pdf", ".png")
    ]
    assert report.files(("LTE",), None, PurePath("x"))[0] == PurePath("x/report.md")


def test_numbers_of_a_rules_own():
    """`--number` gives them, and a misprint is one sentence."""
    numbers = ["--problem", "torus1d", "--rho", "0.1", "--batch", "2", "--micro", "1"]
    short = ["--runs", "2", "--steps", "2"]
    out = invoke("train", "f-usam", *numbers, *short, "--number", "sigma=0.5", "--json", "-")
    assert out.exit_code == 0
    assert json.loads(out.stdout)["config"]["sigma"] == 0.5
    for given, message in [
        ([], "f-usam needs sigma, a number of its own"),
        (["--number", "sigmo=1"], "f-usam has no number sigmo; its own numbers are sigma"),
        (["--number", "sigma=much"], "sigma='much': it must be a finite number"),
        (["--number", "sigma"], "'sigma' is not of the form KEY=VALUE"),
    ]:
        out = invoke("train", "f-usam", *numbers, *short, *given)
        assert out.exit_code == 2
        assert message in " ".join(out.stderr.split())
    out = invoke("derive", "asam")
    assert out.exit_code == 2
    assert "sdesam.SDE.from_step" in " ".join(out.stderr.split())


def test_the_help_names_all_that_is_ready_made():
    from sdesam.problems import READY

    told = " ".join(invoke("train", "--help").output.split())
    assert all(name in told for name in (*READY, *sdesam.VARIANTS))
