"""Expected requests, tokens and cost of a run, before the first request."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from plamo2_jax.adapters.open import model_folders
from plamo2_jax.convert.names import ModelName
from plamo2_jax.errors import PlamoError
from plamo2_jax.models import ChatRequest, CompletionRequest
from plamo2_jax.synth.config import GeneratorConfig, RecipeUse, SynthConfig
from plamo2_jax.synth.limits import CHARACTERS_PER_TOKEN
from plamo2_jax.synth.plan import entries_of
from plamo2_jax.synth.recipe import Recipe
from plamo2_jax.tokenizer.chat_template import ChatTemplate, template_variables
from plamo2_jax.tokenizer.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class TokenCounter:
    """Counts the tokens of a prompt."""

    count: Callable[[ChatRequest | CompletionRequest], int]
    method: str
    """How tokens are counted, as a sentence."""


def token_counter(config: GeneratorConfig | None) -> TokenCounter:
    """Return a counter with the tokenizer of a configuration or of a local model, or else one that counts characters.

    Raises:
        PlamoError: `tokenizer` cannot be read.
    """
    path = _tokenizer_path(config)
    if config is None or path is None:
        return TokenCounter(
            _by_characters,
            f"Tokens are estimated as {CHARACTERS_PER_TOKEN} characters each, because no tokenizer is known.",
        )
    tokenizer = Tokenizer.load(path)
    if config.url is not None:
        method = f"Tokens are counted with {path}, without the tokens of the server's chat template."
        return TokenCounter(lambda request: _by_tokenizer(tokenizer, None, request), method)
    folders = model_folders(config.model)
    template = ChatTemplate.load(config.template) if config.template else ChatTemplate.of_model(*folders)
    method = f"Tokens are counted with {path} and the chat template of the model."
    return TokenCounter(lambda request: _by_tokenizer(tokenizer, template, request), method)


def _tokenizer_path(config: GeneratorConfig | None) -> Path | None:
    if config is None:
        return None
    if config.tokenizer is not None:
        if not Path(config.tokenizer).exists():
            raise PlamoError(f"generator.tokenizer {config.tokenizer} does not exist: it must be a tokenizer.jsonl")
        return Path(config.tokenizer)
    path = Path(ModelName.parse(config.model).folder) / "tokenizer.jsonl" if config.url is None else None
    return path if path is not None and path.is_file() else None


def _by_characters(request: ChatRequest | CompletionRequest) -> int:
    if isinstance(request, ChatRequest):
        return -(-sum(len(str(message.get("content", ""))) for message in request.messages) // CHARACTERS_PER_TOKEN)
    if isinstance(request.prompt, str):
        return -(-len(request.prompt) // CHARACTERS_PER_TOKEN)
    return len(request.prompt)


def _by_tokenizer(tokenizer: Tokenizer, template: ChatTemplate | None, request: ChatRequest | CompletionRequest) -> int:
    if isinstance(request, CompletionRequest):
        prompt = request.prompt
        return len(tokenizer.encode(prompt, bos=request.bos) if isinstance(prompt, str) else prompt)
    if template is None:
        return sum(len(tokenizer.encode(str(message.get("content", "")))) for message in request.messages)
    variables = template_variables(request.variables)
    return len(template.encode(tokenizer, request.messages, add_generation_prompt=True, **variables).ids)


@dataclasses.dataclass
class Estimate:
    """Expected requests of a recipe."""

    entries: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Largest number of generated tokens."""


def estimate(config: SynthConfig, use: RecipeUse, recipe: Recipe, counter: TokenCounter) -> Estimate:
    """Return the expected requests of a recipe, before the first request.

    Only the first request of an entry is known. Later requests of recipes with several steps are not counted.
    """
    found = Estimate()
    for entry in entries_of(config, use, recipe):
        found.entries += 1
        generator = recipe.requests(entry.seed, entry.sample, entry.random(config.seed))
        try:
            request = next(generator)
        except StopIteration:
            continue
        generator.close()
        found.requests += request.n
        # A server reads, and charges for, the prompt of each sample.
        found.prompt_tokens += counter.count(request) * request.n
        found.completion_tokens += request.stop.max_new_tokens * request.n
    return found


def total(estimates: Mapping[str, Estimate]) -> Estimate:
    """Return the sums over recipes."""
    fields = [field.name for field in dataclasses.fields(Estimate)]
    return Estimate(*(sum(getattr(one, name) for one in estimates.values()) for name in fields))
