"""A student is tried before items share rows: it must tell them apart, or it is not packed.

The models are tiny and random; their leaks are small, and bf16 rounds more than that.
"""

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from retort.stages.train.objective import packs_exactly
from tests.stages.test_objective import FAMILIES, tiny
from tests.support import zoo
from tests.unit.test_packing import VOCABULARY, open_model

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
LAYERS = {"intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
ODD = {
    "Mamba": {"state_size": 4},
    "Bloom": {"n_head": 2},
    "Lfm2": {**LAYERS, "layer_types": ["conv", "full_attention"]},
    "OPT": {"ffn_dim": 32, "num_attention_heads": 2, "word_embed_proj_dim": 32},
}


@pytest.mark.parametrize("family", [*FAMILIES, *zoo.FAMILIES])
def test_every_named_family_is_found_to_pack_exactly_in_fp32_and_bf16(family):
    model = open_model(family)
    probe = torch.randint(3, VOCABULARY, (1, 40), generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.bfloat16):
        found, note = packs_exactly(model.to(dtype), probe)
        assert found and "do not attend to one another" in note and model.training


@pytest.mark.parametrize("family", ODD)
def test_a_family_whose_items_would_see_one_another_is_refused_in_fp32_and_bf16(family):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SMALL, **ODD[family])
    model = AutoModelForCausalLM.from_config(config)
    for dtype in (torch.float32, torch.bfloat16):
        found, note = packs_exactly(model.to(dtype), torch.arange(3, 43)[None])
        assert not found and f"not packed: in {family}ForCausalLM items" in note


def test_a_family_that_attends_within_chunks_of_a_row_is_refused():
    config = transformers.Llama4TextConfig(
        **SMALL, **LAYERS, head_dim=16, num_local_experts=2, intermediate_size_mlp=64
    )
    model = AutoModelForCausalLM.from_config(config)
    found, note = packs_exactly(model, torch.arange(3, 43)[None])
    assert not found and "attends within chunks" in note


class Own(nn.Module):
    """A model of someone's own, over GPT-2: by `way` what it does with positions."""

    def __init__(self, way: str):
        super().__init__()
        self.way, self.inner = way, tiny("GPT2")
        self.config = self.inner.config

    def get_input_embeddings(self):
        return self.inner.get_input_embeddings()

    def forward(self, input_ids: Tensor, use_cache: bool, position_ids: Tensor | None = None):
        if position_ids is None:
            return self.inner(input_ids=input_ids)
        if self.way == "refuses":
            raise ValueError("no positions, please")
        item_BT = (position_ids == 0).cumsum(dim=1)
        own_B1TT = (item_BT[:, None, :, None] == item_BT[:, None, None]).tril()
        return self.inner(input_ids=input_ids, attention_mask=own_B1TT)  # positions go on


def test_items_that_stay_apart_but_lose_their_positions_are_refused_with_the_gap():
    found, note = packs_exactly(Own("counts on"), torch.arange(3, 43)[None])
    assert not found and "lose positions" in note and "gradient across 0," in note


def test_positions_that_a_model_does_not_take_are_a_reason_and_no_crash():
    found, note = packs_exactly(Own("refuses"), torch.arange(3, 43)[None])
    assert not found and "not packed: Own could not be tried" in note and "please" in note
