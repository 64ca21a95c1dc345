"""Samples of a model, written at every evaluation of its training."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from plamo2_jax.engine.generator import Generator
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.errors import PlamoError
from plamo2_jax.model.plamo2 import Plamo2
from plamo2_jax.models.stop_ids import answer_stop_ids
from plamo2_jax.storage import located, write_whole
from plamo2_jax.tokenizer.chat_template import ChatTemplate
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.train.metrics import is_step, read_lines
from plamo2_jax.validation import require

if TYPE_CHECKING:
    from plamo2_jax.train.config import RunConfig

SAMPLES = "samples.jsonl"


@dataclasses.dataclass(frozen=True)
class SamplesConfig:
    """Prompts for samples at every evaluation. A field that is out of range raises PlamoError.

    Samples are written to samples.jsonl in the run folder. The report of the run shows the newest.
    """

    prompts: tuple[str, ...] = ()
    """User messages. Each one starts a conversation. Empty: no samples."""
    sampling: SamplingConfig = dataclasses.field(default_factory=lambda: SamplingConfig(temperature=0.0))
    """Sampling of the answers, greedy by default."""
    max_new_tokens: int = 128
    """Maximum number of tokens of an answer."""

    def __post_init__(self) -> None:
        texts = all(isinstance(prompt, str) and prompt.strip() for prompt in self.prompts)
        require(self, "prompts", texts, "texts that are not empty")
        require(self, "max_new_tokens", self.max_new_tokens >= 1, "at least 1")


class SampleWriter:
    """Callback of the train loop that generates and writes samples, in the form of `plamo2 generate --json` and with the step.

    It copies the model to one device.

    Raises:
        PlamoError: there are several processes, a prompt is too long or refused by the template, or samples.jsonl in the run folder is
            invalid.
    """

    def __init__(self, run: RunConfig, samples: SamplesConfig, template: str):
        if jax.process_count() > 1:
            raise PlamoError(
                "samples.prompts is not allowed in a job of several processes. Run plamo2 generate with its checkpoints"
            )
        self._config, self._path = samples, run.folder / SAMPLES
        self._tokenizer, chat = Tokenizer.load(run.tokenizer), ChatTemplate.load(template)
        self._model = Plamo2(run.model, dtype=jnp.dtype(run.dtype))
        self._prompts = []
        for number, prompt in enumerate(samples.prompts):
            try:
                asked = chat.encode(self._tokenizer, [{"role": "user", "content": prompt}], add_generation_prompt=True)
            except ValueError as error:
                raise PlamoError(f"samples.prompts[{number}]: the chat template refuses it: {error}") from error
            self._prompts.append(asked.ids)
            # Refuse before the first step what would fail at the first evaluation.
            longest = run.model.max_position_embeddings
            if not 0 < len(asked.ids) <= longest - samples.max_new_tokens:
                raise PlamoError(
                    f"samples.prompts[{number}] has {len(asked.ids)} tokens in the chat template: it must have at least 1, and with "
                    f"samples.max_new_tokens={samples.max_new_tokens} no more than the model's {longest}"
                )
            if found := self._tokenizer.control_strings_in(prompt):
                print(
                    f"warning: {', '.join(found)} in samples.prompts[{number}] is encoded as text, not as a "
                    "control token; only the chat template can write control tokens",
                    file=sys.stderr,
                )
        self._stop = StopConfig(
            max_new_tokens=samples.max_new_tokens, ids=answer_stop_ids(self._model, chat, self._tokenizer)
        )
        self._lines()

    def __call__(self, step: int, params: Any) -> None:
        """Generate and write samples. They replace lines of the same or a later step, which a resumed run repeats."""
        generator = Generator(self._model, jax.device_put(params, jax.devices()[0]), self._tokenizer)
        completions = generator.generate(self._prompts, sampling=self._config.sampling, stop=self._stop)
        lines = [line for line in self._lines() if line["step"] < step]
        for prompt, completion in zip(self._config.prompts, completions, strict=True):
            lines.append({"step": step, "prompt": prompt, "sample": 0, **dataclasses.asdict(completion)})
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_whole(located(self._path), text.encode())

    def _lines(self) -> list[dict[str, Any]]:
        """Return the lines of the file. The PlamoError for an invalid line names it."""
        lines, bad = read_lines(
            self._path, lambda line: None if is_step(line.get("step")) else 'must be an object with an integer "step"'
        )
        if bad:
            raise PlamoError(bad[0])
        return lines
