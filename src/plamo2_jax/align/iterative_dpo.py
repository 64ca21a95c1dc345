"""Iterative DPO: in each round a model answers prompts, and is trained on pairs of its own answers.

    OUTPUT/config.json            settings that decide the result
    OUTPUT/round_N/pairs/         preference data: answers of the current model, scored and paired
    OUTPUT/round_N/train/         training run on these pairs; its reference is the current model (Iterative Reasoning Preference
                                  Optimization, arXiv:2404.19733; Self-Rewarding Language Models, arXiv:2401.10020)
    OUTPUT/round_N/round.json     results of the round
    OUTPUT/round_N/model/         current and trained model, merged: the model of the next round, a folder in Hugging Face format

Finished stages are skipped, and an interrupted stage is resumed. Rerun the command to resume.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plamo2_jax.align.preference_data.config import PreferenceDataConfig, identity, stored_identity
from plamo2_jax.align.preference_data.entries import CONFIG, OR_AGAIN, read_report
from plamo2_jax.align.preference_data.prompts import digest, read_prompts
from plamo2_jax.align.preference_data.sampling import Progress, make_preference_data
from plamo2_jax.align.preferences import Dpo
from plamo2_jax.checkpoint import read_config, write_json
from plamo2_jax.data.pipeline import MixtureItem
from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.in_training import open_benchmarks
from plamo2_jax.old_config import modernize
from plamo2_jax.storage import lock_folder, write_whole
from plamo2_jax.surgery.merge.config import MergeConfig
from plamo2_jax.surgery.merge.merge import merge
from plamo2_jax.tokenizer.template_files import chat_template_files
from plamo2_jax.train.config import RunConfig, differences, fill_defaults, free_fields, to_json
from plamo2_jax.train.evaluation import newest_heldout
from plamo2_jax.train.loop import train
from plamo2_jax.train.metrics import METRICS, read_metrics
from plamo2_jax.validation import require


@dataclasses.dataclass(frozen=True)
class IterativeDpoConfig:
    """Settings of iterative DPO. A field that is out of range raises PlamoError."""

    output: Path
    """Output folder."""
    start: Path
    """Model of the first round: run folder, RUN@STEP, RUN@ema or folder in Hugging Face format."""
    preference_data: PreferenceDataConfig
    """Settings of the preference data. Each round sets `policy.model`, `policy.template` (to `train.task.pairs.template`), `output`, and
    `seed`, which increases by 1 per round."""
    train: RunConfig
    """Settings of the training, with task=Dpo. Each round sets `init_from`, `output`, `name`, `heldout` and `data.mixture`."""
    rounds: int = 2
    """Number of rounds. You can increase it later."""
    merge: MergeConfig = dataclasses.field(default_factory=lambda: MergeConfig("linear", (0.5, 0.5)))
    """Merging of the current and the trained model, in this order, into the model of the next round: linear, slerp or karcher. Weights 0 1
    use the trained model only."""

    def __post_init__(self) -> None:
        require(self, "rounds", self.rounds >= 1, "at least 1")
        require(self, "merge", self.merge.method in ("linear", "slerp", "karcher"), "linear, slerp or karcher")
        self.merge.check(2, base=False)
        unset = "None, because the policy is the current model"
        require(self, "preference_data.policy.url", self.preference_data.policy.url is None, unset)
        require(self, "train.task", isinstance(self.train.task, Dpo), "Dpo(...)")
        require(self, "train.task.lora", self.train.task.lora is None, "None, because a round trains a full model")
        for name in ("reference", "reference_log_probs"):
            given = getattr(self.train.task, name)
            require(self, f"train.task.{name}", given is None, "None, because the reference is the current model")


@dataclasses.dataclass(frozen=True)
class Ended:
    """Result of `iterate`."""

    model: Path
    """The newest model."""
    signal: int | None
    """The signal that stopped training early; None if all rounds are complete."""


def iterate(
    config: IterativeDpoConfig,
    *,
    again: bool = False,
    on_progress: Progress | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Ended:
    """Run all rounds, or resume.

    Args:
        again: remove the files of an earlier run first.
        on_progress: see `make_preference_data`.
        say: called with a line about each finished stage.

    Raises:
        PlamoError: the folder is in use or has another configuration, a round makes no pair, or a stage fails.
    """
    output = Path(config.output)
    with lock_folder(output):
        if again:
            for path in (*output.glob("round_*"), output / CONFIG):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        _refuse_other(config)
        start = Path(config.start)
        for number in range(1, config.rounds + 1):
            folder = output / f"round_{number}"
            model = folder / "model"
            if not model.is_dir():
                signal = _round(config, number, folder, start, on_progress, say)
                if signal is not None:
                    return Ended(start, signal)
            # The chat template of the training. It is written also for an existing model, in case the process was killed before.
            for name, content in chat_template_files(folder / "train").items():
                write_whole(model / name, content)
            start = model
    return Ended(start, None)


def _round(
    config: IterativeDpoConfig,
    number: int,
    folder: Path,
    start: Path,
    on_progress: Progress | None,
    say: Callable[[str], None],
) -> int | None:
    """Run or resume one round. Return the signal that stopped it, if any."""
    run, pairs = folder / "train", folder / "pairs"
    report = read_report(pairs)
    # Once training has started, failed prompts are not tried again, because the training data must not change.
    if report is None or not run.exists():
        asked = config.preference_data
        policy = dataclasses.replace(asked.policy, model=str(start), template=config.train.task.pairs.template)
        made = dataclasses.replace(asked, output=pairs, policy=policy, seed=asked.seed + number - 1)
        report = make_preference_data(made, on_progress=on_progress)
    said = {name: report[name] for name in ("answers", "pairs", "heldout_pairs", "rules", "score")}
    say(f"round {number}: {json.dumps(said)}")
    if not report["pairs"]:
        raise PlamoError(f"{pairs} has no pair: {report['prompts_without_pair']}, failed {len(report['failed'])}")
    heldout = {"pairs": pairs / "heldout.jsonl"} if report["heldout_pairs"] else {}
    training = dataclasses.replace(
        config.train,
        name=run.name,
        output=folder,
        init_from=start,
        data=dataclasses.replace(config.train.data, mixture=(MixtureItem(pairs / "pairs.jsonl"),)),
        heldout=heldout,
    )
    outcome = train(training, open_benchmarks=open_benchmarks)
    if outcome.signal is not None:
        return outcome.signal
    # From the log, because a complete run is not measured again.
    measured = newest_heldout(read_metrics(run / METRICS))
    write_json(folder / "round.json", {"round": number, "start": str(start), **said, "heldout": measured})
    say(f"round {number}: trained; held-out {json.dumps(measured)}")
    merge([str(start), str(run)], folder / "model", config.merge)
    return None


def _drop_set_fields(preference_data: dict[str, Any]) -> None:
    """Remove the fields of the policy that each round sets."""
    policy = preference_data.get("policy")
    for name in ("model", "template") if isinstance(policy, dict) else ():
        policy.pop(name, None)


def _refuse_other(config: IterativeDpoConfig) -> None:
    """Raise PlamoError if the folder holds rounds of another configuration; write the configuration if it holds none."""
    path = Path(config.output) / CONFIG
    current = to_json(config) | {"preference_data": identity(config.preference_data)}
    _drop_set_fields(current["preference_data"])
    if not path.exists():
        write_json(path, current | {"prompts": _prompts_digest(config)})
        return
    stored, kept = read_config(path.parent), ("start", "merge", "preference_data", "train")
    if "prefer" in stored:  # The name of the field before version 1.1.
        stored = {**stored, "preference_data": stored["prefer"]}
    if not (stored.keys() >= set(kept) and all(isinstance(stored[name], dict) for name in kept[2:])):
        raise PlamoError(f"{path} is not the configuration of rounds: it must hold {', '.join(kept)}; {OR_AGAIN}")
    # Older folders have neither the policy nor the prompts.
    older = {"policy": current["preference_data"]["policy"]}
    preference_data = stored_identity({**older, **stored["preference_data"]}, config.preference_data)
    training = fill_defaults(modernize(stored["train"]), config.train)
    stored = {**stored, "preference_data": preference_data}
    _drop_set_fields(preference_data)
    found = [line for name in kept[:3] for line in differences(current[name], stored[name])]
    found += differences(current["train"], training, frozenset(free_fields(config.train)))
    if found:
        raise PlamoError(
            f"{path.parent} contains rounds of a different configuration ({'; '.join(found)[:200]}); {OR_AGAIN}"
        )
    if "prompts" in stored and stored["prompts"] != _prompts_digest(config):
        raise PlamoError(f"{path.parent} contains rounds with other prompts: their files have changed; {OR_AGAIN}")


def _prompts_digest(config: IterativeDpoConfig) -> str:
    return digest(read_prompts(config.preference_data.prompts, config.preference_data.rules))
