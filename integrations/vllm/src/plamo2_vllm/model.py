"""The model class that vLLM runs for the architecture Plamo2ForCausalLM.

Module names are the names of the checkpoint, so that quantized checkpoints and adapters find their modules.
"""

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.mamba.mamba_utils import MambaStateCopyFunc, MambaStateCopyFuncCalculator
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.interfaces import HasInnerState, IsHybrid, SupportsLoRA, SupportsPP
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    PPMissingLayer,
    make_empty_intermediate_tensors_factory,
    make_layers,
    maybe_prefix,
)
from vllm.sequence import IntermediateTensors

from plamo2_vllm.attention import Plamo2AttentionMixer
from plamo2_vllm.config import Plamo2Config
from plamo2_vllm.mamba import Plamo2MambaMixer, num_speculative_tokens, state_dtypes, state_shapes
from plamo2_vllm.norms import POST_MIXER, POST_MLP, PRE, OffsetRMSNorm


class Plamo2MLP(nn.Module):
    """Gated MLP: down(silu(gate(x)) · up(x))."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config, quant_config = vllm_config.model_config.hf_config, vllm_config.quant_config
        self.gate_up_proj = MergedColumnParallelLinear(
            config.hidden_size,
            [config.intermediate_size] * 2,
            bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}.gate_up_proj",
        )
        self.down_proj = RowParallelLinear(
            config.intermediate_size,
            config.hidden_size,
            bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}.down_proj",
        )
        self.act_fn = SiluAndMul()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output [tokens, hidden]."""
        gate_up, _ = self.gate_up_proj(x)
        return self.down_proj(self.act_fn(gate_up))[0]


class Plamo2DecoderLayer(nn.Module):
    """A mixer and an MLP, each with a norm before it and a norm on its output."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config: Plamo2Config = vllm_config.model_config.hf_config
        layer = int(prefix.rsplit(".", 1)[1])
        self.is_mamba = config.layers_block_type[layer] == "mamba"
        if self.is_mamba:
            self.mixer = Plamo2MambaMixer(vllm_config, prefix=f"{prefix}.mixer")
        else:
            self.mixer = Plamo2AttentionMixer(vllm_config, layer, prefix=f"{prefix}.mixer")
        self.mlp = Plamo2MLP(vllm_config, prefix=f"{prefix}.mlp")
        size, eps = config.hidden_size, config.rms_norm_eps
        self.pre_mixer_norm = OffsetRMSNorm(size, eps, PRE)
        self.post_mixer_norm = OffsetRMSNorm(size, eps, POST_MIXER)
        self.pre_mlp_norm = OffsetRMSNorm(size, eps, PRE)
        self.post_mlp_norm = OffsetRMSNorm(size, eps, POST_MLP)

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the residual stream [tokens, hidden] after the layer."""
        x = self.pre_mixer_norm(hidden_states)
        x = self.mixer(x) if self.is_mamba else self.mixer(positions, x)
        hidden_states = hidden_states + self.post_mixer_norm(x)
        return hidden_states + self.post_mlp_norm(self.mlp(self.pre_mlp_norm(hidden_states)))


class Plamo2Decoder(nn.Module):
    """The layers of this pipeline stage. The module exists for its name: the checkpoint has `model.layers.layers.N`."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        self.start_layer, self.end_layer, self.layers = make_layers(
            vllm_config.model_config.hf_config.num_hidden_layers,
            lambda prefix: Plamo2DecoderLayer(vllm_config, prefix=prefix),
            prefix=f"{prefix}.layers",
        )

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the residual stream after the layers of this stage."""
        for layer in islice(self.layers, self.start_layer, self.end_layer):
            hidden_states = layer(positions, hidden_states)
        return hidden_states


@support_torch_compile
class Plamo2Model(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: Plamo2Config = vllm_config.model_config.hf_config
        group = get_pp_group()
        if group.is_first_rank or (config.tie_word_embeddings and group.is_last_rank):
            self.embed_tokens = VocabParallelEmbedding(
                config.vocab_size, config.hidden_size, prefix=maybe_prefix(prefix, "embed_tokens")
            )
        else:
            self.embed_tokens = PPMissingLayer()
        self.layers = Plamo2Decoder(vllm_config, prefix=maybe_prefix(prefix, "layers"))
        self.norm = (
            OffsetRMSNorm(config.hidden_size, config.rms_norm_eps, PRE) if group.is_last_rank else PPMissingLayer()
        )
        self.make_empty_intermediate_tensors = make_empty_intermediate_tensors_factory(
            ["hidden_states"], config.hidden_size
        )

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [tokens, hidden]."""
        return self.embed_tokens(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        """Return the normalized residual stream [tokens, hidden], or the residual stream for the next pipeline stage."""
        if not get_pp_group().is_first_rank:
            hidden_states = intermediate_tensors["hidden_states"]
        elif inputs_embeds is not None:
            hidden_states = inputs_embeds
        else:
            hidden_states = self.embed_input_ids(input_ids)
        hidden_states = self.layers(positions, hidden_states)
        if not get_pp_group().is_last_rank:
            return IntermediateTensors({"hidden_states": hidden_states})
        return self.norm(hidden_states)


class Plamo2ForCausalLM(nn.Module, HasInnerState, SupportsLoRA, SupportsPP, IsHybrid):
    """PLaMo 2 with logits."""

    # These matrices are stored fused. An adapter of one of them has one pair of factors, and a quantized one has one set of scales.
    packed_modules_mapping = {"qkv_proj": ["qkv_proj"], "gate_up_proj": ["gate_up_proj"]}  # noqa: RUF012

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: Plamo2Config = vllm_config.model_config.hf_config
        self.config = config
        self.model = Plamo2Model(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        if get_pp_group().is_last_rank:
            # Neither embedding nor head is quantized: exports keep both in the dtype of the other weights.
            self.lm_head = ParallelLMHead(config.vocab_size, config.hidden_size, prefix=maybe_prefix(prefix, "lm_head"))
            if config.tie_word_embeddings:
                self.lm_head = self.lm_head.tie_weights(self.model.embed_tokens)
        else:
            self.lm_head = PPMissingLayer()
        self.logits_processor = LogitsProcessor(config.vocab_size)
        self.make_empty_intermediate_tensors = self.model.make_empty_intermediate_tensors

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [tokens, hidden]."""
        return self.model.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: object,
    ) -> torch.Tensor | IntermediateTensors:
        """Return the normalized residual stream [tokens, hidden], or the residual stream for the next pipeline stage."""
        return self.model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Return the logits [tokens, vocab_size]."""
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load the tensors of a checkpoint and return the names of the loaded parameters."""
        return AutoWeightsLoader(self).load_weights(self._renamed(weights))

    def _renamed(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            # As in the public code, a head in the file of a tied model is ignored.
            if not (name.startswith("lm_head.") and self.config.tie_word_embeddings):
                yield name.replace(".A_log", ".A"), tensor

    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config: VllmConfig) -> tuple[torch.dtype, torch.dtype]:
        """Return the dtypes of the states of a Mamba layer."""
        return state_dtypes(vllm_config)

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config: VllmConfig) -> tuple[tuple[int, int], tuple[int, int, int]]:
        """Return the shapes of the states of a Mamba layer on one rank."""
        tp_size = vllm_config.parallel_config.tensor_parallel_size
        return state_shapes(vllm_config.model_config.hf_config, tp_size, num_speculative_tokens(vllm_config))

    @classmethod
    def get_mamba_state_copy_func(cls) -> tuple[MambaStateCopyFunc, MambaStateCopyFunc]:
        """Return the functions that copy the states for prefix caching."""
        return MambaStateCopyFuncCalculator.mamba2_state_copy_func()
