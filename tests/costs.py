"""Which tests `make test` leaves to `make test-slow` for what they cost: written into costly.txt, one name a line.

Of the cases of one test function the cheapest stay, and as many more as fit `A_FUNCTION` seconds of processor time; a
function whose cheapest case takes more than `A_CASE` goes whole, unless `KEPT` names it. Costs are measured with an
empty cache of programs: `HYPRAX_COSTS=costs.tsv make test test-slow`, then `python tests/costs.py costs.tsv`. Tests
that are slow because they are thorough, whatever the machine, bear the mark `slow` where they stand.
"""

import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

COSTLY = Path(__file__).with_name("costly.txt")
A_CASE, A_FUNCTION = 2.0, 1.2
KEPT = (  # what each engine is for, and the way of a user from one end to the other
    "tests/estimators/test_tuned.py::test_a_strength_is_that_of_ridge_over_the_number_of_rows",
    "tests/estimators/test_tuned.py::test_data_frames_pipelines_searches_and_pickles",
    "tests/evidence/test_evidence_fit.py::test_a_linear_model_ends_at_the_answer_of_bayesian_ridge_whatever_the_units",
    "tests/from_torch/test_from_torch.py::test_it_is_the_module_in_eval_mode_for_any_number_of_examples",
    "tests/implicit/test_certificates_hold.py::test_certificates_hold_and_are_tight",
    "tests/implicit/test_dtypes.py::test_float32_stays_float32",
    "tests/implicit/test_hypergradient.py::test_closed_form_of_a_quadratic",
    "tests/implicit/test_hypergradient.py::test_families_agree_with_a_dense_solve",
    "tests/implicit/test_leave_one_out.py::test_enclosures_hold_for_random_problems",
    "tests/implicit/test_reml.py::test_of_ridge_is_the_gaussian_integral",
    "tests/recipes/test_judgement.py::test_folds_are_the_criterion_and_refits_are_compared_on_test_rows",
    "tests/recipes/test_saved.py::test_a_table_is_tuned_predicted_and_resumed",
    "tests/search/test_cross_validated.py::test_tuned_on_folds_and_refitted_on_all_rows_with_the_prior_kept",
    "tests/search/test_shrinkage.py::test_the_path_frees_strengths_where_few_columns_matter",
    "tests/test_cli.py::test_tune_show_report",
    "tests/test_examples.py::test_the_python_example_fits_a_screen_and_lowers_the_loss",
    "tests/test_objective.py::test_an_abstract_objective_cannot_be_made",
    "tests/test_objective.py::test_inside_transformations",
    "tests/test_objective.py::test_hypergradient_of_a_problem_solved_by_hand",
    "tests/unroll/test_certifiers.py::test_the_bound_holds_and_is_the_error",
    "tests/unroll/test_fixed_point.py::test_encoding_is_exact_to_the_last_place",
    "tests/unroll/test_lion_muon.py::test_lion_and_muon",
    "tests/unroll/test_modes.py::test_every_mode_agrees_with_a_python_loop",
    "tests/unroll/test_reversible.py::test_hypergradients_agree_with_a_python_loop",
    "tests/unroll/test_state.py::test_what_the_loss_carries_is_differentiated",
)


def function_of(name: str) -> str:
    """The test function of a case."""
    return name.split("[")[0]


def costly(costs: Mapping[str, float]) -> list[str]:
    """The names of the cases that go, from the seconds of each."""
    cases: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for name, seconds in costs.items():
        cases[function_of(name)].append((seconds, name))
    gone = []
    for function, each in cases.items():
        spent, kept = 0.0, 0
        for seconds, name in sorted(each):
            allowed = spent + seconds <= A_FUNCTION if kept else seconds <= A_CASE or function in KEPT
            if allowed:
                spent, kept = spent + seconds, kept + 1
            else:
                gone.append(name)
    return sorted(gone)


def main(files: list[str]) -> None:
    """Read files of lines `seconds<TAB>name`, the later the better, and write the list."""
    costs: dict[str, float] = {}
    for file in files:
        for line in Path(file).read_text().splitlines():
            seconds, name = line.split("\t")
            costs[name] = float(seconds)
    COSTLY.write_text("".join(f"{name}\n" for name in costly(costs)))
    print(f"{len(costs)} cases, {sum(costs.values()):.0f} s; {len(costly(costs))} of them are costly")


if __name__ == "__main__":
    main(sys.argv[1:])
