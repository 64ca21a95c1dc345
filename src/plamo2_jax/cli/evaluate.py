"""`plamo2 evaluate MODEL --tasks NAME... --heldout NAME=PATH...`: benchmark tasks, held-out bits per byte, and comparisons of results."""

from __future__ import annotations

from plamo2_jax.cli.arguments import parse
from plamo2_jax.cli.evaluate_options import EvaluateOptions
from plamo2_jax.errors import PlamoError
from plamo2_jax.validation import require_at_least


def main(argv: list[str]) -> int:
    """Run the command."""
    options = parse(EvaluateOptions, argv, "plamo2 evaluate")
    require_at_least(
        1,
        limit=options.limit,
        trials=options.trials,
        max_new_tokens=options.max_new_tokens,
        concurrency=options.concurrency,
        processes=options.processes,
        batch_size=options.batch_size,
        sequence_length=options.sequence_length,
    )
    require_at_least(0, shots=options.shots, seed=options.seed)
    if options.list:
        from plamo2_jax.cli.evaluate_tasks import print_tasks

        print_tasks()
        return 0
    if options.compare is not None:
        from plamo2_jax.cli.evaluate_tasks import compare_folders

        compare_folders(*options.compare, options.output)
        return 0
    if options.answers is not None:
        from plamo2_jax.cli.evaluate_stored import score_stored

        score_stored(options)
        return 0
    if not (options.tasks or options.lm_eval or options.heldout):
        raise PlamoError(
            "no tasks and no held-out data are given: add --tasks NAME..., --lm-eval NAME... or --heldout NAME=PATH..."
        )
    if options.model is None:
        raise PlamoError(
            "the model is missing: give it as the first argument, such as plamo2 evaluate runs/demo --tasks ..."
        )
    if options.heldout and options.model.startswith(("http://", "https://")):
        raise PlamoError(
            f"--heldout is not allowed with the server {options.model}: it must be a model folder. Servers "
            "support only --tasks"
        )
    status, output = 0, options.output
    if options.tasks:
        from plamo2_jax.cli.evaluate_tasks import output_folder, run_tasks

        folder = output_folder(options)
        status, output = run_tasks(options, folder), folder / "evaluation.json"
    if options.lm_eval:
        from plamo2_jax.cli.evaluate_lm_eval import run_lm_eval
        from plamo2_jax.cli.evaluate_tasks import output_folder

        folder = output_folder(options)
        run_lm_eval(options, folder)
        output = folder / "evaluation.json"
    if options.heldout:
        from plamo2_jax.cli.evaluate_heldout import measure

        measure(options, output)
    return status
