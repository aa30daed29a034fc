"""The ONNX engine: onnxruntime-genai, which answers with a student exported to ONNX.

Prompts go in as token ids. A batch is padded on the right, where the runtime leaves the padding out
by its id; a prompt that holds this id runs alone.
"""

# B batch, T time, V vocabulary, K top-k
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retort.data import encoding
from retort.engines import Answer, Request, Settings, Timing, cut_at, take_requests, timed_alone
from retort.engines._local import TokenizedRequest, local_raw, parse_local, tokenize
from retort.errors import SpecError
from retort.processes.libraries import lean_imports, stay_offline
from retort.store.signals import captured

GIVES_SIGNAL = True
SCORES = CONTINUES = REMOTE = PENALTIES = TORCH = False
parse = parse_local

# The runtime gives the logits of all tokens of the prompts at once, 4 bytes each.
MOST_LOGITS = 1 << 28
MOST_SEQUENCES = 32  # the runtime refuses larger batches
Floats = npt.NDArray[np.float32]


def open_engine(settings: Settings) -> "OnnxEngine":
    """Returns an engine with the export loaded. Raises `SpecError` without the package."""
    stay_offline(settings.model)
    with lean_imports("torch"):
        return OnnxEngine(settings)


@dataclass
class _Row:
    """A request that is answered, and its answer so far; `room` is how many tokens it may have."""

    request: TokenizedRequest
    room: int
    ids: list[int] = field(default_factory=list)
    signal: list[tuple[Any, ...]] = field(default_factory=list)  # of each token, if it is wanted
    reason: str = ""


class OnnxEngine:
    """Holds the loaded export; ended with its process. `steps` counts decoded tokens."""

    def __init__(self, settings: Settings):
        try:
            import onnxruntime_genai
        except ImportError:
            raise SpecError(
                "engine onnx needs onnxruntime-genai: pip install 'retort[export]'"
            ) from None
        onnxruntime_genai.disable_telemetry_events()
        self.steps = 0
        self._first_token_at: float | None = None  # on the monotonic clock
        self._og, self._settings = onnxruntime_genai, settings
        self._tokenizer = encoding.load_tokenizer(settings.model)
        config = json.loads(Path(settings.model, "genai_config.json").read_text(encoding="utf-8"))
        described = config["model"]
        self._model = onnxruntime_genai.Model(self._configuration())
        self._context = int(described["context_length"])
        self._max_length = min(settings.max_model_len or self._context, self._context)
        self._pad_id = int(described["pad_token_id"])
        self._vocabulary = int(described["vocab_size"])
        ends = described["eos_token_id"]
        self._end_ids = {*(ends if isinstance(ends, list) else [ends])}
        if self._tokenizer.eos_token_id is not None:
            self._end_ids.add(self._tokenizer.eos_token_id)
        self.facts = {
            "engine": "onnx",
            "engine_version": onnxruntime_genai.__version__,
            "dtype": _quantization(settings.model),
            "max_model_len": self._max_length,
            "vocabulary": self._vocabulary,
            "logprobs_mode": "raw_logprobs",
        }

    def _configuration(self) -> Any:
        """Returns the runtime's settings: as many threads as this process may use."""
        threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
        config = self._og.Config(self._settings.model)
        options = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        return config

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Answer]:
        """Yields the answers batch by batch."""
        source, more = iter(requests), True
        size = min(self._settings.runtime["max_num_seqs"], MOST_SEQUENCES)
        while more:
            taken, more = take_requests(source, size)
            fitting, answers = tokenize(self._tokenizer, taken, self._max_length)
            yield from answers
            for batch in self._batches(fitting):
                self._fill(batch)
                yield from map(self._answer, batch)

    def score(self, requests: Iterable[Request | None]) -> Iterator[Answer]:
        """Is never called: the engine does not score."""
        raise NotImplementedError

    def timed(self, request: Request) -> Timing:
        """Returns the latency of one request; no first token if the request is refused."""
        self._first_token_at = None
        return timed_alone(self.generate, request, lambda: self._first_token_at)

    def forget(self) -> None:
        """Does nothing: no prompt is cached."""

    def _batches(self, requests: list[TokenizedRequest]) -> Iterator[list[_Row]]:
        """Yields rows that can run together, all requests in their order."""
        batch: list[_Row] = []
        for request in requests:
            wanted = request.request.max_tokens or self._settings.max_tokens
            row = _Row(request, min(wanted, self._max_length - len(request.prompt_ids)))
            if batch and not self._fit([*batch, row]):
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _fit(self, batch: list[_Row]) -> bool:
        """Whether rows can run together: the padding hides no token, and the context holds all."""
        width = max(len(row.request.prompt_ids) for row in batch)
        room = max(row.room for row in batch)
        padding = any(self._pad_id in row.request.prompt_ids for row in batch)
        is_small = len(batch) * width * self._vocabulary <= MOST_LOGITS
        return not padding and width + room <= self._context and is_small

    def _fill(self, batch: list[_Row]) -> None:
        """Answers rows together: each step gives every row a token."""
        generator = self._started(batch)
        while any(not row.reason for row in batch):
            logits_BV = generator.get_logits().reshape(len(batch), -1)
            generator.generate_next_token()
            self.steps += 1
            if self._first_token_at is None:
                self._first_token_at = time.monotonic()
            tokens = generator.get_next_tokens().tolist()
            for row, token, logits_V in zip(batch, tokens, logits_BV, strict=True):
                if not row.reason:
                    row.ids.append(token)
                    row.reason = self._reason(row)
                    if self._settings.top_k:
                        row.signal.append(_top_k(logits_V, token, self._settings.top_k))

    def _started(self, batch: list[_Row]) -> Any:
        """Returns the runtime's generator with all prompts read."""
        settings, width = self._settings, max(len(row.request.prompt_ids) for row in batch)
        ids_BT = np.full((len(batch), width), self._pad_id, dtype=np.int32)
        for ids_T, row in zip(ids_BT, batch, strict=True):
            ids_T[: len(row.request.prompt_ids)] = row.request.prompt_ids
        parameters = self._og.GeneratorParams(self._model)
        greedy = settings.temperature == 0
        sampling = {"temperature": settings.temperature, "random_seed": settings.seed}
        parameters.set_search_options(
            batch_size=len(batch),
            max_length=width + max(row.room for row in batch),
            do_sample=not greedy,
            repetition_penalty=1.0,
            min_length=0,
            top_k=0,
            top_p=settings.top_p,
            **({} if greedy else sampling),
        )
        generator = self._og.Generator(self._model, parameters)
        generator.append_tokens(ids_BT)
        return generator

    def _reason(self, row: _Row) -> str:
        """Returns why an answer ends with its last token, or nothing."""
        if row.ids[-1] in self._end_ids:
            return "stop"
        if self._settings.stop and cut_at(text := self._text(row), self._settings.stop) != text:
            return "stop"
        return "length" if len(row.ids) == row.room else ""

    def _text(self, row: _Row) -> str:
        return str(self._tokenizer.decode(row.ids, skip_special_tokens=True))

    def _answer(self, row: _Row) -> Answer:
        text = cut_at(self._text(row), self._settings.stop)
        raw = local_raw(row.request.prompt_ids, row.ids, row.reason, text)
        signal = None
        if self._settings.top_k:
            signal = captured(*map(np.stack, zip(*row.signal, strict=True)))
        return Answer(row.request.request.id, raw, signal)


def _quantization(folder: str) -> str:
    """Returns how most weights of an export are stored, from its graph."""
    import onnx

    graph = onnx.load(f"{folder}/model.onnx", load_external_data=False).graph
    blocks = [node for node in graph.node if node.op_type == "MatMulNBits"]
    bits = [a.i for node in blocks for a in node.attribute if a.name == "bits"]
    return f"int{min(bits)}" if bits else "float32"


def _top_k(logits_V: Any, token: int, k: int) -> tuple[Any, ...]:
    """Returns what a signal has of one token: the K largest log-probabilities, and its own."""
    logprobs_V = logits_V.astype(np.float32) - logits_V.max()
    logprobs_V -= np.log(np.exp(logprobs_V).sum())
    top_K = np.argpartition(-logprobs_V, min(k, len(logprobs_V)) - 1)[:k]
    top_K = top_K[np.argsort(-logprobs_V[top_K], kind="stable")].astype(np.int32)
    return top_K, logprobs_V[top_K], np.int32(token), logprobs_V[token]
