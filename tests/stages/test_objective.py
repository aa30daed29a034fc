"""The objective of real families, chunked and on the model's own logits, alone and in processes."""

import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest
import torch
import transformers
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from retort import losses
from retort.losses import Target
from retort.stages.train.head import Term
from retort.stages.train.objective import Objective, agreement, trusted_head
from tests.conftest import ROOT, environment, free_port

K = 8
TERMS = [
    Term("cross_entropy", losses.cross_entropy, 0.2),
    Term("jsd", partial(losses.jsd, temperature=2.0), 0.8),
    Term("agreement", agreement, 0.0),
]
FAMILIES = {
    "Llama": {"tie_word_embeddings": True},
    "Qwen3": {"head_dim": 8},
    "Phi3": {"pad_token_id": 0},
    "Gemma2": {"head_dim": 8, "final_logit_softcapping": 2.0},
    "Granite": {"logits_scaling": 4.0},
    "Cohere": {"logit_scale": 0.25},
    "GPT2": {"n_embd": 16, "n_layer": 1, "n_head": 2},
}


def tiny(family: str, **more) -> nn.Module:
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    sizes = {} if family == "GPT2" else sizes
    config = getattr(transformers, f"{family}Config")(
        vocab_size=64, bos_token_id=1, eos_token_id=2, **sizes, **FAMILIES[family], **more
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def batch() -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], Target]:
    """Two rows of six and nine tokens; the last three of each are supervised."""
    torch.manual_seed(2)
    ids, seen = torch.randint(3, 60, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    seen[0, 6:] = 0
    places = (torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([3, 4, 5, 6, 7, 8]))
    logprobs, top = torch.log_softmax(2 * torch.randn(6, 60), 1).topk(K, dim=1)
    tail = (1 - logprobs.exp().sum(1)).log()
    return ids, seen, places, Target(torch.randint(0, 60, (6,)), top, logprobs, tail)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_learns_the_same_with_the_head_and_with_its_own_logits(family):
    ids, seen, places, target = batch()
    model = tiny(family)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    head, note = trusted_head(model, 60, ids, seen)
    assert head is not None and "run chunked" in note and model.training
    found = []
    for way in (head, None):
        model.zero_grad()
        sums = Objective(model, way, TERMS, 60)(ids, seen, places, target)
        sums.total_.backward()
        found.append((sums.values_L, [p.grad.clone() for p in model.parameters()]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)
    whole = [torch.cat([g.flatten() for g in gradients]) for _, gradients in found]
    assert (whole[0] - whole[1]).norm() <= 1e-5 * whole[1].norm()


def test_a_model_that_does_more_than_its_head_is_refused_with_the_reason():
    ids, seen, *_ = batch()
    model = tiny("Cohere")
    model.config.logit_scale = None  # what the model does no longer stands in its configuration
    head, note = trusted_head(model, 60, ids, seen)
    assert head is None
    assert "CohereForCausalLM does more than its head" in note


def row(rank: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], Target]:
    """One row of the batch, as a rank of its own would get it."""
    ids, seen, (_, times), target = batch()
    part = slice(3 * rank, 3 * rank + 3)
    places = (torch.zeros(3, dtype=torch.long), times[part])
    return ids[rank : rank + 1], seen[rank : rank + 1], places, target.part(part.start, part.stop)


def objective() -> Objective:
    """Llama with tied embeddings, and its chunked head."""
    model = tiny("Llama")
    head, _ = trusted_head(model, 60, *batch()[:2])
    assert head is not None and head.project.weight is model.model.embed_tokens.weight
    return Objective(model, replace(head, chunk_tokens=2), TERMS, 60)


def as_one_of_two(rank: int, port: int) -> dict[str, dict[str, Tensor]]:
    """A rank's gradients of one step, by parameter, under DDP and under FSDP2."""
    where, wait = f"tcp://127.0.0.1:{port}", timedelta(seconds=90)
    distributed.init_process_group("gloo", where, wait, world_size=2, rank=rank)
    plain, sharded = objective(), objective()
    mesh = init_device_mesh("cpu", (2,))  # a GPU of the machine would be taken by itself
    fully_shard(sharded.model.model.layers[0], mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    found = {}
    for name, wrapped in (("ddp", DistributedDataParallel(plain)), ("fsdp", sharded)):
        # Six tokens in the whole step; the wrappers average over the two ranks.
        (wrapped(*row(rank)).total_ / 6 * 2).backward()
        own = wrapped.module if name == "ddp" else wrapped
        found[name] = {key: p.grad for key, p in own.named_parameters()}
    found["fsdp"] = {key: gradient.full_tensor() for key, gradient in found["fsdp"].items()}
    distributed.barrier()  # neither leaves while the other still talks to it
    distributed.destroy_process_group()
    return found


def test_two_processes_under_ddp_and_fsdp_learn_what_one_does():
    port = free_port()
    command = [sys.executable, "-m", "tests.stages.test_objective", str(port)]
    other = subprocess.Popen(command, cwd=ROOT, env=environment())
    try:
        found = as_one_of_two(0, port)
        assert other.wait(timeout=60) == 0
    finally:
        other.kill()
    alone = objective()
    (alone(*batch()).total_ / 6).backward()
    for gradients in found.values():
        for key, parameter in alone.named_parameters():
            torch.testing.assert_close(gradients[key], parameter.grad, rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    as_one_of_two(1, int(sys.argv[1]))
