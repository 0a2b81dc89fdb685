"""The faults that are planted, by kind, each with the fast test that must notice it: wrong numbers,
one at a time.

    make mutation                                   all of them, two at a time
    python -m tests.mutations --only resnet         those whose place or expression contains a word
    python -m tests.mutations --list                what there is, and whether each fits the source
    as it is

An expression is found by module and function (:mod:`tests.planting`): whoever moves or rewrites it
mends its entry here. A fault that no test can notice because it does no harm stands under `ARGUED`,
with the reason."""

from __future__ import annotations

import argparse
import sys

from tests.planting import Mutation, run, unfit


def of(module: str, tests: str, *faults: tuple[str, ...]) -> tuple[Mutation, ...]:
    """Faults of one module; each is `(function, old, new, test)`, its test in the file `tests`
    unless it names another.
    """

    def place(names: str) -> tuple[str, ...]:
        return tuple(name if "::" in name else f"{tests}::{name}" for name in names.split(" & "))

    return tuple(
        Mutation(
            f"sdesam.{module}" if not module.startswith("experiments") else module,
            f,
            old,
            new,
            place(by),
        )
        for f, old, new, by in faults
    )


FROM_VARIANT = "tests/optim/test_from_variant.py"

SAMPLING = (
    *of(
        "sampling",
        "tests/sde/test_micro_batches.py",
        (
            "Sampling.covariance_factor",
            "self.batch * (n - 1)",
            "self.batch * n",
            "tests/symbolic/test_equation.py::test_noise_factor[False]",
        ),
        (
            "Sampling.covariance_factor",
            "Fraction(1, self.batch)",
            "Fraction(1, self.m)",
            "sdesam/sampling.py::sdesam.sampling.Sampling",
        ),
        (
            "Sampling.check_population",
            "self.batch > n",
            "self.batch >= n",
            "tests/sde/test_sde.py::test_no_noise_where_every_batch_is_the_whole_set",
        ),
        ("_orders", "comb(left, count)", "comb(left, 1)", "test_chances_of_large_micro_batches"),
        (
            "list_micro_batches",
            "np.full(total, 1 / total)",
            "np.full(total, 1 / (total + 1))",
            "test_subsets_are_listed_with_one_chance",
        ),
        (
            "list_micro_batches",
            "_orders(one) / n**m",
            "_orders(one) / total",
            "test_chances_of_large_micro_batches",
        ),
        ("count_micro_batches", "comb(n + m - 1, m)", "comb(n + m, m)", "test_draws_are_apart"),
        (
            "check_perturbation",
            "float(np.finfo(np.float32).max)",
            "float(np.finfo(np.float64).max)",
            "tests/optim/test_weights.py::test_a_huge_lambda_follows_the_largest[1e+300]",
        ),
    ),
)

STEPPING = (
    *of(
        "sde.stepping",
        "tests/sde/test_schemes.py",
        (
            "Euler.__call__",
            "(key_noise, key_drift)",
            "(key_drift, key_drift)",
            "test_no_two_evaluations_of_a_step_share_a_key[Euler-2]",
        ),
        (
            "_scaled",
            "jnp.sqrt(dt)",
            "jnp.float32(dt)",
            "test_the_engine_steps_as_the_formula_says[euler-additive]",
        ),
        (
            "Heun.__call__",
            "x + self.dt * b + s",
            "x + self.dt * b",
            "test_the_engine_steps_as_the_formula_says[heun-multiplicative]",
        ),
        (
            "Heun.__call__",
            "x + 0.5 * self.dt * (b + c) + s",
            "x + self.dt * c + s",
            "test_the_engine_steps_as_the_formula_says[heun-multiplicative]",
        ),
        (
            "Heun.__call__",
            "0.5 * self.dt * (b + c)",
            "0.5 * self.dt * (b + b)",
            "test_predictor_and_corrector_have_probes_of_their_own[Heun-False]",
        ),
        (
            "Heun.__call__",
            "self.kernel.step_drift(ahead, key_ahead)",
            "self.kernel.step_drift(ahead, key_drift)",
            "test_predictor_and_corrector_have_probes_of_their_own[Heun-False]",
        ),
        (
            "Heun.__call__",
            "self.kernel.step_noise(x, _scaled(xi, self.dt), key_noise)",
            "self.kernel.step_noise(x, _scaled(xi, self.dt), key_drift)",
            "test_no_two_evaluations_of_a_step_share_a_key[Heun-3]",
        ),
        (
            "Richardson.__call__",
            "Euler(self.kernel, self.dt / 2)",
            "Euler(self.kernel, self.dt)",
            "test_the_engine_steps_as_the_formula_says[richardson-additive]",
        ),
        (
            "Richardson.__call__",
            "(xi[..., 0] + xi[..., 1]) * np.sqrt(0.5).astype(xi.dtype)",
            "xi[..., 0]",
            "test_richardson_halves_share_their_noise",
        ),
        (
            "Richardson.__call__",
            "np.sqrt(0.5)",
            "np.sqrt(0.25)",
            "test_the_engine_steps_as_the_formula_says[richardson-additive]",
        ),
        (
            "Richardson.__call__",
            "keys[1 + half]",
            "keys[1]",
            "test_no_two_evaluations_of_a_step_share_a_key[Richardson-6]",
        ),
        (
            "Richardson.__call__",
            "keys[0]",
            "keys[1]",
            "test_no_two_evaluations_of_a_step_share_a_key[Richardson-6]",
        ),
        (
            "_Extrapolated.__call__",
            "2 * fine[name] - coarse[name]",
            "fine[name]",
            "test_richardson_halves_share_their_noise",
        ),
        ("simulate", "pair[1]", "pair[0]", "test_richardson_halves_share_their_noise"),
        (
            "_warn_if_unstable",
            "dt * curvature > 2",
            "dt * curvature > 4",
            "tests/ensemble/test_scale.py::test_unstable_steps_are_warned_of",
        ),
    ),
    *of(
        "sde._kernels",
        "tests/sde/test_sde.py",
        (
            "step_apart",
            "dt * b + s",
            "b + s",
            "tests/sde/test_schemes.py::test_the_engine_steps_as_the_formula_says[euler-additive]",
        ),
        (
            "TreeKernel.step_both",
            "dt * jnp.asarray(self.drift_numbers)",
            "jnp.asarray(self.drift_numbers)",
            "test_an_euler_step_is_drift_and_noise",
        ),
    ),
    *of(
        "sde.equation",
        "tests/sde/test_sde.py",
        (
            "_covariance",
            "columns.T @ columns",
            "2 * columns.T @ columns",
            "test_covariance_of_a_written_sde_is_dense",
        ),
    ),
    *of(
        "ensemble.placement",
        "tests/sde/test_sde.py",
        ("steps_of", "1e-6 * max(1.0, abs(ratio))", "0.2 * max(1.0, abs(ratio))", "test_bad_runs"),
        (
            "time_grid",
            "np.linspace(0, steps, 11)",
            "np.linspace(0, steps, 6)",
            "tests/ensemble/test_driver.py::test_statistics_are_those_of_the_paths",
        ),
    ),
)

NOISE = (
    *of(
        "sde._kernels",
        "tests/sde/test_micro_batches.py",
        ("FreshBatches.for_drift", "self.count // 8", "self.count // 16", "test_draws_are_apart"),
        (
            "FreshBatches.__call__",
            "jnp.full(self.count, 1 / self.count)",
            "jnp.full(self.count, 1 / (self.count + 1))",
            "test_a_drawn_noise_is_a_sample_covariance",
        ),
        (
            "FreshBatches.__call__",
            "jax.random.split(key_directions, self.count)",
            "jnp.broadcast_to(key_directions, (self.count,))",
            "test_draws_are_apart",
        ),
        (
            "FreshBatches._subsets",
            "jax.random.randint(key, (self.count, self.m), 0, last + 1)",
            "jax.random.randint(key, (self.count, self.m), 0, self.n)",
            "test_subsets_are_uniform",
        ),
        ("FreshBatches._subsets", "last + 1", "last", "test_subsets_are_uniform"),
        (
            "TreeKernel.step_drift",
            "jax.random.fold_in(key, 1)",
            "jax.random.key(1)",
            "test_random_directions",
        ),
        (
            "TreeKernel._weights",
            "xi - jnp.mean(xi)",
            "xi",
            "test_a_drawn_noise_is_a_sample_covariance",
        ),
    ),
    *of(
        "sde.binding",
        "tests/sde/test_micro_batches.py",
        (
            "bind",
            "sqrt(lr * factor / problem.n)",
            "sqrt(lr * factor) / problem.n",
            "test_a_drawn_noise_is_a_sample_covariance",
        ),
        (
            "_micro_batches",
            "n // 2",
            "n // 4",
            "test_draws_are_apart",
        ),
        (
            "_micro_batches",
            "max(n, FEW_MICRO_BATCHES)",
            "n",
            "test_draws_are_apart",
        ),
        (
            "_coefficients",
            "not sampling.replace and sampling.batch == n",
            "sampling.batch == n",
            "tests/sde/test_sde.py::test_no_noise_where_every_batch_is_the_whole_set",
        ),
        (
            "_coefficients",
            "rho**part.term.rho",
            "rho ** min(part.term.rho, 1)",
            "tests/sde/test_enumeration.py::test_losses_with_a_dense_layer[m-usam-2-order3-False]",
        ),
        (
            "_check_smooth",
            "highest >= 3",
            "highest > 3",
            "tests/sde/test_sde.py::test_losses_with_kinks_are_refused_at_second_order",
        ),
    ),
    *of(
        "sde.compile",
        "tests/sde/test_rules.py",
        (
            "_loops.add",
            "jnp.zeros_like(flat).at[k].set(1)",
            "jnp.ones_like(flat)",
            "test_equations_of_rules[random]",
        ),
        (
            "_loops",
            "jax.random.rademacher(jax.random.fold_in(key, 2), flat.shape, flat.dtype)",
            "jax.random.uniform(jax.random.fold_in(key, 2), flat.shape, flat.dtype)",
            "test_drawn_drifts_are_unbiased",
        ),
        (
            "_Evaluator._one_by_one",
            "weights / jnp.sum(weights)",
            "weights",
            "test_drawn_drifts_are_unbiased",
        ),
        (
            "_Evaluator._mixed_norm.value",
            "_scale(leaf(item).dense, a)",
            "leaf(item).dense",
            "test_equations_of_rules[difference]",
        ),
    ),
    *of(
        "sde.compile",
        "tests/sde/test_sde.py",
        (
            "_probe",
            "1 / (golden**2 + 1)",
            "1 / (golden**2 + 1) + 0.01",
            "test_the_laws_of_probes[3-moments1]",
        ),
        ("_probe", "-1 / golden", "1 - golden + 0.01", "test_the_laws_of_probes[3-moments1]"),
        ("_probe", "jnp.sqrt(mean)", "mean", "test_the_laws_of_probes[2-moments0]"),
        ("_probe", "jnp.cbrt(mean)", "jnp.sqrt(mean)", "test_the_laws_of_probes[3-moments1]"),
        (
            "evaluate_trees",
            "weights[MARK][micro_batches.indices].mean(axis=1)",
            "weights[MARK][micro_batches.indices].sum(axis=1)",
            "tests/sde/test_micro_batches.py::test_a_drawn_noise_is_a_sample_covariance",
        ),
        (
            "evaluate_trees",
            "(W - jnp.mean(W)) * (q / (q - 1))",
            "W - jnp.mean(W)",
            "tests/sde/test_micro_batches.py::test_a_drawn_noise_is_a_sample_covariance",
        ),
        (
            "evaluate_trees",
            "W - jnp.mean(W)",
            "W",
            "tests/sde/test_micro_batches.py::test_a_drawn_noise_is_a_sample_covariance",
        ),
        (
            "_Evaluator._power_of_norm",
            "inverse_norm(v, self.norms.eps) ** -factor.power",
            "inverse_norm(v, self.norms.eps)",
            "tests/sde/test_enumeration.py::test_normalised_variants[m-sam-3-1-False]",
        ),
    ),
)

ALGEBRA = (
    *of(
        "symbolic.terms",
        "tests/symbolic/test_equation.py",
        ("Term.eta", 'int(self.kind == "correction")', "0", "test_potentials"),
        ("Term.covers", "self.kind == part.kind", "False", "test_what_goes_with_a_term"),
        (
            "Term.covers",
            'self.kind != "drift" and self.rho == 0',
            "self.rho == 0",
            "test_what_goes_with_a_term",
        ),
    ),
    *of(
        "symbolic.roles",
        "tests/sde/test_compile.py",
        ("of_data_set", "colour >= MARK", "colour > MARK", "test_sums_of_trees"),
        ("visited", "_VISITED - number", "_VISITED", "test_sums_of_trees"),
    ),
    *of(
        "symbolic.trees",
        "tests/symbolic/test_normalised.py",
        (
            "independent.limit",
            "factor._replace(tree=Tree(WHOLE))",
            "factor._replace(tree=Tree(WHOLE), power=max(factor.power, -1))",
            "test_large_micro_batches_are_the_whole_set[sam-n-sam]",
        ),
        (
            "Factor.derivative",
            "(self._replace(power=self.power - 2),)",
            "(self._replace(power=self.power - 1),)",
            "test_derivative_of_norms",
        ),
        (
            "derivative",
            "number * c",
            "c",
            "test_derivative_of_norms",
        ),
        (
            "_gradient_dot",
            "s * s",
            "s",
            "tests/sde/test_rules.py::test_equations_of_rules[f-sam]",
        ),
        (
            "_gradient_dot",
            "(a + s) ** 2",
            "a + s",
            "tests/sde/test_rules.py::test_equations_of_rules[norm of the data set]",
        ),
        (
            "directional_derivative",
            "k * a * c",
            "k * c",
            "tests/symbolic/test_equation.py::test_potentials",
        ),
        (
            "TreeSum.__sub__",
            "self + other * -1",
            "self + other",
            "tests/symbolic/test_equation.py::test_without",
        ),
        (
            "block_sizes",
            "_NAMELESS",
            "(*_NAMELESS, MARK)",
            "tests/symbolic/test_normalised.py::test_printing",
        ),
    ),
    *of(
        "symbolic.equation",
        "tests/symbolic/test_equation.py",
        ("_derive", "sp.Rational(-1, 2)", "sp.Rational(-1, 1)", "test_potentials"),
        (
            "is_kept",
            "Fraction(i, alpha) + Fraction(j, beta) < 1",
            "Fraction(i, alpha) + Fraction(j, beta) <= 1",
            "test_kept_terms",
        ),
        ("_derive", "kept(1, j) or j == 0", "kept(1, j)", "test_kept_terms"),
        (
            "_derive",
            "directional_derivative(mean_step[k], mean_step[j - k])",
            "directional_derivative(mean_step[0], mean_step[j])",
            "tests/symbolic/test_normalised.py::test_correction_is_a_derivative[sam]",
        ),
        ("_each", "k * c", "k", "tests/symbolic/test_rules.py::test_a_norm_of_a_combination"),
        ("_variance", "trees - trees.independent()", "trees.independent()", "test_without"),
        (
            "_size",
            "micro if variant.micro else batch",
            "batch",
            "test_rho_1_drift_in_coordinates[True]",
        ),
        ("ModifiedEquation.potential", "-self.drift", "self.drift", "test_potentials"),
    ),
    *of(
        "symbolic.expansion",
        "tests/sde/test_rules.py",
        (
            "_weight",
            "factorial(count)",
            "count",
            "tests/sde/test_enumeration.py::test_rho_cubed_on_quartic_losses[usam-4-True]",
        ),
        (
            "_Expansion._inverse_norm",
            "sp.binomial(sp.Rational(-1, 2), k)",
            "sp.Rational(-1, 2) ** k",
            "tests/symbolic/test_rules.py::test_the_second_order_of_a_norm",
        ),
        (
            "_Expansion._inverse_norm",
            "r._replace(power=-2)",
            "r._replace(power=-1)",
            "test_equations_of_rules[unit of two steps]",
        ),
        (
            "_without_random",
            "count % 2 == 0",
            "count != 2",
            "test_equations_of_rules[random]",
        ),
        (
            "_Expansion._norm",
            "(own, s)",
            "(own, -s)",
            "test_equations_of_rules[f-sam]",
        ),
    ),
    *of(
        "symbolic.expectation",
        "tests/symbolic/test_equation.py",
        (
            "_mini_batch",
            "falling(sizes.micro, p)",
            "sizes.micro ** p",
            "test_rho_1_drift_in_coordinates[True]",
        ),
        (
            "_mini_batch",
            "falling(sizes.batch - p, len(positions) - p)",
            "falling(sizes.batch, len(positions) - p)",
            "tests/sde/test_rules.py::test_equations_of_rules[mini-batch descent]",
        ),
        (
            "_one_batch",
            "size ** len(nodes)",
            "size ** len(positions)",
            "tests/sde/test_rules.py::test_equations_of_rules[fresh-usam]",
        ),
        (
            "_given",
            "falling(b - 1 - p, q)",
            "falling(b - p, q)",
            "tests/sde/test_rules.py::test_equations_of_rules[mini-batch descent]",
        ),
        ("falling", "number - k", "number", "test_expectations_over_micro_batches"),
        (
            "projection",
            "b - m",
            "b",
            "tests/sde/test_rules.py::test_equations_of_rules[mini-batch descent]",
        ),
        (
            "_given",
            "falling(m - 1, p)",
            "falling(m, p)",
            "tests/symbolic/test_printing.py::test_the_headline",
        ),
        (
            "conditional_scale",
            "size * (samples - 1) / (samples - size)",
            "size * samples / (samples - size)",
            "tests/symbolic/test_normalised.py::test_printing",
        ),
        ("_plain_means", "factorial(len(part) - 1)", "1", "test_expectations_over_micro_batches"),
        ("_plain_means", "(-1) ** (len(part) - 1)", "1", "test_expectations_over_micro_batches"),
        (
            "_plain_means",
            "samples ** len(joined)",
            "samples ** len(positions)",
            "test_expectations_over_micro_batches",
        ),
        (
            "_plain_means",
            "samples if anchor is None else samples - 1",
            "samples",
            "tests/sde/test_enumeration.py::test_losses_with_a_dense_layer[m-usam-2-order3-False]",
        ),
    ),
    *of(
        "symbolic.printing",
        "tests/symbolic/test_printing.py",
        (
            "_split.choices",
            "range(2, len(places) + 1)",
            "range(1, len(places) + 1)",
            "test_centred_moments_expand_back",
        ),
        (
            "_with_factors",
            "over if factor.power > 0 else under",
            "under if factor.power > 0 else over",
            "tests/symbolic/test_normalised.py::test_printing",
        ),
        ("_sum", '"- " if negative else "+ "', '"+ "', "test_the_headline"),
    ),
)

OPTIMIZERS = (
    *of(
        "optim.kernel",
        "tests/optim/test_rules.py",
        (
            "weighted_gradient",
            "jax.vjp(losses, at, has_aux=True)",
            "jax.vjp(losses, x, has_aux=True)",
            "test_weighted_descent",
        ),
        (
            "StepKernel.direction.micro_batch",
            "jax.random.fold_in(own_key, number)",
            "jax.random.fold_in(own_key, 1)",
            "test_what_a_rule_draws_is_apart",
        ),
        (
            "StepKernel.direction",
            "jax.random.split(jax.random.fold_in(key, 1), indices.shape[0])",
            "jnp.repeat(key[None], indices.shape[0])",
            "test_what_a_rule_draws_is_apart",
        ),
        (
            "Evaluation._computed",
            "v.transform(leaf) * own",
            "v.transform(own) * own",
            "test_asam",
        ),
    ),
    *of(
        "optim.kernel",
        "tests/optim/test_formula.py",
        (
            "_inverse_norm",
            "(eps / scale) ** 2",
            "eps / scale",
            "tests/optim/test_chain.py::test_step_of_given_batches[sam-4-0.3]",
        ),
        (
            "_inverse_norm",
            "scale * jnp.sqrt(jnp.where(vanishes, 1, square))",
            "jnp.sqrt(jnp.where(vanishes, 1, square))",
            "test_one_step_is_the_formula[sam]",
        ),
        (
            "Evaluation._computed",
            "self.vector(v.norm_of)",
            "self.vector(v.vector)",
            "test_one_step_is_the_formula[dnsam]",
        ),
        (
            "gibbs",
            "lam * (nu - largest)",
            "nu - largest",
            "tests/optim/test_weights.py::test_gibbs_weights[1.0]",
        ),
        (
            "gibbs",
            "jax.lax.psum(jnp.sum(weights), together)",
            "jnp.sum(weights)",
            (
                "tests/optim/test_devices.py::test_synchronised_perturbations_are_those_of_one_device[rw-sam"
                " exact-shard_map]"
            ),
        ),
        (
            "weighted_gradient",
            "jax.lax.psum(own, together)",
            "jax.lax.pmean(own, together)",
            (
                "tests/optim/test_devices.py::test_synchronised_perturbations_are_those_of_one_device[rw-sam"
                " exact-shard_map]"
            ),
        ),
        (
            "Evaluation._computed",
            "jax.lax.pmean(own, self.together)",
            "jax.lax.psum(own, self.together)",
            "tests/optim/test_devices.py::test_synchronised_perturbations_are_those_of_one_device[usam-shard_map]",
        ),
        (
            "estimated_norms.along",
            "(wide(ahead) - wide(values)) / norms.delta",
            "(wide(ahead) - wide(values)) / (2 * norms.delta)",
            "test_one_step_is_the_formula[rw-sam]",
        ),
        (
            "estimated_norms",
            "jnp.mean(jax.lax.map(along, jax.random.split(key, norms.directions)), axis=0)",
            "jnp.sum(jax.lax.map(along, jax.random.split(key, norms.directions)), axis=0)",
            "tests/optim/test_weights.py::test_bias_and_variance_are_the_closed_forms[rademacher-3-True]",
        ),
        (
            "estimated_norms",
            "norms.square",
            "not norms.square",
            "tests/optim/test_weights.py::test_exact_norms",
        ),
        (
            "direction.signs",
            "words[end - -(-leaf.size // 32) : end, None]",
            "words[: -(-leaf.size // 32), None]",
            "tests/optim/test_weights.py::test_entries_of_a_direction_are_independent[rademacher]",
        ),
        (
            "direction",
            "jax.random.normal(k, leaf.shape, leaf.dtype)",
            "jax.random.normal(key, leaf.shape, leaf.dtype)",
            "tests/optim/test_weights.py::test_entries_of_a_direction_are_independent[gaussian]",
        ),
        (
            "moved.move",
            "start + jnp.asarray(radius, start.dtype) * v.astype(start.dtype)",
            "start - jnp.asarray(radius, start.dtype) * v.astype(start.dtype)",
            "test_one_step_is_the_formula[usam]",
        ),
        (
            "StepKernel._drawn",
            "jax.random.choice(key, self.n, (size,), replace=False)",
            "jax.random.choice(key, self.n, (size,), replace=True)",
            "tests/optim/test_chain.py::test_batches_have_their_distribution[False]",
        ),
        (
            "StepKernel.direction_key",
            "jax.random.fold_in(key, 1)",
            "key",
            "tests/optim/test_weights.py::test_directions_of_a_step_have_a_key_of_their_own",
        ),
        (
            "StepKernel.step",
            "-self.numbers.lr",
            "self.numbers.lr",
            "tests/optim/test_chain.py::test_step_of_given_batches[sgd-4-0.0]",
        ),
        (
            "StepKernel.direction",
            "leaf.mean(axis=0)",
            "leaf.sum(axis=0)",
            "tests/optim/test_chain.py::test_step_of_given_batches[m-usam-2-0.0]",
        ),
        (
            "StepKernel._direction_by_factors",
            "jnp.asarray(self.numbers.rho, inverses.dtype)",
            "jnp.asarray(self.numbers.rho, inverses.dtype) ** 2",
            "tests/optim/test_chain.py::test_step_of_a_network[m-sam-1]",
        ),
    ),
    *of(
        "optim.averages",
        "tests/optim/test_training.py",
        (
            "accumulated",
            "t / numbers.shape[0]",
            "t",
            "test_groups_at_once_and_in_turn",
        ),
        (
            "mean_of_micro_batches",
            "jnp.max(leaf, axis=0)",
            "leaf[0]",
            "test_of_whole_numbers_among_auxiliary_values_the_largest_is_kept",
        ),
        (
            "mean_of_micro_batches",
            "jnp.mean(leaf, axis=0)",
            "jnp.sum(leaf, axis=0)",
            "test_batch_statistics_of_micro_batches_are_averaged",
        ),
        (
            "mean_of_devices",
            "jax.lax.pmax(leaf, axis_name)",
            "jax.lax.pmin(leaf, axis_name)",
            "tests/optim/test_devices.py::test_synchronised_perturbations_are_those_of_one_device[usam-shard_map]",
        ),
        (
            "mean_of_devices",
            "jax.lax.pmean(leaf, axis_name)",
            "jax.lax.psum(leaf, axis_name)",
            "tests/optim/test_devices.py::test_synchronised_perturbations_are_those_of_one_device[usam-shard_map]",
        ),
    ),
    *of(
        "optim.checks",
        "tests/optim/test_training.py",
        (
            "_seen",
            "jnp.where((value >= least) & jnp.isfinite(value), value, jnp.nan)",
            "abs(value)",
            "test_a_schedule_that_gets_negative_is_seen",
        ),
        (
            "_is_mean_of_samples",
            "isinstance(v, Gradient) and (v.at is None or v.at.scopes <= {'data'})",
            "True",
            f"{FROM_VARIANT}::test_a_unit_vector_of_a_mini_batch_leaves_a_choice",
        ),
        (
            "check_devices",
            "not v.scopes <= {'batch', 'data'}",
            "False",
            f"{FROM_VARIANT}::test_what_a_rule_is_made_with",
        ),
    ),
    *of(
        "optim.batches",
        FROM_VARIANT,
        (
            "in_micro_batches",
            "leaf.reshape(k, micro, *leaf.shape[1:])",
            "leaf.reshape(micro, k, *leaf.shape[1:]).swapaxes(0, 1)",
            "tests/optim/test_training.py::test_batch_statistics_of_micro_batches_are_averaged",
        ),
        (
            "in_micro_batches",
            "size != b",
            "False",
            "test_what_a_step_is_given",
        ),
        (
            "numbered",
            "jax.random.fold_in(key, number)",
            "key",
            "tests/optim/test_training.py::test_keys_of_the_passes",
        ),
        (
            "by_scope",
            "dict(zip(scopes, fresh if many else (fresh,), strict=True))",
            "dict(zip(scopes, fresh[::-1] if many else (fresh,), strict=True))",
            "test_a_step_is_the_rule[mine: two apart]",
        ),
        (
            "Batches.losses",
            "numbered(key, number_apart(s)) if number_apart(s) else key",
            "key",
            "test_dropout_of_a_batch_drawn_apart[vmap-one device]",
        ),
        (
            "Batches.mini_batch.micro_batch",
            "numbered(self.key, number)",
            "self.key",
            "test_dropout_of_a_shared_norm[vmap-one device]",
        ),
        (
            "Batches.mini_batch",
            "jax.checkpoint(partial(micro_batch, wider))",
            "partial(micro_batch, wider)",
            "test_a_shared_norm_in_turn_has_the_memory_of_one_micro_batch",
        ),
        (
            "Batches.mini_batch",
            "wide(y)",
            "y",
            "test_the_norm_of_a_mini_batch_in_half_precision[bfloat16-accumulate]",
        ),
    ),
    *of(
        "optim.optimizer",
        "tests/optim/test_training.py",
        (
            "Optimizer.gradient",
            "jax.lax.axis_index(self.axis_name) * count",
            "jax.lax.axis_index(self.axis_name)",
            "tests/optim/test_devices.py::test_micro_batches_within_devices",
        ),
        (
            "Optimizer.gradient",
            "(number(state.count) for number in (self.rho, self.eps, self.lam))",
            "(number(0) for number in (self.rho, self.eps, self.lam))",
            "test_rho_may_be_a_schedule",
        ),
        (
            "Optimizer.gradient",
            "{name: number(state.count) for name, number in self.own.items()}",
            "{name: number(0) for name, number in self.own.items()}",
            f"{FROM_VARIANT}::test_a_schedule_counts_the_steps_taken",
        ),
        (
            "Optimizer.__init__",
            "schedule(what, own[what], valid, least=-jnp.inf)",
            "schedule(what, own[what], valid)",
            f"{FROM_VARIANT}::test_numbers_of_the_rule[gsam-a]",
        ),
        (
            "Optimizer._shared",
            "{'batch': drawn.mini_batch}",
            "drawn.losses({'batch': drawn.parts['micro']}, drawn.first)",
            f"{FROM_VARIANT}::test_dropout_of_a_shared_norm[vmap-one device]",
        ),
        (
            "Optimizer._shared",
            "replace(at_x, losses={'batch': drawn.mini_batch}, together=self.axis_name)",
            "replace(at_x, losses={'batch': drawn.mini_batch})",
            f"{FROM_VARIANT}::test_two_devices_are_one[shared-norm-sam]",
        ),
        (
            "Optimizer._own_key",
            "number if self.together is None else 0",
            "number",
            f"{FROM_VARIANT}::test_two_devices_are_one[mine: ascent of a mini-batch]",
        ),
        (
            "Optimizer._own_key",
            "jax.random.fold_in(direction_key, 1)",
            "direction_key",
            f"{FROM_VARIANT}::test_a_step_is_the_rule[rwp]",
        ),
        (
            "Optimizer._inner_update",
            "state.count + 1",
            "state.count + 2",
            "tests/optim/test_formula.py::test_one_step_is_the_formula[usam]",
        ),
        (
            "Optimizer._inner_update",
            '{"value": found.loss, **extra}',
            '{"value": 0 * found.loss, **extra}',
            "test_the_loss_reaches_an_optimizer_that_asks_for_it",
        ),
        (
            "Optimizer.whole_gradient",
            "jax.tree.map(jnp.add, total, part(tail, full))",
            "total",
            "test_the_gradient_of_the_data_set",
        ),
        (
            "Optimizer._summed",
            "leaf * samples(batch)",
            "leaf",
            "test_the_gradient_of_the_data_set",
        ),
    ),
)

NETWORKS = (
    *of(
        "networks.resnet",
        "tests/networks/test_training.py",
        (
            "ResNet.init.kernel",
            "size * size * outward",
            "size * size * inward",
            "test_the_start_has_its_law",
        ),
        (
            "ResNet.init.kernel",
            "2 / (size * size * outward)",
            "1 / (size * size * outward)",
            "test_the_start_has_its_law",
        ),
        ("ResNet.init", "inward**-0.5", "inward**-1.0", "test_the_start_has_its_law"),
        (
            "ResNet.__call__",
            "images.astype(jnp.float32) / 255",
            "images.astype(jnp.float32) / 256",
            "test_the_network_in_numpy",
        ),
        ("ResNet.__call__", "jax.nn.relu(x + y)", "x + y", "test_the_network_in_numpy"),
        (
            "ResNet.__call__",
            "jnp.mean(x.astype(jnp.float32), axis=(1, 2))",
            "jnp.max(x.astype(jnp.float32), axis=(1, 2))",
            "test_the_network_in_numpy",
        ),
        (
            "ResNet._stride",
            "2 if stage and not repeat else 1",
            "2 if stage else 1",
            "test_the_network_in_numpy",
        ),
        ("", "[0.2470, 0.2435, 0.2616]", "[0.2470, 0.2435, 0.2516]", "test_the_network_in_numpy"),
        (
            "batch_norm",
            "jnp.mean(groups, axes, keepdims=True)",
            "jax.lax.stop_gradient(jnp.mean(groups, axes, keepdims=True))",
            "test_derivatives_of_batch_norm[2]",
        ),
        (
            "batch_norm",
            "jnp.maximum(jnp.mean(groups**2, axes, keepdims=True) - mean**2, 0)",
            (
                "jax.lax.stop_gradient(jnp.maximum(jnp.mean(groups**2, axes, keepdims=True) -"
                " mean**2, 0))"
            ),
            "test_derivatives_of_batch_norm[2]",
        ),
        ("batch_norm", "count / max(count - 1, 1)", "1.0", "test_batch_norm[2]"),
        (
            "batch_norm",
            "decay * s[name] + (1 - decay) * jnp.mean(value, axis=(0, 1, 2, 3))",
            "(1 - decay) * s[name] + decay * jnp.mean(value, axis=(0, 1, 2, 3))",
            "test_batch_norm[2]",
        ),
        ("batch_norm", "variance + _EPS", "variance + 10 * _EPS", "test_batch_norm[None]"),
        ("convolution_by_patches", "row + height", "row + height - 1", "test_convolutions"),
    ),
    *of(
        "networks.measuring",
        "tests/networks/test_training.py",
        ("measure", "norms2.std(ddof=1)", "norms2.std()", "test_what_is_measured"),
        (
            "measure",
            "(norms2.mean() - float(square_of_mean)) * size / (size - 1)",
            "norms2.mean() - float(square_of_mean)",
            "test_what_is_measured",
        ),
        (
            "measure",
            "float(square_of_mean) - trace / size",
            "float(square_of_mean)",
            "test_what_is_measured",
        ),
        ("_evaluate.add", "jnp.where(part[1] >= 0, losses, 0)", "losses", "test_what_is_measured"),
        (
            "_gradient_noise",
            "_norm2(total) / len(labels) ** 2",
            "_norm2(total) / len(labels)",
            "test_what_is_measured",
        ),
    ),
    *of(
        "networks.trainer",
        "tests/networks/test_training.py",
        (
            "augmented",
            "2 * PADDING + 1",
            "2 * PADDING",
            "test_crops_reach_every_place_equally_often",
        ),
        (
            "augmented",
            "jax.random.bernoulli(mirror, shape=(len(images),))",
            "jax.random.bernoulli(mirror, 0.4, shape=(len(images),))",
            "test_crops_reach_every_place_equally_often",
        ),
        (
            "Trainer._some_steps",
            "jax.random.fold_in(step_key, k)",
            "step_key",
            "test_every_batch_is_shifted_by_a_key_of_its_own",
        ),
        (
            "Trainer._some_steps",
            "state.optimizer.count // (n // b)",
            "0",
            "test_records_of_softmax_regression[constant-0.0-0.0]",
        ),
        (
            "Trainer._some_steps",
            "jnp.pi * share",
            "jnp.pi * share / 2",
            "test_records_of_softmax_regression[cosine-0.5-0.1]",
        ),
        (
            "Trainer._some_steps",
            "(k * b,)",
            "(k,)",
            "test_records_of_softmax_regression[constant-0.0-0.0]",
        ),
        (
            "Trainer.epoch",
            "float(loss) / steps",
            "float(loss)",
            "test_records_of_softmax_regression[constant-0.0-0.0]",
        ),
        (
            "Trainer.epoch",
            "float(accuracy) / steps",
            "float(accuracy)",
            "test_records_of_softmax_regression[constant-0.0-0.0]",
        ),
        (
            "Trainer.__init__",
            "optax.trace(recipe.momentum)",
            "optax.trace(recipe.momentum, nesterov=True)",
            "test_records_of_softmax_regression[cosine-0.5-0.1]",
        ),
        (
            "Trainer.__init__",
            "optax.add_decayed_weights(recipe.weight_decay)",
            "optax.add_decayed_weights(2 * recipe.weight_decay)",
            "test_records_of_softmax_regression[cosine-0.5-0.1]",
        ),
        (
            "Trainer.run",
            "steps * self.recipe.batch",
            "steps",
            "test_records_of_softmax_regression[constant-0.0-0.0]",
        ),
        (
            "Recipe.passes",
            "FORWARD if rule.weighted else 0",
            "0",
            "sdesam/networks/trainer.py::sdesam.networks.trainer.Recipe.passes",
        ),
    ),
    *of(
        "networks.throughput",
        "tests/networks/test_training.py",
        (
            "steps_in_turn",
            "timer(steps[name]) / steps[name]",
            "timer(steps[name])",
            "test_times_are_those_of_one_step",
        ),
    ),
)

PROBLEMS = (
    *of(
        "problems.means",
        "tests/problems/test_problems.py",
        (
            "fold_samples",
            "a[whole_chunks * chunk :]",
            "a[whole_chunks * chunk + 1 :]",
            "tests/sde/test_sde.py::test_chunks_of_samples_change_nothing[3]",
        ),
        (
            "trace_cov_generic",
            "length(data)",
            "(length(data) - 1)",
            "tests/problems/test_outer_products.py::test_dense_layers_are_found_and_agree_with_the_generic_path[loss-leaves0]",
        ),
        (
            "_trace_cov_dense",
            "squares / n - squared_norm([total / n for total in sums])",
            "squares / n",
            "tests/problems/test_outer_products.py::test_two_layers_in_numpy",
        ),
        (
            "mean_grad_wide",
            "g / length(data)",
            "g / chunk",
            "tests/sde/test_sde.py::test_chunks_of_samples_change_nothing[3]",
        ),
    ),
    *of(
        "problems.finite_sum",
        "tests/problems/test_problems.py",
        (
            "FiniteSum.curvature",
            "0.0",
            "-1e9",
            "tests/ensemble/test_scale.py::test_unstable_steps_are_warned_of",
        ),
        (
            "_curvature",
            "20",
            "1",
            "tests/ensemble/test_scale.py::test_unstable_steps_are_warned_of",
        ),
        (
            "FiniteSum._check_period",
            "np.isclose(moved, start, rtol=1e-3, atol=1e-4)",
            "np.isclose(moved, start, rtol=1e-1, atol=1e-4)",
            "test_more_bad_problems",
        ),
        (
            "FiniteSum.fingerprint",
            "(self.data, self.x0)",
            "(self.data,)",
            "test_a_fingerprint_is_of_data_and_start",
        ),
    ),
    *of(
        "autodiff.interpreter",
        "tests/autodiff/test_interpreter.py",
        (
            "Interpreter.run",
            "any(map(self.follows, values))",
            "True",
            "sdesam/autodiff/interpreter.py::sdesam.autodiff.interpreter.Interpreter",
        ),
        (
            "equations",
            "bodies(eqn.params)",
            "()",
            "test_equations_of_bodies_are_seen[branches-names0]",
        ),
    ),
    *of(
        "autodiff.outer_products",
        "tests/problems/test_outer_products.py",
        (
            "deviations",
            "2 * (u @ a0) * jnp.sum(delta * v, axis=1)",
            "(u @ a0) * jnp.sum(delta * v, axis=1)",
            "test_two_layers_in_numpy",
        ),
        (
            "deviations",
            "jnp.outer(a0, jnp.sum(v, axis=0))",
            "0",
            "test_dense_layers_are_found_and_agree_with_the_generic_path[loss-leaves0]",
        ),
        ("squared_norm_of_mean", "m**2", "m", "test_the_loss_along_the_gradient_of_a_group[loss]"),
        (
            "squared_norm_of_mean.of_layer",
            "jnp.sum(a**2) * jnp.sum(delta**2)",
            "jnp.sum(a**2) + jnp.sum(delta**2)",
            "tests/optim/test_chain.py::test_step_of_a_network[m-sam-1]",
        ),
        (
            "loss_along.dense",
            "(inputs[weight.leaf] @ a) / m",
            "inputs[weight.leaf] @ a",
            "test_the_loss_along_the_gradient_of_a_group[loss]",
        ),
        (
            "loss_along",
            "jnp.mean(next(rest), axis=0)",
            "jnp.sum(next(rest), axis=0)",
            "test_the_loss_along_the_gradient_of_a_group[loss]",
        ),
        (
            "dense_layers",
            "uses[leaf] == 1",
            "uses[leaf] >= 1",
            "test_dense_layers_are_found_and_agree_with_the_generic_path[recurrent-leaves1]",
        ),
    ),
    *of(
        "problems.synthetic",
        "tests/problems/test_problems.py",
        (
            "_quadratic_loss",
            "0.5 * away @ sample['hessian'] @ away",
            "away @ sample['hessian'] @ away",
            "tests/exact/test_exact.py::test_moments_on_a_quadratic[sgd-2-None-True]",
        ),
        ("quadratic", "0.5 * np.eye(d)", "np.eye(d)", "test_data_of_quadratics_and_tori"),
        ("quadratic", "np.sqrt(d)", "d", "test_data_of_quadratics_and_tori"),
        (
            "_squared_error",
            "0.5 * (sample['input'] @ x - sample['target']) ** 2",
            "(sample['input'] @ x - sample['target']) ** 2",
            "test_functions_of_a_finite_sum",
        ),
        (
            "linear_regression",
            "check_nonnegative('noise', noise)",
            "check_nonnegative('noise', noise) ** 2",
            "test_linear_regression_has_the_noise_that_was_asked_for",
        ),
        ("torus", "len(grid) // 2 + 1", "len(grid) // 2", "test_data_of_quadratics_and_tori"),
        (
            "torus",
            "1 / (1 + np.sum(frequencies**2, axis=1))",
            "1 / np.sum(frequencies**2, axis=1)",
            "test_data_of_quadratics_and_tori",
        ),
    ),
    *of(
        "problems.digits",
        "tests/problems/test_problems.py",
        (
            "digits",
            "rng.normal(size=(64, hidden)) / 8",
            "rng.normal(size=(64, hidden)) / 10",
            "test_the_start_of_digits_has_its_law",
        ),
        ("digits", "np.sqrt(hidden)", "hidden", "test_the_start_of_digits_has_its_law"),
        (
            "_split",
            "source.data / 16 - 0.3",
            "source.data / 16 - 0.5",
            "test_digits_are_the_real_ones",
        ),
        (
            "_split",
            "rng.integers(1, 10, size=len(wrong))",
            "rng.integers(0, 10, size=len(wrong))",
            "test_digits_with_wrong_labels",
        ),
        ("_split", "values[train:]", "values", "test_digits_are_the_real_ones"),
        (
            "_squared",
            (
                "0.5 * jnp.sum((_network(params, sample['image']) - jax.nn.one_hot(sample['label'],"
                " 10)) ** 2)"
            ),
            (
                "jnp.sum((_network(params, sample['image']) - jax.nn.one_hot(sample['label'], 10))"
                " ** 2)"
            ),
            "test_digits_with_the_squared_loss_and_another_start",
        ),
    ),
    *of(
        "autodiff.smoothness",
        "tests/problems/test_problems.py",
        (
            "_absolute",
            "arguments[0].positive",
            "True",
            "test_kinks_are_found[abs]",
        ),
        (
            "_selected",
            "not arguments[0].moves",
            "True",
            "test_kinks_have_their_names_in_jax",
        ),
    ),
    *of(
        "problems.cifar10",
        "tests/problems/test_cifar10.py",
        (
            "_read_batches",
            "pixels.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)",
            "pixels.reshape(-1, _SIDE, _SIDE, 3)",
            "test_every_form",
        ),
    ),
    *of(
        "verify.curvature",
        "tests/test_curvature.py",
        (
            "hessian_trace",
            "values.std(ddof=1)",
            "values.std()",
            "test_the_error_of_a_trace_is_that_of_few_probes",
        ),
        (
            "hessian_trace",
            "sqrt(count)",
            "count",
            "test_the_error_of_a_trace_is_that_of_few_probes",
        ),
        (
            "_probe.one",
            "jax.random.rademacher(key, flat.shape, flat.dtype)",
            "jax.random.normal(key, flat.shape, flat.dtype)",
            "test_the_error_of_a_trace_is_that_of_few_probes",
        ),
        ("largest_eigenvalue", "values[-1]", "values[0]", "test_the_residual_of_few_iterations[2]"),
        (
            "largest_eigenvalue",
            "b[count - 1] * abs(vectors[-1, -1])",
            "b[count - 1] * abs(vectors[0, -1])",
            "test_the_residual_of_few_iterations[2]",
        ),
    ),
)

ENSEMBLE = (
    *of(
        "ensemble.work",
        "tests/ensemble/test_driver.py",
        (
            "Work._through",
            "bad.reshape(-1, 2).any(axis=1)",
            "bad.reshape(-1, 2).all(axis=1)",
            "test_a_pair_of_which_one_half_diverged_is_in_no_mean[1]",
        ),
        (
            "Work.place",
            "self.placement.first + state.start + np.arange(self.placement.size)",
            "self.placement.first + np.arange(self.placement.size)",
            "test_layout_changes_nothing[1-3-sde]",
        ),
        (
            "Work.result",
            "placement.grid * plan.step_time",
            "placement.grid + plan.step_time",
            "test_observation_times_change_nothing",
        ),
        (
            "Work.result",
            "first[first >= 0] * plan.step_time",
            "(first[first >= 0] - 1) * plan.step_time",
            "tests/ensemble/test_scale.py::test_the_time_of_divergence_is_exact",
        ),
    ),
    *of(
        "ensemble.moments",
        "tests/ensemble/test_driver.py",
        (
            "Moments.add",
            "other.count / divisor",
            "0.5",
            "test_merged_moments_equal_those_of_the_whole",
        ),
        ("Moments.add", "gap**2", "abs(gap)", "test_merged_moments_equal_those_of_the_whole"),
        (
            "Moments.stderr",
            "np.sqrt(self.squares / (count - 1) / count)",
            "np.sqrt(self.squares / count / count)",
            "test_statistics_are_those_of_the_paths",
        ),
        (
            "Moments.stderr",
            "self.count > 1",
            "self.count > 0",
            "test_statistics_are_those_of_the_paths",
        ),
    ),
    *of(
        "ensemble.draws",
        "tests/ensemble/test_driver.py",
        (
            "Draw.drawn",
            "ids // 2",
            "ids",
            "tests/ensemble/test_scale.py::test_jax_normals_are_jax_normals",
        ),
        (
            "Draw._mirrored",
            "1 - 2 * (ids % 2).astype(jnp.int32)",
            "1 - (ids % 2).astype(jnp.int32)",
            "test_antithetic_pairs",
        ),
        (
            "path_key",
            "jax.random.fold_in(key, path)",
            "key",
            "tests/optim/test_chain.py::test_train_follows_the_chain",
        ),
    ),
    *of(
        "ensemble.compiled",
        "tests/ensemble/test_driver.py",
        (
            "Look.__call__",
            "good & jnp.isfinite(table)",
            "jnp.isfinite(table)",
            "test_paths_that_diverge_are_not_counted_as_values_that_are_not_finite",
        ),
        (
            "Look.__call__",
            "table.reshape(len(table), len(units), 2).mean(axis=2)",
            "table.reshape(len(table), len(units), 2)[:, :, 0]",
            "test_antithetic_pairs",
        ),
        (
            "Look.__call__",
            "_sum(jnp.where(used, table, 0)) / count",
            "_sum(jnp.where(used, table, 0)) / len(units)",
            "test_divergence_is_counted_reported_and_left_out",
        ),
        (
            "Look.__call__",
            "units & jnp.isfinite(table)",
            "jnp.isfinite(table)",
            "test_divergence_is_counted_reported_and_left_out",
        ),
        (
            "_mark",
            "(first < 0) & ~jnp.stack(finite).all(axis=0)",
            "~jnp.stack(finite).all(axis=0)",
            "tests/ensemble/test_scale.py::test_the_time_of_divergence_is_exact",
        ),
    ),
    *of(
        "ensemble.normals",
        "tests/ensemble/test_normals.py",
        ("block", "np.uint32(k + 1)", "np.uint32(k)", "test_blocks_are_those_of_jax"),
        (
            "step_keys",
            "jnp.asarray(steps).astype(jnp.uint32)",
            "jnp.uint32(0)",
            "test_the_draw_depends_on_its_counter_alone",
        ),
        (
            "normal_pair",
            "np.float32(2.0**-33)",
            "np.float32(2.0**-30)",
            "test_the_farthest_normal",
        ),
        (
            "_box_muller",
            "turn * (math.pi / 2)",
            "turn * (math.pi / 2.01)",
            "test_transform_at_its_ends[float32]",
        ),
        (
            "_box_muller",
            "1 - 2 * sine * sine",
            "1 - 1.99 * sine * sine",
            "test_transform_at_its_ends[float32]",
        ),
    ),
    *of(
        "ensemble.result",
        "tests/ensemble/test_driver.py",
        (
            "Result._warning",
            "self.diverged.total - self.diverged.count",
            "self.diverged.total",
            "test_paths_that_diverge_are_not_counted_as_values_that_are_not_finite",
        ),
    ),
    *of(
        "ensemble.snapshot",
        "tests/ensemble/test_scale.py",
        (
            "_differing",
            "known.get(name) != theirs.get(name)",
            "False",
            "test_other_snapshots_are_refused",
        ),
    ),
)

SWEEPS = (
    *of(
        "lab.runs",
        "tests/test_runs.py",
        (
            "_canonical",
            (
                "json.dumps(store.plain(config), sort_keys=True, separators=(',', ':'),"
                " allow_nan=False)"
            ),
            "json.dumps(store.plain(config), separators=(',', ':'), allow_nan=False)",
            "test_a_run_comes_back",
        ),
        ("", "64 * 10**6", "64", "test_no_room_is_seen_before_any_work"),
        (
            "RunStore.check",
            "_canonical(meta['config']) != _canonical(config)",
            "False",
            "test_damaged_runs_are_refused",
        ),
    ),
    *of(
        "lab._sweep",
        "tests/test_reproduce.py",
        (
            "sweep",
            "time.monotonic() - begun + longest > 60 * minutes",
            "time.monotonic() - begun + longest > 3600 * minutes",
            "test_a_budget",
        ),
        ("_check_budget", "epoch > 60 * minutes", "epoch > 3600 * minutes", "test_a_budget"),
        (
            "fit",
            "sum(runs.load(config).seconds for config in (measured, *what.needs(measured)))",
            "runs.load(measured).seconds",
            "test_a_plan_counts_what_was_spent_on_measuring",
        ),
    ),
    *of(
        "lab._data",
        "tests/test_reproduce.py",
        ("collect", "len(configs) - len(present)", "0", "test_a_budget"),
    ),
)

SUMMARIES = (
    *of(
        "experiments._digits",
        "tests/test_summaries.py",
        (
            "Table.__init__",
            "set.intersection(*(set(found) for found in self.by_condition.values()))",
            "set.union(*(set(found) for found in self.by_condition.values()))",
            "tests/test_experiments.py::test_seeds_that_are_not_whole_are_left_out_of_all_conditions",
        ),
        (
            "Table.last",
            "self.by_condition[name][seed].numbers.arrays[observable][-1]",
            "self.by_condition[name][seed].numbers.arrays[observable][0]",
            "tests/test_experiments.py::test_a_verdict_and_its_controls",
        ),
        (
            "adjusted",
            "statistics.holm([test.p for test in tests.values()])",
            "[test.p for test in tests.values()]",
            "test_costs_are_ratios_to_sgd_and_accuracy_decides",
        ),
        (
            "against",
            "statistics.paired(table.last(a, 'test_accuracy'), table.last(b, 'test_accuracy'))",
            "statistics.paired(table.last(b, 'test_accuracy'), table.last(a, 'test_accuracy'))",
            "test_costs_are_ratios_to_sgd_and_accuracy_decides",
        ),
    ),
    *of(
        "experiments.m_sharpness",
        "tests/test_summaries.py",
        (
            "summarise",
            "np.array(times) / np.array(milliseconds['SGD'])",
            "np.array(times)",
            "test_costs_are_ratios_to_sgd_and_accuracy_decides",
        ),
    ),
    *of(
        "experiments.covariance_trace",
        "tests/test_summaries.py",
        (
            "summarise",
            "statistics.paired(np.log(table.last(first, name)), np.log(table.last(second, name)))",
            "statistics.paired(table.last(first, name), table.last(second, name))",
            "test_the_trace_of_the_covariance_decides",
        ),
        (
            "summarise",
            "tests['trend of trace_cov']",
            "tests['trend of hessian_trace']",
            "test_the_trace_of_the_covariance_decides",
        ),
    ),
    *of(
        "experiments.fisher_hessian",
        "tests/test_summaries.py",
        (
            "summarise",
            "found.upper < NEAR",
            "found.mean < NEAR",
            "test_where_covariance_fisher_and_hessian_are_near",
        ),
        (
            "summarise",
            "found.lower > NEAR",
            "found.mean > NEAR",
            "test_where_covariance_fisher_and_hessian_are_near",
        ),
        (
            "summarise",
            'left["hessian_trace"].lower > 0.2',
            "True",
            "test_where_covariance_fisher_and_hessian_are_near",
        ),
        (
            "summarise",
            'left["trace_cov"].upper < 0.01',
            "True",
            "test_where_covariance_fisher_and_hessian_are_near",
        ),
        (
            "summarise",
            "near == claimed and far == set(LINES) - claimed and vanishes",
            "near == claimed and vanishes",
            "test_where_covariance_fisher_and_hessian_are_near",
        ),
        (
            "summarise",
            "far & claimed",
            "far == claimed",
            "test_where_covariance_fisher_and_hessian_are_near",
        ),
        (
            "summarise",
            "near == set(LINES)",
            "True",
            "test_where_covariance_fisher_and_hessian_are_near",
        ),
        (
            "least_squares",
            "SIGMA**2 * H",
            "SIGMA * H",
            "tests/test_experiments.py::test_noise_of_least_squares_is_sigma_squared_times_the_hessian",
        ),
    ),
    *of(
        "experiments.variance_regularizer",
        "tests/test_summaries.py",
        (
            "factor",
            "(n - m) / (m * (n - 1))",
            "(n - m) / (m * n)",
            "tests/test_experiments.py::test_finite_population_factor",
        ),
        (
            "summarise",
            "found.lower >= 1 - WITHIN and found.upper <= 1 + WITHIN",
            "found.upper <= 1 + WITHIN",
            "test_slopes_of_the_variance_regulariser",
        ),
        (
            "summarise",
            "found.lower > 1 + WITHIN or found.upper < 1 - WITHIN",
            "found.lower > 1 + WITHIN",
            "test_slopes_of_the_variance_regulariser",
        ),
        (
            "summarise",
            "slopes.std(ddof=1)",
            "slopes.std()",
            "test_slopes_of_the_variance_regulariser",
        ),
        (
            "summarise",
            "table @ c / (c @ c) / (rho / 2)",
            "table @ c / (c @ c) / rho",
            "test_slopes_of_the_variance_regulariser",
        ),
    ),
    *of(
        "experiments.weak_order",
        "tests/test_summaries.py",
        (
            "summarise",
            "set(states) == {'confirmed'}",
            "'confirmed' in states",
            "test_several_verdicts_become_one",
        ),
    ),
    *of(
        "experiments.sde_vs_discrete",
        "tests/test_summaries.py",
        (
            "summarise",
            "set(states) == {'confirmed'}",
            "'confirmed' in states",
            "test_several_verdicts_become_one",
        ),
        (
            "summarise",
            "state in states",
            "set(states) == {state}",
            "test_several_verdicts_become_one",
        ),
    ),
    *of(
        "experiments.rw_sam",
        "tests/test_summaries.py",
        (
            "summarise",
            "(sgd - own) / (sgd - sam)",
            "(sgd - own) / sgd",
            "test_what_rw_sam_acts_like",
        ),
        (
            "effective_micro",
            "np.log(value)",
            "value",
            "tests/test_experiments.py::test_effective_micro_batch",
        ),
    ),
    *of(
        "experiments._cifar10",
        "tests/test_full_presets.py",
        ("fit", "SHARE * 60 * minutes - cost.seconds", "SHARE * 60 * minutes", "test_the_plan"),
        ("fit", "most // seeds", "most", "test_the_plan"),
        (
            "relabelled",
            "rng.integers(1, 10, len(wrong))",
            "rng.integers(0, 10, len(wrong))",
            "test_wrong_labels",
        ),
    ),
    *of(
        "experiments.fresh_micro_batches",
        "tests/test_experiments.py",
        (
            "excess",
            "(1, sde.config['lr'])",
            "(2, sde.config['lr'])",
            "test_what_fresh_micro_batches_add",
        ),
    ),
)

STATISTICS = (
    *of(
        "verify.statistics",
        "tests/test_statistics.py",
        ("", "0.95", "0.5", "test_interval_by_hand"),
        ("interval", "0.5 + LEVEL / 2", "LEVEL", "test_interval_by_hand"),
        ("interval", "count - 1", "count", "test_interval_by_hand"),
        ("interval", "np.std(values, ddof=1)", "np.std(values)", "test_interval_by_hand"),
        ("Trend.p_order", "self.least >= 1", "self.least >= 0", "test_verdict_of_a_trend"),
        ("Trend.verdict", "self.p_order <= alpha", "self.p <= alpha", "test_verdict_of_a_trend"),
        (
            "Trend.verdict",
            "self.p_reversed <= alpha",
            "self.p_reversed < 2 * alpha",
            "test_verdict_of_a_trend",
        ),
        (
            "Paired.verdict",
            "self.difference.mean > 0",
            "self.difference.mean < 0",
            "test_verdicts_and_their_controls",
        ),
        ("trend", "chance[found:]", "chance[found + 1 :]", "test_page_against_all_permutations"),
        ("trend", "chance[: found + 1]", "chance[:found]", "test_page_against_all_permutations"),
        (
            "_in_errors",
            "np.std(differences, ddof=1)",
            "np.std(differences)",
            "test_least_step_by_hand",
        ),
        ("_in_errors", "sqrt(len(differences))", "len(differences)", "test_least_step_by_hand"),
        (
            "paired",
            "abs(away.sum()) - 1e-12 * abs(away).sum()",
            "abs(away.sum()) + 1e-12 * abs(away).sum()",
            "test_paired_by_hand",
        ),
        ("holm", "len(p_values) - rank", "len(p_values)", "test_holm_by_hand"),
        (
            "holm",
            "max(largest, (len(p_values) - rank) * p_values[k])",
            "(len(p_values) - rank) * p_values[k]",
            "test_holm_by_hand",
        ),
    ),
    *of(
        "verify.effective",
        "tests/test_effective.py",
        (
            "_summary.size",
            "layout.n / (1 + c * (layout.n - 1))",
            "1 / c",
            "test_the_size_is_read_off_the_family[False]",
        ),
        (
            "_summary",
            "(layout.n - sizes) / (sizes * (layout.n - 1))",
            "1 / sizes",
            "test_the_size_is_read_off_the_family[False]",
        ),
        ("_summary", "np.sqrt(c)", "c", "test_the_size_is_read_off_the_family[True]"),
        (
            "_summary.size",
            "monotone and clear",
            "clear",
            "test_no_size_where_the_family_does_not_fall_or_is_not_told_apart",
        ),
        (
            "_summary.size",
            "monotone and clear",
            "monotone",
            "test_no_size_where_the_family_does_not_fall_or_is_not_told_apart",
        ),
        (
            "_summary.equivalent",
            "[0.025, 0.975]",
            "[0.25, 0.75]",
            "test_the_interval_of_the_size_is_one_of_95_per_cent",
        ),
        (
            "_summary.equivalent",
            "shares.std()",
            "shares.var()",
            "test_the_interval_of_the_size_is_one_of_95_per_cent",
        ),
        ("_measure.block", "eps**2", "eps", "test_against_all_batches_listed"),
    ),
    *of(
        "verify.coupling",
        "tests/test_coupling.py",
        (
            "_PairStep.draw",
            "-sqrt(n / batch) * weights[0]",
            "sqrt(n / batch) * weights[0]",
            "test_variance_is_reduced[sgd]",
        ),
        (
            "_PairStep.draw",
            "sqrt(n / batch)",
            "sqrt(n) / batch",
            "test_xi_has_the_centred_covariance",
        ),
        (
            "_PairStep.__call__",
            "x + self.lr * b + s",
            "x + self.lr * b",
            "test_the_sde_of_a_pair_makes_a_step_of_heun",
        ),
        (
            "_PairStep.__call__",
            "0.5 * self.lr * (b + c)",
            "self.lr * b",
            "test_the_sde_of_a_pair_makes_a_step_of_heun",
        ),
        (
            "_PairStep.__call__",
            "jnp.sqrt(self.lr)",
            "self.lr",
            "test_the_sde_of_a_pair_makes_a_step_of_heun",
        ),
        (
            "_PairStep.__call__",
            "self.sde.step_drift(ahead, key_ahead)",
            "self.sde.step_drift(ahead, key_drift)",
            "test_the_sde_of_a_pair_makes_a_step_of_heun",
        ),
        (
            "counts_and_weights.sample",
            "-total / open_cells.astype(dtype)",
            "total / open_cells.astype(dtype)",
            "test_counts_and_weights_go_together",
        ),
        (
            "_statistics",
            "(difference - difference.min(axis=0)).var(axis=0, ddof=1)",
            "(difference - difference.min(axis=0)).var(axis=0)",
            "test_statistics_of_pairs_by_hand",
        ),
        (
            "_statistics",
            "joint / difference.count(axis=0)",
            "joint / len(values)",
            "test_statistics_of_pairs_by_hand",
        ),
        (
            "_statistics",
            "np.ma.divide(own, joint)",
            "np.ma.divide(joint, own)",
            "test_statistics_of_pairs_by_hand",
        ),
    ),
)

EXACT = (
    *of(
        "verify.exact.enumerate",
        "tests/exact/test_exact.py",
        (
            "list_batches",
            "counts.get(key, 0) + 1",
            "1",
            "test_batches_are_listed_once_with_their_chance",
        ),
        ("one_step", "G - mean", "G", "test_one_step"),
    ),
    *of(
        "verify.exact.quadratic",
        "tests/exact/test_exact.py",
        ("Quadratic.chain_path", "chain.lr**2", "chain.lr", "test_moments_on_a_quadratic"),
        (
            "Quadratic._step_moments",
            "(1 - 1 / groups) * other",
            "other",
            "test_moments_on_a_quadratic",
        ),
        ("_expected", "factorial(len(part) - 1)", "1", "test_moments_on_a_quadratic"),
    ),
    *of(
        "verify.exact.torus",
        "tests/exact/test_exact.py",
        (
            "Torus.flow",
            "0.5 * C[:, j, j, None] * _kron(along)",
            "C[:, j, j, None] * _kron(along)",
            "test_flow_with_constant_coefficients",
        ),
        (
            "Torus.flow",
            "C[:, 0, 1, None] * _kron([first, first])",
            "0.5 * C[:, 0, 1, None] * _kron([first, first])",
            "test_flow_with_constant_coefficients",
        ),
    ),
    *of(
        "verify.exact.slopes",
        "tests/test_verdicts.py",
        (
            "Curve.vanishes",
            "np.all(self.values < np.maximum(ROUNDING, self.uncertainty))",
            "np.any(self.values < np.maximum(ROUNDING, self.uncertainty))",
            "test_when_a_curve_vanishes_and_when_it_is_settled",
        ),
        (
            "Curve.settled",
            "self.spread <= TOLERANCE",
            "self.spread <= 2 * TOLERANCE",
            "test_when_a_curve_vanishes_and_when_it_is_settled",
        ),
        (
            "Curve.as_predicted",
            "abs(self.slope - self.predicted) <= TOLERANCE",
            "True",
            "test_what_makes_a_signature",
        ),
        (
            "Curve.as_predicted",
            (
                "self.settled and self.predicted is not None and abs(self.slope - self.predicted)"
                " <= TOLERANCE"
            ),
            "self.predicted is not None and abs(self.slope - self.predicted) <= TOLERANCE",
            "test_what_makes_a_signature",
        ),
        (
            "fit_slope",
            "np.ptp(local) / 2",
            "np.ptp(local)",
            "tests/exact/test_weak.py::test_fit_slope",
        ),
        (
            "_resolved_points",
            "10 * uncertainty",
            "5 * uncertainty",
            "tests/exact/test_weak.py::test_fit_slope",
        ),
        (
            "extrapolated",
            "2 * abs(best - one_less)",
            "0.1 * abs(best - one_less)",
            "tests/exact/test_weak.py::test_the_limit_of_a_slope_and_its_error",
        ),
    ),
    *of(
        "verify.exact.weak",
        "tests/test_verdicts.py",
        ("Ablation.breaks", "2 * TOLERANCE", "3 * TOLERANCE", "test_what_is_said_of_a_term"),
        (
            "Ablation.passed",
            "self.change.vanishes or self.change.as_predicted",
            "True",
            "test_what_makes_a_signature",
        ),
        ("Signature.status", "not self.full.settled", "False", "test_what_makes_a_signature"),
        (
            "Signature.status",
            "self.full.slope < self.full.predicted - TOLERANCE",
            "False",
            "test_what_makes_a_signature",
        ),
        (
            "Signature.status",
            "term.visible and not term.change.vanishes",
            "term.visible",
            "test_what_makes_a_signature",
        ),
        (
            "Signature.status",
            "visible and all(term.passed for term in self.terms)",
            "visible",
            "test_what_makes_a_signature",
        ),
    ),
)

VERDICTS = (
    *of(
        "verify.coefficients._compared",
        "tests/test_coefficients.py",
        (
            "Finding.status",
            "self.deviation - self.error <= OTHER",
            "self.deviation <= OTHER",
            "test_status_of_a_finding",
        ),
        (
            "Finding.status",
            "self.deviation + self.error <= SAME",
            "self.deviation <= SAME",
            "test_status_of_a_finding",
        ),
        (
            "summarised",
            "refuted or ([] if still_open else findings)",
            "[] if still_open else findings",
            "test_more_evidence_takes_nothing_away",
        ),
        (
            "summarised",
            "kept += still_open",
            "kept += still_open[:0]",
            "test_more_evidence_takes_nothing_away",
        ),
        (
            "expand",
            "-step.correction[j] / 2",
            "-step.correction[j]",
            "test_right_theories_whose_coefficients_vanish_are_right",
        ),
        (
            "_expansion",
            "stated[i + shift, j]",
            "stated[max(i + shift, 1), j]",
            "test_a_covariance_must_vanish_with_eta",
        ),
    ),
    *of(
        "verify.coefficients._reading",
        "tests/test_coefficients.py",
        (
            "_to_come",
            "moved * max(1.0, ratio / (1 - ratio))",
            "moved",
            "test_what_is_not_analytic_is_not_read",
        ),
        ("differentiated.read", "min(scale, 1.0)", "scale", "test_a_tail_on_a_scale_of_its_own"),
        (
            "differentiated.read.local",
            "factorial(i) * factorial(j)",
            "factorial(j)",
            "test_what_is_read_of_a_second_power",
        ),
        (
            "differentiated.read.local",
            "factorial(i) * factorial(j)",
            "factorial(i)",
            "test_what_is_read_of_an_analytic_field",
        ),
        (
            "_limit",
            "(rate * value - last) / (rate - 1)",
            "(rate * value - last) / rate",
            "test_what_is_read_of_an_analytic_field",
        ),
        (
            "interpolated.read",
            "np.arange(degree + 1)",
            "np.arange(degree)",
            "test_a_polynomial_of_the_stated_degree_is_read_right",
        ),
        (
            "_limit",
            "before / _SHRINK ** (step + 1)",
            "0.0",
            "test_a_move_that_is_small_by_chance_is_no_rest",
        ),
        (
            "_limit",
            "error < best.error",
            "error > best.error",
            "test_what_is_read_of_an_analytic_field",
        ),
    ),
    *of(
        "verify.hypothesis._verdict",
        "tests/test_coefficients.py",
        (
            "Part.status",
            '"inconclusive" if self.contradiction else "refuted"',
            '"refuted"',
            "test_status_of_a_part",
        ),
        (
            "Part.status",
            'found == {"confirmed"} and not self.note',
            'found == {"confirmed"}',
            "test_status_of_a_part",
        ),
        ("Part.too_slow", "self.needed - TOLERANCE", "self.needed", "test_status_of_a_part"),
        (
            "Part.too_slow",
            "not self.slope >= self.needed - TOLERANCE",
            "False",
            "test_status_of_a_part",
        ),
        (
            "Verdict.status",
            'found == {"confirmed"}',
            '"confirmed" in found',
            "tests/test_verdicts.py::test_a_theorem_is_as_good_as_its_parts",
        ),
        (
            "Verdict.status",
            '"refuted" in found',
            'found == {"refuted"}',
            "tests/test_verdicts.py::test_a_theorem_is_as_good_as_its_parts",
        ),
    ),
    *of(
        "claims._base",
        "tests/test_verdicts.py",
        (
            "Measurement.agrees",
            "abs(self.measured - self.predicted) <= self.tolerance",
            "self.measured - self.predicted <= self.tolerance",
            "test_an_outcome_needs_measurements_and_what_is_unclear_hides_nothing",
        ),
        (
            "Outcome.status",
            (
                "not self.measurements or not self.controls or not all(control.caught for control"
                " in self.controls)"
            ),
            "not self.controls or not all(control.caught for control in self.controls)",
            "test_an_outcome_needs_measurements_and_what_is_unclear_hides_nothing",
        ),
        (
            "Outcome.status",
            "all(control.caught for control in self.controls)",
            "any(control.caught for control in self.controls)",
            "test_an_outcome_needs_measurements_and_what_is_unclear_hides_nothing",
        ),
        (
            "Outcome.status",
            "any(m.unclear for m in self.measurements)",
            "False",
            "test_an_outcome_needs_measurements_and_what_is_unclear_hides_nothing",
        ),
    ),
    *of(
        "mutants._fate",
        "tests/test_verdicts.py",
        (
            "Fate.killed",
            "any(finding.status == 'refuted' for finding in self.killed_by)",
            "bool(self.killed_by)",
            "test_a_mutant_must_be_refuted_and_a_right_theory_left_alone",
        ),
        (
            "Fate.as_wanted",
            "not self.killed_by if self.mutant.right else self.killed",
            "self.mutant.right or self.killed",
            "test_a_mutant_must_be_refuted_and_a_right_theory_left_alone",
        ),
        (
            "Fate.as_wanted",
            "not self.killed_by",
            "not self.killed",
            "test_a_mutant_must_be_refuted_and_a_right_theory_left_alone",
        ),
    ),
    *of(
        "report",
        "tests/test_verdicts.py",
        (
            "Report.as_recorded",
            "all(entry.as_recorded for entry in self.entries)",
            "True",
            "test_a_report_is_as_recorded_if_claims_signatures_and_mutants_are",
        ),
        (
            "Report.as_recorded",
            "s.status == 'confirmed'",
            "s.status != 'refuted'",
            "test_a_report_is_as_recorded_if_claims_signatures_and_mutants_are",
        ),
        (
            "Report.as_recorded",
            "all(f.as_wanted for f in self.fates)",
            "True",
            "test_a_report_is_as_recorded_if_claims_signatures_and_mutants_are",
        ),
    ),
)

BY_NUMBERS = of(
    "sde.by_numbers",
    "tests/sde/test_by_numbers.py",
    ("taylor", "factorial(j)", "max(j, 1) ** 2", "test_beside_the_trees[usam-1-order3-False]"),
    (
        "DirectionKernel._drift",
        "self.lr / 2 * self.rho**k * b",
        "self.lr * self.rho**k * b",
        "test_beside_the_trees[usam-1-order3-False]",
    ),
    (
        "DirectionKernel._drift",
        "self.rho**k",
        "self.rho ** (2 * k)",
        "test_beside_the_trees[usam-1-order3-False]",
    ),
    (
        "DirectionKernel._drift",
        "vectors[: self.powers.correction + 1 - k]",
        "vectors[: self.powers.correction + 1]",
        "test_beside_the_trees[usam-1-order3-False]",
    ),
    (
        "DirectionKernel.step_drift",
        "self.draw.for_drift(second)",
        "fresh",
        "test_draws_of_a_rule_that_is_no_mean",
    ),
    ("DirectionKernel._mean", "1 / n", "1 / (n - 1)", "test_draws_are_unbiased[False]"),
    (
        "DirectionKernel._noise",
        "xi - jnp.mean(xi)",
        "xi",
        "test_a_drawn_noise_is_a_sample_covariance",
    ),
    (
        "DirectionKernel._noise",
        "W - jnp.mean(W)",
        "W",
        "test_a_drawn_noise_is_a_sample_covariance",
    ),
    (
        "DirectionKernel._noise",
        "(W - jnp.mean(W)) * (q / (q - 1))",
        "W - jnp.mean(W)",
        "test_a_drawn_noise_is_a_sample_covariance",
    ),
    (
        "DirectionKernel._noise",
        "each * sqrt(q / (q - 1))",
        "each",
        "test_draws_of_a_rule_that_is_no_mean",
    ),
    (
        "DirectionKernel._noise",
        "each - p * jnp.sum(each)",
        "each",
        "test_rules_without_trees[normalised descent-2-2-False]",
    ),
    (
        "DirectionKernel._over_samples",
        "self.value(x, _alone(one), 0.0)",
        "self.value(x, _alone(one), self.rho)",
        "test_a_drawn_noise_is_a_sample_covariance",
    ),
    (
        "_influence",
        "m * (n - 1) / (n - m)",
        "m * n / (n - m)",
        "test_a_drawn_noise_is_a_sample_covariance",
    ),
    (
        "from_direction",
        "sqrt(lr * float(sampling.covariance_factor(n)) / n)",
        "sqrt(lr / m / n)",
        "test_a_drawn_noise_is_a_sample_covariance",
    ),
    (
        "from_direction",
        "sqrt(lr * m / b)",
        "sqrt(lr / b)",
        "test_rules_without_trees[normalised descent-2-2-False]",
    ),
    (
        "_largest",
        "bisect_left(range(n), True, key=lambda n: not few(m, n)) - 1",
        "bisect_left(range(n), True, key=lambda n: not few(m, n))",
        "test_too_many_micro_batches",
    ),
)

IDENTIFICATION = (
    *of(
        "verify.identification._moments",
        "tests/test_identify.py",
        ("moments", "(n - 1) / (n - b)", "n / (n - b)", "test_moments_of_three_numbers"),
        ("moments", "1 / (b * scale * n)", "1 / (b * n)", "test_moments_of_three_numbers"),
        ("_covariance", "range(power + 1)", "range(power)", "test_moments_of_three_numbers"),
        (
            "_tree_values_fn",
            "jnp.eye(n) - 1 / n",
            "jnp.eye(n)",
            "test_rules_are_recovered[usam-{}]",
        ),
    ),
    *of(
        "verify.identification._span",
        "tests/test_identify.py",
        (
            "combination",
            "SMALL * longest",
            "0 * longest",
            "test_combinations",
        ),
        ("combination", "_DIFFERENCE * before", "0 * before", "test_combinations"),
        ("combination", "abs(projection) > 1e-6", "abs(projection) > 0.9", "test_combinations"),
        ("rational", "_RATIONAL * max(1, abs(number))", "1e-6", "test_rational_numbers"),
    ),
    *of(
        "verify.identification._formulas",
        "tests/test_identify.py",
        (
            "population",
            "size * (samples - 1)",
            "size * samples",
            "tests/test_hypothesis.py::test_wrong_terms_of_the_covariance_are_named",
        ),
        (
            "basis",
            "samples - 2",
            "samples - 1",
            "test_formulas_are_fitted_exactly_or_not_at_all",
        ),
        (
            "fitted",
            "min(len(sizes), _MOST_TERMS + 1)",
            "_MOST_TERMS + 1",
            "test_formulas_are_fitted_exactly_or_not_at_all",
        ),
        ("told", "_CLOSE * largest", "largest", "test_stated_formulas_are_recognised"),
    ),
    *of(
        "verify.identification._step",
        "tests/test_identify.py",
        (
            "RuleStep._with_fresh",
            "probability[places[:, 1:]]",
            "probability[places[:, :1]]",
            "test_rules_are_recovered[fresh-usam-{}]",
        ),
    ),
    *of(
        "verify.identification._candidates",
        "tests/test_identify.py",
        (
            "candidates",
            "MARK if k == here else k + 1",
            "k + 1",
            "test_candidates_are_all_trees",
        ),
    ),
    *of(
        "verify.identification._sizes",
        "tests/test_identify.py",
        (
            "chosen_sizes",
            "spare[_SPARE:]",
            "spare[:0]",
            "test_chosen_sizes_tell_all_functions_apart[fresh-usam-False]",
        ),
    ),
    *of(
        "verify.identification._result",
        "tests/test_identify.py",
        (
            "Identification.equation",
            "sp.Rational(-1, 2)",
            "sp.Rational(1, 2)",
            "test_rules_are_recovered[usam-{}]",
        ),
    ),
    *of(
        "verify.coefficients._naming",
        "tests/test_hypothesis.py",
        ("name_terms", "r + gap", "r - gap", "test_wrong_terms_are_named[double]"),
        ("_centred", "np.linalg.inv(change)", "change", "test_wrong_terms_are_named[mean]"),
        (
            "_of_covariance",
            "v + np.swapaxes(v, 1, 2)",
            "2 * v",
            "test_wrong_terms_of_order_2_are_named",
        ),
        (
            "_formulas",
            "1 / batch",
            "1 / micro",
            "test_wrong_terms_of_order_2_are_named",
        ),
    ),
)

KINDS = {
    "sampling": SAMPLING,
    "stepping": STEPPING,
    "noise and probes": NOISE,
    "directions by numbers": BY_NUMBERS,
    "algebra": ALGEBRA,
    "optimizers": OPTIMIZERS,
    "networks": NETWORKS,
    "problems and curvature": PROBLEMS,
    "ensemble": ENSEMBLE,
    "runs and sweeps": SWEEPS,
    "summaries": SUMMARIES,
    "statistics": STATISTICS,
    "exact expectations": EXACT,
    "verdicts": VERDICTS,
    "identification": IDENTIFICATION,
}

ARGUED = (
    Mutation(
        "sdesam.ensemble.compiled",
        "Look.__call__",
        "good.reshape(-1, 2).all(axis=1)",
        "good.reshape(-1, 2).any(axis=1)",
        argued=(
            "the driver has marked both halves of a pair before (`_Work._through`), so that all and"
            " any of them are the same"
        ),
    ),
    Mutation(
        "sdesam.verify.curvature",
        "_lanczos.body",
        "range(2)",
        "range(1)",
        argued=(
            "a second orthogonalisation removes rounding of the first: the largest Ritz value, all"
            " that is read off, is the same to 1e-6 without"
        ),
    ),
    Mutation(
        "sdesam.verify.curvature",
        "largest_eigenvalue",
        "int(small[0]) + 1 if len(small) else count",
        "count",
        argued="vectors after an invariant subspace are rounding, made orthogonal twice to all"
        " before them: they find other Ritz values; the largest, all that is read off, stays",
    ),
    Mutation(
        "sdesam.symbolic.roles",
        "probe",
        "PROBES - (10 * slot + size)",
        "PROBES - size",
        argued=(
            "no tree of an order that is available has two colours whose nodes are apart, so that"
            " no two slots share a size"
        ),
    ),
)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutations",
        description="plant faults, one at a time, and see that the fast tests notice",
    )
    parser.add_argument(
        "--only", metavar="WORD", default="", help="those whose place or expression contains this"
    )
    parser.add_argument(
        "--list", action="store_true", help="list them and say whether each fits the source"
    )
    parser.add_argument("--processes", type=int, default=2, help="tests at a time (2)")
    asked = parser.parse_args()
    kinds = {kind: tuple(m for m in many if asked.only in str(m)) for kind, many in KINDS.items()}
    kinds = {kind: many for kind, many in kinds.items() if many}
    if not asked.list:
        return run(kinds, ARGUED, asked.processes)
    for kind, many in kinds.items():
        print(
            f"{kind} ({len(many)})",
            *(f"  {m}\n      by {', '.join(m.caught_by)}" for m in many),
            sep="\n",
        )
    print(
        f"argued as harmless ({len(ARGUED)})",
        *(f"  {m}\n      {m.argued}" for m in ARGUED),
        sep="\n",
    )
    reasons = unfit([m for many in KINDS.values() for m in many] + list(ARGUED))
    print(f"{sum(map(len, kinds.values()))} mutations", *reasons, sep="\n")
    return 1 if reasons else 0


if __name__ == "__main__":
    sys.exit(main())
