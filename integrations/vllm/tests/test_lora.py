"""An adapter that plamo2-jax wrote in PEFT's layout gives what it gives there, beside requests without it."""

from vllm.lora.request import LoRARequest

from engines import Reference, differences, engine, greedy
from test_float32 import BOUND, check_equal


def test_adapter(folder):
    base, adapted = Reference(folder, "base"), Reference(folder, "adapter")
    request = LoRARequest("adapter", 1, str(adapted.model))
    # Q, K and V have an adapter each: their common matrix has three times the rank. On CPUs, vLLM applies the last
    # place for adapters to rows without an adapter, so this place stays empty.
    with engine(base.model, enable_lora=True, max_lora_rank=16, max_loras=2) as llm:
        check_equal(llm, adapted, lora_request=request)
        assert max(error.max() for error in differences(llm, base)) < BOUND
        mixed = [request, None] * len(base.prompts)
        prompts = [prompt for prompt in base.prompts for _ in range(2)]
        wanted = [r["token_ids"] for pair in zip(adapted.generated, base.generated, strict=True) for r in pair]
        assert greedy(llm, prompts, 48, lora_request=mixed) == wanted
