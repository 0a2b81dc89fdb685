"""Two fake CPU devices for the whole suite, and quick compilation: most of its time is XLA's."""

import os
from importlib.metadata import version
from pathlib import Path

import pytest

# before jax is imported: the number of devices is fixed when its backend starts
_FLAGS = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
if version("jaxlib").startswith("0.10."):  # XLA ends the process over a flag that it does not know
    _FLAGS += (  # compiles in 0.6 of the time
        " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

_MANY_MAPS, _EVERY = 25_000, 5
"""Every compiled function maps memory, a process may have 65,530 maps, and XLA aborts where it can
have no more: looked at every few tests.
"""
_tests = 0


_SLOW = (
    "tests/claims/test_registry.py::test_claims_of_luo_et_al[L-3.5]",
    "tests/claims/test_registry.py::test_claims_of_luo_et_al[L-3.7]",
    "tests/exact/test_exact.py::test_moments_on_a_quadratic[f-usam",
    "tests/exact/test_exact.py::test_moments_on_a_quadratic[two-step",
    "tests/problems/test_outer_products.py::"
    "test_dense_layers_are_found_and_agree_with_the_generic_path[loss",
    "tests/sde/test_by_numbers.py::test_a_run",
    "tests/sde/test_by_numbers.py::test_beside_the_trees[m-sam",
    "tests/sde/test_by_numbers.py::test_beside_the_trees[m-usam",
    "tests/sde/test_by_numbers.py::test_draws",
    "tests/sde/test_by_numbers.py::test_float32_and_a_module",
    "tests/sde/test_by_numbers.py::test_negative_controls[",
    "tests/sde/test_by_numbers.py::test_other_rates_and_radii",
    "tests/sde/test_by_numbers.py::test_parameters_in_several_leaves[m-usam",
    "tests/sde/test_by_numbers.py::test_rules_without_trees[normalised",
    "tests/sde/test_by_numbers.py::test_the_noise_of_a_rule_that_is_no_mean",
    "tests/sde/test_enumeration.py::test_cubic_losses",
    "tests/sde/test_enumeration.py::test_negative_controls_of_rw_sam",
    "tests/sde/test_enumeration.py::test_normalised_variants[m-sam-4-2-True",
    "tests/sde/test_enumeration.py::test_normalised_variants[sam",
    "tests/sde/test_rules.py::test_equations_of_rules[difference",
    "tests/sde/test_rules.py::test_equations_of_rules[f-sam",
    "tests/sde/test_rules.py::test_equations_of_rules[fresh-sam",
    "tests/sde/test_rules.py::test_equations_of_rules[two-step sam",
    "tests/sde/test_rules.py::test_equations_of_rules[unit of two",
    "tests/sde/test_rules.py::test_negative_controls[one step",
    "tests/test_hypothesis.py::test_every_mutant_is_killed",
    "tests/test_hypothesis.py::test_small_problems_without_replacement[4",
    "tests/test_hypothesis.py::test_wrong_terms_are_named[half",
    "tests/test_hypothesis.py::test_wrong_terms_are_named[percent",
    "tests/test_identify.py::test_a_coefficient_without_a_formula",
    "tests/test_identify.py::test_a_direction_that_lost_a_factor",
    "tests/claims/test_registry.py::test_claims_of_luo_et_al[L-3.5w]",
    "tests/claims/test_registry.py::test_claims_of_luo_et_al[L-3.8",
    "tests/ensemble/test_driver.py::test_the_loop_of_an_accelerator[_of_two",
    "tests/ensemble/test_scale.py::test_compiled_code_is_kept",
    "tests/ensemble/test_scale.py::test_kill_and_resume",
    "tests/exact/test_weak.py::test_signature_on_a_torus",
    "tests/exact/test_weak.py::test_order_2_on_a_quadratic_of_ten",
    "tests/optim/test_from_variant.py::test_a_shared_norm_on_devices",
    "tests/optim/test_from_variant.py::test_micro_batches_in_turn_are_those_at_once[mine",
    "tests/problems/test_outer_products.py::"
    "test_dense_layers_are_found_and_agree_with_the_generic_path[vector",
    "tests/sde/test_by_numbers.py::test_an_expectation_that_is_not_listed",
    "tests/sde/test_by_numbers.py::test_rules_without_trees[friendly",
    "tests/sde/test_by_numbers.py::test_what_is_listed",
    "tests/sde/test_enumeration.py::test_negative_controls_of_normalised_variants[rho^2",
    "tests/sde/test_enumeration.py::test_rw_sam[False",
    "tests/sde/test_micro_batches.py::test_random_directions",
    "tests/sde/test_rules.py::test_equations_of_rules_with_replacement[f-sam",
    "tests/sde/test_rules.py::test_equations_of_rules_with_replacement[mini",
    "tests/sde/test_rules.py::test_negative_controls[another",
    "tests/test_cli.py::test_a_closed_pipe",
    "tests/test_full_presets.py::test_a_diverged_run",
    "tests/test_hypothesis.py::test_normalised_variants_with_eps",
    "tests/test_hypothesis.py::test_one_step_of_a_mutant_kernel",
    "tests/test_hypothesis.py::test_wrong_terms_of_the_covariance",
)
"""Beginnings of the names of tests that compile for seconds, and show on one more case what a quick
test shows on another: they run with `make test-slow`, as those that are marked in their files.
"""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark the tests of the list above, before pytest leaves slow ones out."""
    for item in items:
        if item.nodeid.startswith(_SLOW):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _forget_compiled_functions():
    yield
    global _tests
    _tests += 1
    maps = Path("/proc/self/maps")
    if _tests % _EVERY == 0 and maps.exists() and maps.read_bytes().count(b"\n") > _MANY_MAPS:
        import jax

        jax.clear_caches()
