"""PLaMo 2 for vLLM. vLLM calls `register` in each of its processes (entry point group `vllm.general_plugins`)."""

ARCHITECTURE = "Plamo2ForCausalLM"


def register() -> None:
    """Register the configuration class with transformers and the model class with vLLM. Repeated calls have no further effect."""
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from plamo2_vllm.config import Plamo2Config

    AutoConfig.register(Plamo2Config.model_type, Plamo2Config, exist_ok=True)
    # As text, so that vLLM imports the model, and with it torch's device libraries, only in processes that run it.
    ModelRegistry.register_model(ARCHITECTURE, f"plamo2_vllm.model:{ARCHITECTURE}")
