"""The command line: outputs, exit statuses, one sentence for bad input and nothing half-written."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

import sdesam
from sdesam.cli import cli

SMALL = ["--problem", "linear-regression", "--problem-arg", "samples=16", "--lr", "0.05", "--batch", "4"]

RW_SAM = ["rw-sam", *SMALL, "--rho", "0.1", "--lam", "1"]


def invoke(*arguments):
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def test_derive():
    out = invoke("derive", "m-usam")
    assert out.exit_code == 0
    assert "mean_i(H~_i g~_i)" in out.output
    assert invoke("derive", "usam", "--format", "latex", "--order", "1,2").output.startswith(r"\begin{align*}")
    data = json.loads(invoke("derive", "m-usam", "--no-replace", "--without", "noise", "--format", "json").output)
    assert set(data) == {"schema", "config", "provenance", "results"}
    assert data["results"]["noise"] == []


def test_simulate_and_train(tmp_path):
    for command, extra in [("simulate", ["--paths", 6, "--horizon", 0.5]), ("train", ["--runs", 6, "--steps", 10])]:
        file, archive = tmp_path / f"{command}.json", tmp_path / f"{command}.npz"
        out = invoke(command, "m-usam", *SMALL, "--rho", 0.1, "--micro", 2, *extra, "--json", file, "--save", archive)
        assert out.exit_code == 0, out.output
        assert "none of 6 paths diverged" in out.output
        data = json.loads(file.read_text())
        assert data["schema"] == "sdesam.run/1"
        assert data["config"]["seed"] == 0
        assert data["results"]["time"][-1] == pytest.approx(0.5)
        np.testing.assert_allclose(sdesam.Result.load(archive).mean["loss"], data["results"]["mean"]["loss"])
        printed = json.loads(invoke(command, "m-usam", *SMALL, "--rho", 0.1, "--micro", 2, *extra, "--json", "-").output)
        assert printed["results"]["mean"] == data["results"]["mean"], "the same seed gives the same numbers"


def test_compare(tmp_path):
    arguments = ["compare", "m-usam", "--problem", "linear-regression", "--problem-arg", "samples=32", "--problem-arg", "noise=1.0"]
    arguments += ["--lr", 0.02, "--rho", 0.05, "--batch", 8, "--steps", 50, "--runs", 400, "--name", "mine", "--output", tmp_path / "new"]
    out = invoke(*arguments, "--micro", "1")
    assert out.exit_code == 0, out.output
    assert "verdict: confirmed" in out.output
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["mine.json", "mine.pdf", "mine.png"]
    assert json.loads((tmp_path / "new" / "mine.json").read_text())["results"]["verdict"] == "confirmed"
    assert invoke(*arguments, "--micro", "8").exit_code == 1, "inconclusive is no success"


def test_the_options_of_norms_reach_the_optimizer():
    out = invoke("train", *RW_SAM, "--norms", "gaussian", "--directions", 2, "--square", "--delta", 0.01, "--runs", 2, "--steps", 2, "--json", "-")
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
        "import sdesam.cli as cli, sdesam.comparison as comparison\n"
        "def stop(*a, **k): raise KeyboardInterrupt\n"
        "comparison.compare = stop\n"
        f"cli.main(['compare', 'sgd', '--problem', 'quadratic', '--output', {str(tmp_path)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 130, "as a shell reports programs that SIGINT ended"
    assert "interrupted" in done.stderr
    assert not list(tmp_path.iterdir())


def test_total_divergence_cannot_finish():
    out = invoke("train", "usam", *SMALL[:-4], "--lr", 9, "--rho", 9, "--batch", 4, "--runs", 2, "--steps", 200)
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
        (["simulate", "usam", *SMALL, "--rho", "0.1", "--observe", "los"], "unknown observable 'los'"),
        (["simulate", "usam", *SMALL, "--rho", "0.1", "--horizon", "0.51"], "horizon=0.51 is no multiple"),
        (["simulate", "usam", "--problem", "digit"], "unknown problem 'digit'"),
        (["simulate", "usam", "--problem", "quadratic", "--problem-arg", "dims=3"], "does not take"),
        (["simulate", "usam", "--problem-arg", "dims"], "is not of the form KEY=VALUE"),
        (["compare", "m-usam", *SMALL, "--rho", "0.1", "--micro", "3"], "micro=3 does not divide batch=4"),
        (["compare", "m-usam", *SMALL, "--rho", "0.1", "--output", "/proc/nowhere"], "cannot be written"),
        (["compare", "m-usam", *SMALL, "--rho", "0.1", "--output", "file/below"], "cannot be written: Not a directory"),
        (["simulate", "usam", *SMALL, "--rho", "0.1", "--json", "file/below.json"], "cannot be written"),
        (["train", *RW_SAM, "--norms", "exact", "--directions", "3"], "directions=3: exact norms are taken from gradients"),
        (["train", *RW_SAM, "--norms", "exact", "--delta", "0.1"], "--delta 0.1: exact norms are taken from gradients, not from differences"),
        (["simulate", *RW_SAM, "--delta", "1e-9"], "delta=1e-09 is below the rounding level"),
        (["compare", *RW_SAM, "--delta", "0"], "delta=0.0: it must be a finite number above 0"),
        (["verify", "signature", "--variant", "rw-sam", "--problem", "torus1d"], "rw-sam needs lam"),
        (["verify", "signature", "--lam", "1"], "m-usam has no Gibbs weights; leave lam out, or use rw-sam"),
        (["verify", "signature", "--square"], "m-usam has no Gibbs weights; leave square out, or use rw-sam"),
    ],
)
def test_bad_input(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    out = invoke(*arguments)
    assert out.exit_code == 2, out.output
    assert message in " ".join(out.output.split())
    assert [p.name for p in tmp_path.iterdir()] == ["file"], "nothing is written"


def test_every_command_has_help():
    for command in cli.commands:
        out = invoke(command, "--help")
        assert out.exit_code == 0
        assert "Example: sdesam" in out.output


def test_a_users_own_problem(tmp_path):
    """module:function from the folder one works in, through the installed program, on as many devices as there are cores."""
    (tmp_path / "mine.py").write_text(
        "import jax.numpy as jnp, sdesam\n"
        "def cosines(n=3):\n"
        "    return sdesam.FiniteSum(lambda x, a: jnp.cos(x - a), jnp.arange(float(n)), 1.0, observables={'x': lambda x: x})\n"
    )
    arguments = ["train", "sgd", "--problem", "mine:cosines", "--problem-arg", "n=4", "--batch", "2", "--observe", "loss,x", "--json", "-"]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", "sdesam.cli", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert list(data["results"]["mean"]) == ["loss", "x"]
    assert data["provenance"]["devices"] == len(os.sched_getaffinity(0))
    assert data["config"]["problem_spec"] == "mine:cosines"
    assert data["config"]["problem_args"] == {"n": 4}
