"""Iterated DPO: a model answers, its answers are paired, it is trained on the pairs, and what comes out answers next.

    OUTPUT/config.json            what decides the outcome
    OUTPUT/round_N/pairs/         preference data: the model's own answers, scored and paired
    OUTPUT/round_N/train/         the run on them; its reference is the model that the round begins with (Iterative Reasoning
                                  Preference Optimization, arXiv:2404.19733; Self-Rewarding Language Models, arXiv:2401.10020)
    OUTPUT/round_N/round.json     what the round came to
    OUTPUT/round_N/model/         both merged: the model of the next round, a folder of the public layout

Each stage is left alone once it is complete and goes on where it was otherwise, so the same command goes on after a kill.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from plamo2_jax.align.preference_data.config import PreferenceDataConfig, identity, stored_identity
from plamo2_jax.align.preference_data.entries import CONFIG, OR_AGAIN, read_report
from plamo2_jax.align.preference_data.sampling import Progress, make_preference_data
from plamo2_jax.align.preferences import Dpo
from plamo2_jax.checkpoint import read_config, write_json
from plamo2_jax.data.pipeline import MixtureItem
from plamo2_jax.errors import PlamoError
from plamo2_jax.old_config import modernize
from plamo2_jax.storage import lock_folder, write_whole
from plamo2_jax.surgery.merge.config import MergeConfig
from plamo2_jax.surgery.merge.merge import merge
from plamo2_jax.tokenizer.template_files import chat_template_files
from plamo2_jax.train.config import RunConfig, differences, fill_defaults, free_fields, to_json
from plamo2_jax.train.loop import train
from plamo2_jax.validation import require


@dataclasses.dataclass(frozen=True)
class IterativeDpoConfig:
    """Some rounds.

    Raises:
        ValueError: a field is out of range; the message names the field, its value and what is allowed.
    """

    output: Path
    """Folder to write."""
    start: Path
    """The model that the first round begins with: run folder, RUN@STEP, RUN@ema or folder of the public layout."""
    preference_data: PreferenceDataConfig
    """How pairs are made. In each round the policy is the model so far, with the template of `train.task.pairs`; `output` is the round's
    folder, and the seed counts up."""
    train: RunConfig
    """The training, with task=Dpo. `init_from`, `output`, `name`, `heldout` and `data.mixture` are the round's."""
    rounds: int = 2
    """How many; more can be added later."""
    merge: MergeConfig = dataclasses.field(default_factory=lambda: MergeConfig("linear", (0.5, 0.5)))
    """How the model that a round begins with, and then the trained one, become the model of the next. linear, slerp or karcher; weights
    0 1 take the trained one alone."""

    def __post_init__(self) -> None:
        require(self, "rounds", self.rounds >= 1, "at least 1")
        require(self, "merge", self.merge.method in ("linear", "slerp", "karcher"), "linear, slerp or karcher")
        self.merge.check(2, base=False)
        unset = "none here: the policy of a round is the model so far"
        require(self, "preference_data.policy.url", self.preference_data.policy.url is None, unset)
        require(self, "train.task", isinstance(self.train.task, Dpo), "Dpo(...)")
        require(self, "train.task.lora", self.train.task.lora is None, "none here: a round ends with a whole model")
        unread = "none here: the reference of a round is the model that it begins with"
        for name in ("reference", "reference_log_probs"):
            require(self, f"train.task.{name}", getattr(self.train.task, name) is None, unread)


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a call of `iterate` ended."""

    model: Path
    """The newest model."""
    signal: int | None
    """The signal that stopped training early; None where all rounds are complete."""


def iterate(
    config: IterativeDpoConfig,
    *,
    again: bool = False,
    on_progress: Progress | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Ended:
    """Make all rounds, or go on making them.

    Args:
        config: what to make.
        again: remove what an earlier run left first.
        on_progress: told of every prompt that is answered.
        say: told what each stage came to.

    Raises:
        ValueError: the folder is in use or of another configuration, a round makes no pair, or what its stages raise.
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
            # The template that it was trained under, whatever it began with. Behind the test: a kill may have come between the two.
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
    """One round, from where it is; the signal that stopped it, if one did."""
    run, pairs = folder / "train", folder / "pairs"
    report = read_report(pairs)
    # Training on pairs has begun: prompts that failed are not tried again under its feet.
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
    outcome = train(training)
    if outcome.signal is not None:
        return outcome.signal
    measured = {name: found.metrics for name, found in outcome.heldout.items()}
    write_json(folder / "round.json", {"round": number, "start": str(start), **said, "heldout": measured})
    say(f"round {number}: trained; held-out {json.dumps(measured)}")
    merge([str(start), str(run)], folder / "model", config.merge)
    return None


def _refuse_other(config: IterativeDpoConfig) -> None:
    """Raise ValueError where the folder holds rounds of another configuration; write this one where it holds none."""
    path = Path(config.output) / CONFIG
    ours = to_json(config) | {"preference_data": identity(config.preference_data)}
    ours["preference_data"].pop("policy")
    if path.exists():
        theirs, kept = read_config(path.parent), ("start", "merge", "preference_data", "train")
        if "prefer" in theirs:  # The name of the field before version 1.1.
            theirs = {**theirs, "preference_data": theirs["prefer"]}
        if not (theirs.keys() >= set(kept) and all(isinstance(theirs[name], dict) for name in kept[2:])):
            raise PlamoError(f"{path} is not the configuration of rounds: it must hold {', '.join(kept)}; {OR_AGAIN}")
        stored = stored_identity(theirs["preference_data"], config.preference_data)
        theirs = {**theirs, "preference_data": stored, "train": modernize(theirs["train"])}
        found = [line for name in kept[:3] for line in differences(ours[name], theirs[name])]
        found += differences(
            ours["train"], fill_defaults(theirs["train"], config.train), frozenset(free_fields(config.train))
        )
        if found:
            raise PlamoError(
                f"{path.parent} holds rounds of another configuration ({'; '.join(found)[:200]}); {OR_AGAIN}"
            )
    else:
        write_json(path, ours)
