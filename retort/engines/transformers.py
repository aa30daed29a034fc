"""The transformers engine: plain batched generation, for machines where vLLM cannot be installed.

Batches are padded on the left; the signal is read from the model's own scores of that batch.
"""

# B batch, T time, V vocabulary, K teacher top-k
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from retort import encoding
from retort.engines import Answer, Request, Settings
from retort.records import Response, ids_sha256
from retort.signals import Signal

GIVES_SIGNAL = True


def open_engine(settings: Settings) -> "TransformersEngine":
    """Returns an engine with the model loaded in inference mode."""
    if os.path.isdir(settings.model):
        os.environ["HF_HUB_OFFLINE"] = "1"
    return TransformersEngine(settings)


class TransformersEngine:
    """Holds the loaded model; ended with its process."""

    def __init__(self, settings: Settings):
        import torch
        import transformers

        device = settings.runtime["device"]
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._torch, self._settings = torch, settings
        self._tokenizer = encoding.load_tokenizer(settings.model)
        self._tokenizer.padding_side = "left"
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        model = transformers.AutoModelForCausalLM.from_pretrained(
            settings.model, dtype=settings.dtype
        )
        self._model = model.to(device).eval()
        limit = int(getattr(model.config, "max_position_embeddings", 1 << 30))
        self._max_length = min(settings.max_model_len or limit, limit)
        self._end_ids = end_ids(self._model, self._tokenizer)
        torch.manual_seed(settings.seed)
        self.facts = {
            "engine": "transformers",
            "engine_version": transformers.__version__,
            "dtype": str(model.dtype).removeprefix("torch."),
            "max_model_len": self._max_length,
            "logprobs_mode": "raw_logprobs",
        }

    def generate(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Yields the answers batch by batch, in the order of the requests."""
        waiting = iter(requests)
        while batch := list(islice(waiting, self._settings.runtime["max_num_seqs"])):
            rendered = encoding.render(self._tokenizer, [r.messages for r in batch])
            fitting: list[tuple[str, list[int]]] = []
            for request, ids in zip(batch, rendered, strict=True):
                if len(ids) >= self._max_length:
                    too_long = Response(
                        request.id, "", [], "prompt_too_long", len(ids), ids_sha256(ids)
                    )
                    yield too_long, None
                else:
                    fitting.append((request.id, ids))
            if fitting:
                yield from self._batch(fitting)

    def _batch(self, batch: list[tuple[str, list[int]]]) -> Iterator[Answer]:
        torch, settings = self._torch, self._settings
        padded = self._tokenizer.pad(
            {"input_ids": [ids for _, ids in batch]}, return_tensors="pt"
        ).to(self._model.device)
        width = padded["input_ids"].shape[1]
        greedy = settings.temperature == 0
        sampling = {} if greedy else {"temperature": settings.temperature, "top_p": settings.top_p}
        with torch.inference_mode():
            out = self._model.generate(
                **padded,
                do_sample=not greedy,
                max_new_tokens=min(settings.max_tokens, self._max_length - width),
                return_dict_in_generate=True,
                output_logits=settings.top_k > 0,
                pad_token_id=self._tokenizer.pad_token_id,
                **({} if greedy else {"top_k": 0}),
                **sampling,
            )
        new_ids = out.sequences[:, width:].tolist()
        top = self._top_k(out.logits, out.sequences[:, width:]) if settings.top_k else None
        for row, (example_id, prompt_ids) in enumerate(batch):
            ids, reason = self._cut(new_ids[row])
            text = self._tokenizer.decode(ids, skip_special_tokens=True)
            response = Response(
                example_id, text, ids, reason, len(prompt_ids), ids_sha256(prompt_ids)
            )
            signal = Signal(*(part[row, : len(ids)] for part in top)) if top else None
            yield response, signal

    def _cut(self, ids: list[int]) -> tuple[list[int], str]:
        """Ends a row at its first end token, which is kept: it is learned too."""
        for index, token in enumerate(ids):
            if token in self._end_ids:
                return ids[: index + 1], "stop"
        return ids, "length"

    def _top_k(self, logits: Any, targets_BT: Any) -> tuple[Any, ...]:
        torch = self._torch
        kept: list[tuple[Any, ...]] = []
        for step, logits_BV in enumerate(logits):
            logprobs_BV = torch.log_softmax(logits_BV.float(), dim=-1)
            values_BK, ids_BK = logprobs_BV.topk(self._settings.top_k, dim=-1)
            target_B1 = targets_BT[:, step : step + 1]
            kept.append(
                (ids_BK, values_BK, target_B1[:, 0], logprobs_BV.gather(1, target_B1)[:, 0])
            )
        ids, values, targets, chosen = (
            torch.stack(part, dim=1).cpu().numpy() for part in zip(*kept, strict=True)
        )
        return ids.astype(np.int32), values, targets.astype(np.int32), chosen


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Returns the ids that end an answer, from the generation config and the tokenizer."""
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return list(dict.fromkeys(i for i in [*ids, tokenizer.eos_token_id] if i is not None))
