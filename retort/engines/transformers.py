"""The transformers engine: plain batched generation, for machines where vLLM cannot be installed.

Batches are padded on the left; the signal is read from the model's own logits of that batch.
"""

# B batch, T time, V vocabulary, K teacher top-k
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from retort.data import encoding
from retort.engines import Answer, Request, Settings, Timing, cut_at, take_requests, timed_alone
from retort.engines._local import TokenizedRequest, local_raw, parse_local, tokenize
from retort.processes.libraries import lean_imports, resolve_device, stay_offline
from retort.store.signals import captured

GIVES_SIGNAL = SCORES = CONTINUES = True
REMOTE = False
PENALTIES = False
parse = parse_local


def open_engine(settings: Settings) -> "TransformersEngine":
    """Returns an engine with the model loaded in inference mode."""
    stay_offline(settings.model)
    with lean_imports():
        return TransformersEngine(settings)


class TransformersEngine:
    """Holds the loaded model; ended with its process. `steps` counts decoded tokens."""

    def __init__(self, settings: Settings):
        import torch
        import transformers

        self.steps = 0
        self._first_token_at: float | None = None  # on the monotonic clock
        self._torch, self._settings = torch, settings
        self._tokenizer = encoding.load_tokenizer(settings.model)
        self._tokenizer.padding_side = "left"
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        model = _load(settings.model, settings.dtype)
        self._model = model.to(resolve_device(settings.runtime["device"])).eval()
        limit = int(getattr(model.config, "max_position_embeddings", 1 << 30))
        self._max_length = min(settings.max_model_len or limit, limit)
        self._end_ids = end_ids(self._model, self._tokenizer)
        torch.manual_seed(settings.seed)
        self.facts = {
            "engine": "transformers",
            "engine_version": transformers.__version__,
            "dtype": str(model.dtype).removeprefix("torch."),
            "max_model_len": self._max_length,
            "vocabulary": int(model.get_output_embeddings().weight.shape[0]),
            "logprobs_mode": "raw_logprobs",
        }

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Answer]:
        """Yields the answers batch by batch, in the order of the requests."""
        source, more = iter(requests), True
        while more:
            batch, more = take_requests(source, self._settings.runtime["max_num_seqs"])
            rows, answers = tokenize(self._tokenizer, batch, self._max_length)
            yield from answers
            if rows:
                yield from self._batch(rows)

    def timed(self, request: Request) -> Timing:
        """Returns the latency of one request; no first token if the request is refused."""
        self._first_token_at = None
        return timed_alone(self.generate, request, lambda: self._first_token_at)

    def forget(self) -> None:
        """Does nothing: no prompt is cached."""

    def reload(self, folder: str) -> None:
        """Takes the weights of another model of the same shape."""
        self._model.load_state_dict(_load(folder, self._model.dtype).state_dict())

    def score(self, requests: Iterable[Request | None]) -> Iterator[Answer]:
        """Yields the signal of existing answers, one forward pass each."""
        for request in filter(None, requests):
            rows, answers = tokenize(self._tokenizer, [request], self._max_length)
            yield from answers
            for row in rows:
                start = len(row.prompt_ids)
                with self._torch.inference_mode():
                    ids_1T = self._torch.tensor([row.ids], device=self._model.device)
                    logits_TV = self._model(ids_1T).logits[0, start - 1 : -1]
                self.steps += 1
                top = self._top_k(logits_TV[:, None], ids_1T[:, start:])
                text = self._tokenizer.decode(row.answer_ids, skip_special_tokens=True)
                signal = captured(*(part[0] for part in top))
                raw = local_raw(row.prompt_ids, row.answer_ids, "stop", text)
                yield Answer(request.id, raw, signal)

    def _batch(self, rows: list[TokenizedRequest]) -> Iterator[Answer]:
        torch, settings = self._torch, self._settings
        padded = self._tokenizer.pad(
            {"input_ids": [row.ids for row in rows]}, return_tensors="pt"
        ).to(self._model.device)
        width = padded["input_ids"].shape[1]
        room = [
            (row.request.max_tokens or settings.max_tokens) - len(row.answer_ids) for row in rows
        ]
        greedy = settings.temperature == 0
        sampling: dict[str, Any] = {"temperature": settings.temperature, "top_p": settings.top_p}
        sampling |= {"top_k": 0, "do_sample": True}
        if settings.top_p == 1 and all(row.request.seed is not None for row in rows):
            sampling = {"do_sample": False, "logits_processor": [self._seeded(rows, width)]}
        ends = {"stop_strings": list(settings.stop), "tokenizer": self._tokenizer}
        with torch.inference_mode():
            out = self._model.generate(
                **padded,
                max_new_tokens=min(max(room), self._max_length - width),
                return_dict_in_generate=True,
                output_logits=settings.top_k > 0,
                pad_token_id=self._tokenizer.pad_token_id,
                stopping_criteria=[self._count],
                **({"do_sample": False} if greedy else sampling),
                **(ends if settings.stop else {}),
            )
        new_ids = out.sequences[:, width:].tolist()
        top = self._top_k(out.logits, out.sequences[:, width:]) if settings.top_k else None
        for index, row in enumerate(rows):
            new, reason = self._cut(new_ids[index][: room[index]])
            ids = [*row.answer_ids, *new]
            whole = self._tokenizer.decode(ids, skip_special_tokens=True)
            text = cut_at(whole, settings.stop)
            reason = "stop" if text != whole else reason
            signal = captured(*(part[index, : len(new)] for part in top)) if top else None
            yield Answer(row.request.id, local_raw(row.prompt_ids, ids, reason, text), signal)

    def _seeded(self, rows: list[TokenizedRequest], width: int) -> Any:
        """Returns a logits processor by which the largest is a sample that only the request's seed
        decides, whatever else is in the batch.

        Source: the Gumbel-max trick, Maddison et al. 2014 (arXiv:1411.0030), section 2.
        """
        torch, temperature = self._torch, self._settings.temperature

        def with_noise(ids_BT: Any, logits_BV: Any) -> Any:
            step, noisy_BV = ids_BT.shape[1] - width, logits_BV.float() / temperature
            for index, row in enumerate(rows):
                random = torch.Generator().manual_seed(((row.request.seed or 0) << 20) + step)
                noise_V = torch.empty(noisy_BV.shape[1]).exponential_(generator=random)
                noisy_BV[index] -= noise_V.log().to(noisy_BV.device)
            return noisy_BV

        return with_noise

    def _count(self, ids_BT: Any, scores: Any, **_: Any) -> Any:
        """Counts a step, as a stopping criterion that never stops."""
        self.steps += 1
        if self._first_token_at is None:
            if ids_BT.is_cuda:  # the criterion runs before the token is computed
                self._torch.cuda.synchronize()
            self._first_token_at = time.monotonic()
        return self._torch.zeros(len(ids_BT), dtype=self._torch.bool, device=ids_BT.device)

    def _cut(self, ids: list[int]) -> tuple[list[int], str]:
        """Cuts a row after its first end token, which stays: the student learns it, too."""
        for index, token in enumerate(ids):
            if token in self._end_ids:
                return ids[: index + 1], "stop"
        return ids, "length"

    def _top_k(self, logits: Any, targets_BT: Any) -> tuple[Any, ...]:
        """Returns a signal's arrays, each with the batch first; `logits` are T times [B, V]."""
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


def _load(folder: str, dtype: Any) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Returns the ids that end an answer, from the generation config and the tokenizer."""
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return list(dict.fromkeys(i for i in [*ids, tokenizer.eos_token_id] if i is not None))
