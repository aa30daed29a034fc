"""How much memory attention's keys and values can take, from a model's configuration alone.

An upper bound, so that no request ever waits for room. It is worth knowing: memory beyond it would
only be cleared, which costs a start seconds, and hide what the model itself takes.
"""

from retort.engines import Settings
from retort.records import JsonObject
from retort.store import model_folder

# vLLM's tokens a block on a CPU, the unit in which memory is given to a sequence.
BLOCK_TOKENS = 128
SPARE = 1.25
# How the knobs of layers begin whose state is another than keys and values.
OTHERS = ("mamba", "ssm", "linear", "conv", "rwkv")


def cache_bytes(settings: Settings, dtype: str) -> int:
    """Returns the bytes for keys and values on a CPU: what all sequences together can take at full
    length, and at most `kv_cache_gib`. `dtype` is the precision that they are kept in."""
    runtime, folder = settings.runtime, model_folder.locate(settings.model, "model")
    most = int(runtime["kv_cache_gib"]) << 30
    config = model_folder.text_config(folder)
    length = settings.max_model_len or config.get("max_position_embeddings")
    numbers = _numbers_of_token(config)
    if not length or not numbers:
        return most
    blocks = runtime["max_num_seqs"] * -(-length // BLOCK_TOKENS) + 1
    of_number = 4 if dtype in ("float32", "float") else 2
    return min(most, int(SPARE * blocks * BLOCK_TOKENS * numbers * of_number))


def _numbers_of_token(config: JsonObject) -> int | None:
    """Returns how many numbers are kept of a token, in all layers; None where that is not known."""
    kinds = [*config, *(config.get("layer_types") or [])]
    heads, layers = config.get("num_attention_heads"), config.get("num_hidden_layers")
    if any(str(kind).startswith(OTHERS) for kind in kinds):
        return None
    if not (heads and layers and config.get("hidden_size")):
        return None
    width = config.get("head_dim") or config["hidden_size"] // heads
    return 2 * int(layers) * int(config.get("num_key_value_heads") or heads) * int(width)
