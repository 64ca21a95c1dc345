"""The part of `plamo2 evaluate` that runs tasks of lm-evaluation-harness."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from plamo2_jax.cli.evaluate_tasks import open_model, results_table
from plamo2_jax.errors import PlamoError

if TYPE_CHECKING:
    from plamo2_jax.cli.evaluate_options import EvaluateOptions


def run_lm_eval(options: EvaluateOptions, folder: Path) -> None:
    """Run the tasks, print a table, and write their results to FOLDER/lm-eval-TASK and the harness's own results to FOLDER/lm_eval.json.

    Raises:
        PlamoError: the extra eval is not installed, a task is unknown or cannot be loaded, a request failed, or another process uses the
            folder.
    """
    from plamo2_jax.align.heldout import training_length
    from plamo2_jax.convert.names import ModelName
    from plamo2_jax.eval.lm_eval import evaluate
    from plamo2_jax.eval.lm_eval_results import write_results
    from plamo2_jax.eval.server_identity import check_servers
    from plamo2_jax.journal import Journal
    from plamo2_jax.report.evaluation import write_evaluation_report
    from plamo2_jax.storage import lock_folder

    if options.mode not in (None, "completion", "chat"):
        raise PlamoError(f"--mode {options.mode} is not allowed with --lm-eval: it must be completion or chat")
    if options.include_path is not None and not options.include_path.is_dir():
        raise PlamoError(f"--include-path {options.include_path} is not a folder: it must be a folder with YAML files")
    length = options.sequence_length
    if length is None and not options.model.startswith(("http://", "https://")):
        length = training_length(ModelName.parse(options.model).folder)
    slots = 64 if options.batch_size is None else options.batch_size
    with open_model(options, slots) as model, lock_folder(folder):
        check_servers(folder, {"model": model.description})
        journal = Journal(folder / "lm_eval_journal.jsonl", lambda entry: isinstance(entry.get("values"), list))
        try:
            results = evaluate(
                model,
                options.lm_eval,
                include_path=None if options.include_path is None else str(options.include_path),
                limit=options.limit,
                num_fewshot=options.shots,
                apply_chat_template=options.mode == "chat",
                rolling_length=length or 2048,
                seed=options.seed,
                journal=journal,
            )
        finally:
            journal.close()
        written = write_results(folder, results, model.description)
    report = write_evaluation_report(folder)
    print(results_table(written))
    print(f"results: {folder}, report: {report}")
