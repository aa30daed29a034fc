"""What llama.cpp computes for each family of Hugging Face: its name, its numbers, its tensors."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from retort.errors import SpecError
from retort.records import JsonObject

Floats = npt.NDArray[np.float32]
# The `model_type` of config.json, and what llama.cpp calls the graph that computes it.
ARCHITECTURES = {
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gpt2": "gpt2",
    "llama": "llama",
    "mistral": "llama",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}
ACTIVATIONS = {
    "gemma": ("gelu_pytorch_tanh",),
    "gemma2": ("gelu_pytorch_tanh",),
    "gemma3": ("gelu_pytorch_tanh",),
    "gpt2": ("gelu_new", "gelu_pytorch_tanh"),
}
# The rotary embeddings that a graph can be told to compute.
ROPES = {
    "gemma3": ("default", "linear"),
    "llama": ("default", "linear", "llama3", "yarn"),
    "phi3": ("default", "longrope"),
    "qwen2": ("default", "linear"),
    "qwen3": ("default", "linear"),
}


@dataclass(frozen=True)
class Family:
    """A model's configuration, and the graph that computes it."""

    config: Any  # transformers' configuration
    architecture: str

    @property
    def context(self) -> int:
        """The longest context in which llama.cpp computes what the model does.

        Only Gemma's graphs have a sliding window; in the others a text that fits into it is seen
        whole, as the model sees it. Of two sets of rotary factors the model takes the long one for
        long texts, llama.cpp for every text where there is room for long ones.
        """
        longest = int(self.config.max_position_embeddings)
        if self.rope_type == "longrope":
            longest = min(longest, _original_context(self))
        window = self.window
        return longest if window is None or self.is_windowed else min(longest, window)

    @property
    def window(self) -> int | None:
        """The tokens that a layer of sliding attention sees; None where there is no such layer."""
        window = getattr(self.config, "sliding_window", None)
        kinds = getattr(self.config, "layer_types", None) or ["sliding_attention"]
        return window if "sliding_attention" in kinds else None

    @property
    def is_windowed(self) -> bool:
        """Whether the graph itself has sliding windows."""
        return self.architecture in ("gemma2", "gemma3")

    @property
    def head_size(self) -> int:
        """The width of an attention head."""
        given = getattr(self.config, "head_dim", None)
        return int(given or self.config.hidden_size // self.config.num_attention_heads)

    @property
    def num_rotated(self) -> int:
        """How many numbers of a head the rotary embedding turns."""
        return int(self.head_size * self.rope.get("partial_rotary_factor", 1.0))

    @property
    def rope(self) -> JsonObject:
        """The rotary embedding; of a family with two, that of full attention."""
        rope = dict(getattr(self.config, "rope_parameters", None) or {})
        return dict(rope.get("full_attention", rope))

    @property
    def rope_type(self) -> str:
        """The kind of rotary embedding, in transformers' words."""
        return str(self.rope.get("rope_type", "default"))


def plainly_fits(folder: Path) -> bool:
    """Whether config.json alone says that llama.cpp has the graph of a model; where it does not,
    `read_family` tells. transformers, which knows what a file leaves out, takes seconds to load."""
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        rope = {**rope, "rope_type": rope.get("rope_type", rope.get("type", "default"))}
        config = SimpleNamespace(**{**raw, "rope_parameters": rope})
        family = Family(config, ARCHITECTURES[raw["model_type"]])
        return next(_differences(family), None) is None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def read_family(folder: Path) -> Family:
    """Returns the family of a model folder. Raises `SpecError` where llama.cpp has no graph for it,
    or one that computes something else."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise SpecError(f"{folder}/config.json cannot be read: {error}") from None
    kind = str(config.model_type)
    if kind not in ARCHITECTURES:
        raise SpecError(
            f"the format gguf cannot hold the family {kind} of {folder}; it can hold "
            f"{', '.join(ARCHITECTURES)}: export another format, or train a student of these"
        )
    family = Family(config, ARCHITECTURES[kind])
    for wrong in _differences(family):
        raise SpecError(
            f"the format gguf cannot hold the model in {folder}: llama.cpp computes {kind} with "
            f"{wrong}; export another format, or train another student"
        )
    return family


def _differences(family: Family) -> Iterator[str]:
    """Yields what the graph does otherwise than the model."""
    config, graph = family.config, family.architecture
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", "")
    activation = getattr(config, "activation_function", None) or activation
    allowed = ACTIVATIONS.get(graph, ("silu",))
    if activation not in allowed:
        yield f"the activation {' or '.join(allowed)}, not {activation}"
    ropes = ROPES.get(graph, ("default",))
    if family.rope_type not in ropes:
        yield f"rotary embeddings {' or '.join(ropes)}, not {family.rope_type}"
    scalar = getattr(config, "query_pre_attn_scalar", None)
    usual = family.head_size
    if (graph, config.num_hidden_layers) in (("gemma2", 46), ("gemma3", 62)):
        usual = config.hidden_size // config.num_attention_heads
    if scalar is not None and scalar != usual:
        yield f"query_pre_attn_scalar {usual}, not {scalar}"
    if graph == "gpt2" and (
        config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights
    ):
        yield "attention scaled by the size of a head alone"
    if graph == "gpt2" and (config.n_inner or 4 * config.n_embd) != 4 * config.n_embd:
        yield f"n_inner {4 * config.n_embd}, not {config.n_inner}"
    if getattr(config, "use_bidirectional_attention", False):
        yield "attention to earlier tokens only"


def write_numbers(writer: Any, family: Family) -> None:
    """Adds the numbers of a model's shape to a GGUF file."""
    config = family.config
    writer.add_context_length(family.context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if family.architecture == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(family.head_size)
    writer.add_value_length(family.head_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(family.num_rotated)
    writer.add_rope_freq_base(float(family.rope.get("rope_theta", 10000.0)))
    _write_rope(writer, family)
    if family.is_windowed:
        _write_windows(writer, family)


def _write_rope(writer: Any, family: Family) -> None:
    import gguf

    if family.rope_type == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(family.rope["factor"]))
    elif family.rope_type in ("yarn", "longrope"):
        # The frequencies come as tensors; llama.cpp multiplies sine and cosine by this.
        writer.add_rope_scaling_attn_factors(_frequencies(family)[1])
    if family.rope_type == "longrope":
        writer.add_rope_scaling_orig_ctx_len(_original_context(family))


def _write_windows(writer: Any, family: Family) -> None:
    config = family.config
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, key, None) is not None:
            getattr(writer, f"add_{key}")(float(getattr(config, key)))
    if family.window is not None:
        kinds = [kind == "sliding_attention" for kind in config.layer_types]
        local = (config.rope_parameters or {}).get("sliding_attention")
        writer.add_sliding_window(family.window)
        writer.add_sliding_window_pattern(kinds)
        if local:
            writer.add_rope_freq_base_swa(float(local["rope_theta"]))


def extra_tensors(family: Family) -> dict[str, Floats]:
    """Returns the tensors that no file of Hugging Face holds: how each frequency is stretched."""
    if family.rope_type in ("llama3", "yarn"):
        plain = _plain_frequencies(family)
        return {"rope_freqs.weight": (plain / _frequencies(family)[0]).astype(np.float32)}
    if family.rope_type == "longrope":
        return {
            f"rope_factors_{kind}.weight": np.array(family.rope[f"{kind}_factor"], np.float32)
            for kind in ("long", "short")
        }
    return {}


def _frequencies(family: Family) -> tuple[npt.NDArray[np.float64], float]:
    """Returns transformers' frequencies, and what it multiplies sine and cosine by."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    frequencies, factor = ROPE_INIT_FUNCTIONS[family.rope_type](family.config, "cpu")
    return frequencies.double().numpy(), float(factor)


def _plain_frequencies(family: Family) -> npt.NDArray[np.float64]:
    places = np.arange(0, family.num_rotated, 2, dtype=np.float64)
    frequencies: npt.NDArray[np.float64] = float(family.rope["rope_theta"]) ** (
        -places / family.num_rotated
    )
    return frequencies


def _original_context(family: Family) -> int:
    given = family.rope.get("original_max_position_embeddings")
    return int(given or family.config.original_max_position_embeddings)


def convert(family: Family, name: str, values: Floats) -> Floats:
    """Returns a tensor of Hugging Face as llama.cpp's graph wants it."""
    graph, config = family.architecture, family.config
    if graph == "llama" and name.endswith(("q_proj.weight", "q_proj.bias")):
        return _interleave(values, config.num_attention_heads)
    if graph == "llama" and name.endswith(("k_proj.weight", "k_proj.bias")):
        return _interleave(values, config.num_key_value_heads)
    if graph.startswith("gemma") and name.endswith("norm.weight"):
        return values + 1
    if graph == "gpt2" and values.ndim == 2 and ".h." in name:
        return np.ascontiguousarray(values.T)
    return values


def _interleave(values: Floats, num_heads: int) -> Floats:
    """Returns rows in the order of pairs: llama.cpp rotates number 2i of a head with 2i + 1,
    transformers number i with i + half."""
    half = len(values) // num_heads // 2
    return values.reshape(num_heads, 2, half, -1).swapaxes(1, 2).reshape(values.shape)
