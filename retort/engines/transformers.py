"""The transformers engine: plain batched generation, for machines where vLLM cannot be installed.

Batches are padded on the left; the signal is read from the model's own logits of that batch.
"""

# B batch, T time, V vocabulary, K teacher top-k
import time
from collections.abc import Iterable, Iterator
from itertools import groupby, islice, starmap
from typing import Any

import numpy as np

from retort.data import encoding
from retort.engines import Answer, Request, Settings, Timing, cut_at, take_requests, timed_alone
from retort.engines._local import TokenizedRequest, local_raw, parse_local, tokenize
from retort.processes.libraries import (
    MODELS,
    import_all,
    lean_imports,
    resolve_device,
    stay_offline,
)
from retort.store.signals import captured

GIVES_SIGNAL = SCORES = CONTINUES = True
REMOTE = False
PENALTIES = False
parse = parse_local
# Texts that are scored are put together by their length among so many; a batch has so many tokens
# at most, and its width is a multiple of the last.
AMONG, TOKENS, STEP = 512, 2048, 16


def open_engine(settings: Settings) -> "TransformersEngine":
    """Returns an engine with the model loaded in inference mode."""
    stay_offline(settings.model)
    with lean_imports():
        return TransformersEngine(settings)


def import_libraries() -> None:
    """Imports most of what opening an engine does: 4 CPU seconds."""
    import_all(*MODELS)


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
        self._has_experts = "expert" in model.config.to_json_string()
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
        """Yields the signal of existing answers, those of about one length together.

        A row's length alone decides the shape of its batch, and empty rows fill it. So its scores
        are the same in every bit whatever else is asked, also in a run that goes on after a kill.
        """
        source, more = iter(requests), True
        while more:
            batch, more = take_requests(source, AMONG)
            rows, answers = tokenize(self._tokenizer, batch, self._max_length)
            yield from answers
            for width, alike in groupby(sorted(rows, key=self._width), key=self._width):
                while few := list(islice(alike, self._num_at_once(width))):
                    yield from self._score(few, width)

    def _width(self, row: TokenizedRequest) -> int:
        return min(-(-len(row.ids) // STEP) * STEP, self._max_length)

    def _num_at_once(self, width: int) -> int:
        """Returns how many rows of a width are scored at once. It is one for a model with experts:
        how an expert computes one token depends on the number of tokens that it is given."""
        return 1 if self._has_experts else max(1, TOKENS // width)

    def _score(self, rows: list[TokenizedRequest], width: int) -> Iterator[Answer]:
        torch, pad = self._torch, self._tokenizer.pad_token_id
        ids_BT = torch.full((self._num_at_once(width), width), pad)
        for index, row in enumerate(rows):
            ids_BT[index, : len(row.ids)] = torch.tensor(row.ids)
        ids_BT = ids_BT.to(self._model.device)
        with torch.inference_mode():
            # What follows a row changes nothing of it, so that no mask is needed.
            logits_BTV = self._model(ids_BT).logits
        self.steps += 1
        for index, row in enumerate(rows):
            start, end = len(row.prompt_ids), len(row.ids)
            top = self._top_k(logits_BTV[index, start - 1 : end - 1], ids_BT[index, start:end])
            text = self._tokenizer.decode(row.answer_ids, skip_special_tokens=True)
            raw = local_raw(row.prompt_ids, row.answer_ids, "stop", text)
            yield Answer(row.request.id, raw, captured(*top))

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
        top: list[Any] = []
        if settings.top_k:
            steps = zip(out.logits, out.sequences[:, width:].T, strict=True)
            top = [
                np.stack(part, axis=1) for part in zip(*starmap(self._top_k, steps), strict=True)
            ]
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

    def _top_k(self, logits_NV: Any, targets_N: Any) -> tuple[Any, ...]:
        """Returns a signal's arrays of N tokens."""
        logprobs_NV = self._torch.log_softmax(logits_NV.float(), dim=-1)
        values_NK, ids_NK = logprobs_NV.topk(self._settings.top_k, dim=-1)
        chosen_N = logprobs_NV.gather(1, targets_N[:, None])[:, 0]
        ids, values, targets, chosen = (
            part.cpu().numpy() for part in (ids_NK, values_NK, targets_N, chosen_N)
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
