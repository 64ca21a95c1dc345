"""Chat models: one interface to models in this process and to models behind an OpenAI-compatible server.

from plamo2_jax import models

with models.open("runs/sft@500") as model:
    request = models.ChatRequest("greeting", [{"role": "user", "content": "こんにちは"}])
    [[response]] = model.chat([request])
    print(response.text, response.finish_reason, response.usage)
"""

from plamo2_jax.models.chat_model import (
    ChatModel,
    ChatRequest,
    ChatResponse,
    CompletionRequest,
    RequestError,
    Score,
    ScoreRequest,
    Usage,
)
from plamo2_jax.models.config import ChatModelConfig
from plamo2_jax.models.opening import open

__all__ = [
    "ChatModel",
    "ChatModelConfig",
    "ChatRequest",
    "ChatResponse",
    "CompletionRequest",
    "RequestError",
    "Score",
    "ScoreRequest",
    "Usage",
    "open",
]
