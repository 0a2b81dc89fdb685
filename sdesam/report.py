"""Running many checks and telling what they found: text, JSON, Markdown and HTML."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from tqdm.auto import tqdm

from sdesam._util import store
from sdesam.claims import Claim, Outcome, registry
from sdesam.lab import plots
from sdesam.mutants import MUTANTS, RIGHT, Fate, fate
from sdesam.problems import FiniteSum, torus
from sdesam.sampling import Sampling
from sdesam.symbolic import derive
from sdesam.variants import NormEstimate, Variant
from sdesam.variants import variant as find_variant
from sdesam.verify.exact.enumerate import list_batches
from sdesam.verify.exact.quadratic import Quadratic, check_affine
from sdesam.verify.exact.weak import Signature, signature, solvers

SCHEMA = "sdesam.report/1"
_EXTRA = ("signature", "mutants")


@dataclass(frozen=True)
class SignatureRequest:
    """Which signature to measure; as the options of `sdesam verify signature`."""

    problem: FiniteSum
    variant: str | Variant = "m-usam"
    order: tuple[int, int] = (2, 3)
    replace: bool = True
    batch: int = 2
    micro: int | None = None
    eps: float | None = None
    lam: float | None = None
    square: bool = False
    own: tuple[tuple[str, float], ...] = ()

    @property
    def rule(self) -> Variant:
        """The declaration of the variant."""
        return find_variant(self.variant)

    def check(self) -> None:
        """Refuse a problem or numbers that do not fit before any work starts."""
        # Binding refuses numbers that do not fit the rule, the solver a problem it cannot do, the
        # list too many mini-batches. Each is cheap here, and would come after minutes otherwise.
        sde = derive(self.variant, self.order, self.replace).bind(
            self.problem, 0.1, self._rho, expectation="exact", **self._numbers
        )
        solver = next(solvers(self.problem, 1.0))
        if isinstance(solver, Quadratic):
            check_affine(self.variant)
        if self.problem.period is not None:
            list_batches(
                Sampling(sde.config["batch"], sde.config["micro"], self.replace), self.problem.n
            )

    def measure(self) -> Signature:
        """The signature."""
        return signature(
            derive(self.variant, self.order, self.replace), self.problem, **self._numbers
        )

    @property
    def _numbers(self) -> dict[str, Any]:
        weighted = self.rule.weighted
        if self.square and not weighted:
            raise ValueError(
                f"square: {self.rule.name} has no Gibbs weights; leave square out, or use rw-sam"
            )
        # only exact norms can be listed
        norms = NormEstimate("exact", square=self.square) if weighted else None
        return {
            "batch": self.batch,
            "micro": self._micro,
            "eps": self._eps,
            "lam": self.lam,
            "norms": norms,
            **dict(self.own),
        }

    @property
    def _eps(self) -> float:
        """About the size of the torus problems' gradients, some of which vanish: smooth, and still
        a norm.
        """
        return (0.2 if self.rule.normalised else 0.0) if self.eps is None else self.eps

    @property
    def _micro(self) -> int | None:
        return 1 if self.micro is None and self.rule.micro else self.micro

    @property
    def _rho(self) -> float | None:
        return 0.1 if self.rule.perturbed else None


SIGNATURES = (
    SignatureRequest(torus(dim=2)),
    SignatureRequest(torus(dim=2), variant="m-sam", micro=1),
    SignatureRequest(torus(dim=2), variant="m-sam", micro=2),
)
"""What `sdesam verify all` measures where no signature is asked for."""


@dataclass(frozen=True)
class Entry:
    """One claim and what running it found."""

    claim: Claim
    outcome: Outcome
    seconds: float

    @property
    def as_recorded(self) -> bool:
        """Whether the verdict is the one on record."""
        return self.outcome.status == self.claim.recorded


@dataclass(frozen=True)
class Report:
    """Everything that was found."""

    entries: tuple[Entry, ...]
    signatures: tuple[Signature, ...]
    fates: tuple[Fate, ...]
    config: dict[str, Any]
    seconds: float
    provenance: dict[str, Any] = field(default_factory=store.provenance)

    @property
    def as_recorded(self) -> bool:
        """Whether every claim has its recorded verdict, every signature is confirmed and every
        mutant dead.
        """
        return (
            all(entry.as_recorded for entry in self.entries)
            and all(s.status == "confirmed" for s in self.signatures)
            and all(f.as_wanted for f in self.fates)
        )

    def summary(self) -> str:
        """One paragraph."""
        told = []
        if self.entries:
            told.append(
                f"{sum(e.as_recorded for e in self.entries)} of {len(self.entries)} claims as"
                " recorded"
            )
        told += [f"signature of {s.equation.variant.name} {s.status}" for s in self.signatures]
        if self.fates:
            told.append(kill_rate(self.fates))
        return f"{'; '.join(told)} ({self.seconds:.0f} s)"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        claims = {
            e.claim.id: {
                "title": e.claim.title,
                "statement": e.claim.statement,
                "source": e.claim.source,
                "prediction": e.claim.prediction,
                "recorded": e.claim.recorded,
                "verdict": e.outcome.status,
                "seconds": e.seconds,
                "measurements": [{**vars(m), "agrees": m.agrees} for m in e.outcome.measurements],
                "controls": [{**vars(c), "caught": c.caught} for c in e.outcome.controls],
                "remark": e.outcome.remark,
                "data": e.outcome.data,
            }
            for e in self.entries
        }
        fates = [
            {
                "name": f.mutant.name,
                "side": f.mutant.side,
                "killed": f.killed,
                "as_wanted": f.as_wanted,
                "killed_by": [f"{k.part} eta^{k.power[0]} rho^{k.power[1]}" for k in f.killed_by],
            }
            for f in self.fates
        ]
        results = {
            "as_recorded": self.as_recorded,
            "claims": claims,
            "signatures": [s.to_json() for s in self.signatures],
            "mutants": fates,
        }
        plain: dict[str, Any] = store.plain(
            {
                "schema": SCHEMA,
                "config": self.config,
                "provenance": self.provenance,
                "results": results,
            }
        )
        return plain


def plan(names: Sequence[str]) -> tuple[str, ...]:
    """The jobs that some names stand for, each once.

    Raises:
        ValueError: an unknown claim; the message lists the valid ids.
    """
    from sdesam._util.names import unknown

    valid = [*registry(), *_EXTRA]
    jobs: list[str] = []
    for name in names:
        if name != "all" and name not in valid:
            raise unknown("claim", name, [*valid, "all"])
        jobs += valid if name == "all" else [name]
    return tuple(dict.fromkeys(jobs))


def run(
    jobs: Sequence[str],
    preset: str = "quick",
    seed: int = 0,
    asked: SignatureRequest | None = None,
    show: Callable[[str], object] | None = None,
) -> Report:
    """Run some jobs one after the other; `show` is given each result as text as soon as it is
    there.
    """
    tell = show or (lambda text: None)
    begun = perf_counter()
    entries, signatures, fates = [], [], []
    for job in tqdm(jobs, desc="verify", delay=2, leave=False, disable=None):
        start = perf_counter()
        if job == "signature":
            for request in _requests(asked):
                signatures.append(request.measure())
                tell(signatures[-1].table() + "\n")
        elif job == "mutants":
            fates = [
                fate(mutant, seed)
                for mutant in tqdm(
                    (*RIGHT, *MUTANTS), desc="mutants", delay=2, leave=False, disable=None
                )
            ]
            tell("\n".join([*map(str, fates), f"mutants: {kill_rate(fates)}\n"]))
        else:
            claim = registry()[job]
            entry = Entry(claim, claim.run(preset, seed), perf_counter() - start)  # type: ignore[arg-type]
            entries.append(entry)
            tell(_entry_text(entry) + "\n")
    config = {"jobs": list(jobs), "preset": preset, "seed": seed}
    report = Report(tuple(entries), tuple(signatures), tuple(fates), config, perf_counter() - begun)
    tell(report.summary())
    return report


def kill_rate(fates: Sequence[Fate]) -> str:
    """How many wrong theories were killed and how many right ones live, as text."""
    wrong = [f for f in fates if not f.mutant.right]
    right = [f for f in fates if f.mutant.right]
    killed, alive = sum(f.as_wanted for f in wrong), sum(f.as_wanted for f in right)
    return (
        f"{killed} of {len(wrong)} mutants killed, {alive} of {len(right)} right theories confirmed"
    )


def files(
    jobs: Sequence[str], asked: SignatureRequest | None, folder: Path, pictures_only: bool = False
) -> list[Path]:
    """The files that :func:`write` will write."""
    names = [] if pictures_only else ["report.md", "report.html"]
    if "signature" in jobs:
        names += [
            f"{stem}{suffix}"
            for stem in _stems([(r.rule.name, r.micro) for r in _requests(asked)])
            for suffix in (".pdf", ".png")
        ]
    return [folder / name for name in names]


def _requests(asked: SignatureRequest | None) -> tuple[SignatureRequest, ...]:
    return (asked,) if asked else SIGNATURES


def _stems(signatures: Sequence[tuple[str, int | None]]) -> list[str]:
    """The names of the pictures of signatures of variants and micro-batch sizes: the first of a
    variant has the variant's alone.
    """
    variants = [variant for variant, _ in signatures]
    return [
        f"signature-{name}" + (f"-m{micro}" if name in variants[:k] else "")
        for k, (name, micro) in enumerate(signatures)
    ]


def write(report: Report, folder: Path, pictures_only: bool = False) -> list[Path]:
    """`report.md`, `report.html` and the figures of a report, or only the figures."""
    written = []
    pictures: dict[int, str] = {}
    stems = _stems(
        [(found.equation.variant.name, found.config["micro"]) for found in report.signatures]
    )
    for k, (found, stem) in enumerate(zip(report.signatures, stems, strict=True)):
        drawn = plots.signature(found.to_json(), folder / stem)
        pictures[k] = drawn[1].name
        written += drawn
    if pictures_only:
        return written
    for name, text in (
        ("report.md", _markdown(report, pictures)),
        ("report.html", _html(report, pictures)),
    ):
        store.write_atomically(folder / name, lambda file, text=text: file.write(text.encode()))  # type: ignore[misc]
        written.append(folder / name)
    return written


def _entry_text(entry: Entry) -> str:
    claim, outcome = entry.claim, entry.outcome
    news = "" if entry.as_recorded else f"  NOT AS RECORDED ({claim.recorded})"
    lines = [
        f"{claim.id}: {outcome.status}{news} - {claim.title} ({claim.source})",
        f"  predicts: {claim.prediction}",
    ]
    for m in outcome.measurements:
        lines.append(
            f"  {'agrees' if m.agrees else 'DIFFERS':<8} {m.name}: predicted {m.predicted:.6g},"
            f" measured {m.measured:.6g}, tolerance {m.tolerance:.1e}"
        )
    for c in outcome.controls:
        verdict = (
            ("accepted" if c.mended else "caught")
            if c.caught
            else ("REJECTED" if c.mended else "MISSED")
        )
        lines.append(
            f"  {verdict:<8} control, {c.name}: off by {abs(c.measured):.3g}, tolerance"
            f" {c.tolerance:.1e}"
        )
    if outcome.remark:
        lines.append(f"  {outcome.remark}")
    return "\n".join(lines)


def _rows(report: Report) -> list[tuple[str, str, str, str]]:
    return [(e.claim.id, e.claim.title, e.outcome.status, e.claim.recorded) for e in report.entries]


def _markdown(report: Report, pictures: dict[int, str]) -> str:
    lines = ["# Verification report", "", report.summary(), "", _origin(report), ""]
    if report.entries:
        lines += ["| claim | what | verdict | recorded |", "| --- | --- | --- | --- |"]
        lines += [f"| {' | '.join(row)} |" for row in _rows(report)]
    for e in report.entries:
        lines += [
            "",
            f"## {e.claim.id}: {e.claim.title}",
            "",
            f"$${e.claim.statement}$$",
            "",
            f"Source: {e.claim.source}.",
            "",
        ]
        lines += ["```", _entry_text(e), "```"]
        basis = dict.fromkeys(m.basis for m in e.outcome.measurements)
        lines += ["", "Tolerances: " + "; ".join(basis) + "."]
    for k, s in enumerate(report.signatures):
        name = f"{s.equation.variant.name}, m = {s.config['micro']}"
        lines += [
            "",
            f"## Signature of {name}",
            "",
            "```",
            s.table(),
            "```",
            "",
            f"![signature of {name}]({pictures[k]})",
        ]
    if report.fates:
        lines += [
            "",
            "## Mutants",
            "",
            kill_rate(report.fates),
            "",
            "```",
            *map(str, report.fates),
            "```",
        ]
    return "\n".join(lines) + "\n"


def _html(report: Report, pictures: dict[int, str]) -> str:
    def pre(text: str) -> str:
        return f"<pre>{html.escape(text)}</pre>"

    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in _rows(report)
    )
    parts = [
        "<h1>Verification"
        f" report</h1><p>{html.escape(report.summary())}</p><p>{html.escape(_origin(report))}</p>"
    ]
    if rows:
        parts.append(
            f"<table><tr><th>claim</th><th>what</th><th>verdict</th><th>recorded</th></tr>{rows}</table>"
        )
    for e in report.entries:
        parts.append(f"<h2>{html.escape(e.claim.id)}: {html.escape(e.claim.title)}</h2>")
        parts.append(
            f"<p><code>{html.escape(e.claim.statement)}</code></p><p>Source:"
            f" {html.escape(e.claim.source)}.</p>" + pre(_entry_text(e))
        )
    for k, s in enumerate(report.signatures):
        name = f"{s.equation.variant.name}, m = {s.config['micro']}"
        parts.append(
            f'<h2>Signature of {name}</h2>{pre(s.table())}<img src="{pictures[k]}" alt="signature'
            f' of {name}" width="700">'
        )
    if report.fates:
        parts.append(
            f"<h2>Mutants</h2><p>{kill_rate(report.fates)}</p>"
            + pre("\n".join(map(str, report.fates)))
        )
    style = (
        "body{font-family:sans-serif;max-width:70em;margin:2em"
        " auto}td,th{text-align:left;padding:.2em 1em}pre{overflow-x:auto}"
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>sdesam'
        f" report</title><style>{style}</style>{''.join(parts)}</html>\n"
    )


def _origin(report: Report) -> str:
    origin = report.provenance
    return (
        f"Preset {report.config['preset']}, seed {report.config['seed']}; {origin['created']},"
        f" sdesam {origin['versions']['sdesam']}, jax {origin['versions']['jax']},"
        f" {origin['device']}, revision {origin['revision']}."
    )
