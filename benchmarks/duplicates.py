"""Duplicates and leaks: what is found, what is wrongly found, how fast, and in how much memory.

`python -m benchmarks.duplicates [rows]` runs so many rows (1,000,000) and a tenth of them, each in
a process of its own, against 10,000 held-out rows, and then 20,000 rows beside datasketch.
"""

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from benchmarks import Measure, show
from retort import processes
from retort.data.duplicates import Texts, find_duplicates, find_leaks
from retort.spec.prepare import Decontaminate, Deduplicate

ROWS, HELD_OUT, PEER_ROWS = 1_000_000, 10_000, 20_000
WORDS, VOCABULARY, COMMON_SENTENCES = 60, 100_000, 2_000
CHUNK = 10_000
SIMILARITY = Deduplicate().similarity
# Of each thousand rows so many are made of others.
PLANTED = {"near": 20, "verbatim": 5, "inside": 5, "edited": 5}
Words = npt.NDArray[np.int32]
Planted = dict[str, set[int]]


def vocabulary() -> list[str]:
    """Returns pronounceable words, the most frequent ones the shortest."""
    syllables = [consonant + vowel for consonant in "bdfghklmnprstvz" for vowel in "aeiou"]
    words = list(syllables)
    for prefix in words:
        if len(words) >= VOCABULARY:
            break
        words += [prefix + syllable for syllable in syllables]
    return words[:VOCABULARY]


class Source:
    """Draws rows of sentences: words by Zipf's law, and a sentence in eight a well-known one."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self._words = self._zipf(VOCABULARY)
        self._sentences = self._zipf(COMMON_SENTENCES)
        drawn = np.random.default_rng(0).random((COMMON_SENTENCES, 12))
        self._common = np.searchsorted(self._words, drawn).astype(np.int32)

    @staticmethod
    def _zipf(count: int) -> npt.NDArray[np.float64]:
        totals = np.cumsum(1 / np.arange(1, count + 1))
        shares: npt.NDArray[np.float64] = totals / totals[-1]
        return shares

    def rows(self, count: int) -> Words:
        """Returns the word numbers of rows."""
        shape = (count, WORDS // 12, 12)
        words = np.searchsorted(self._words, self.random.random(shape)).astype(np.int32)
        known = self.random.random(shape[:2]) < 1 / 8
        which = np.searchsorted(self._sentences, self.random.random(int(known.sum())))
        words[known] = self._common[which]
        return words.reshape(count, WORDS)

    def edited(self, rows: Words) -> Words:
        """Returns rows with one word in twenty changed."""
        rows = rows.copy()
        for row in rows:
            places = self.random.choice(len(row), len(row) // 20, replace=False)
            drawn = np.searchsorted(self._words, self.random.random(len(places)))
            row[places] = np.where(drawn == row[places], (drawn + 1) % VOCABULARY, drawn)
        return rows


def chunks(num_rows: int, held_out: Words, planted: Planted) -> Iterator[list[str]]:
    """Yields rows as texts, and writes down which of them were planted."""
    names, source = np.array(vocabulary(), dtype=object), Source(2)
    for start in range(0, num_rows, CHUNK):
        rows = list(source.rows(min(CHUNK, num_rows - start)))
        free = source.random.permutation(np.arange(1, len(rows)))
        # Copies are made of earlier rows that stay as they are.
        stays = np.sort(np.append(0, free[len(rows) * sum(PLANTED.values()) // 1000 :]))
        for kind, per_mille in PLANTED.items():
            places, free = np.split(free, [len(rows) * per_mille // 1000])
            earlier = source.random.integers(np.searchsorted(stays, places))
            originals = [rows[at] for at in stays[earlier]]
            held = held_out[source.random.integers(len(held_out), size=len(places))]
            changed = source.edited(np.stack(originals) if kind == "near" else held)
            for place, was, own, new in zip(places, originals, held, changed, strict=True):
                longer = [was, own, rows[place]]
                made = {"near": new, "edited": new, "verbatim": own}.get(kind)
                rows[place] = np.concatenate(longer) if made is None else made
                planted[kind].add(start + int(place))
        yield [" ".join(names[row].tolist()) for row in rows]


def run(num_rows: int) -> dict[str, float]:
    """Returns what one run found, its seconds of adding and finding, and the peak in GiB."""
    held_rows = Source(1).rows(HELD_OUT)
    names = np.array(vocabulary(), dtype=object)
    planted: Planted = {kind: set() for kind in PLANTED}
    texts, held_out = Texts(), Texts()
    for row in held_rows:
        held_out.add(" ".join(names[row].tolist()))
    seconds, cpu_seconds = {"add": 0.0}, 0.0
    for chunk in chunks(num_rows, held_rows, planted):
        started, busy = time.perf_counter(), time.process_time()
        for text in chunk:
            texts.add(text)
        cpu_seconds += time.process_time() - busy
        seconds["add"] += time.perf_counter() - started
    started, busy = time.perf_counter(), time.process_time()
    duplicates = find_duplicates(texts, Deduplicate())
    seconds["duplicates"] = time.perf_counter() - started
    leaks = find_leaks(texts, held_out, Decontaminate(), numbers_matter=True)
    seconds["leaks"] = time.perf_counter() - started - seconds["duplicates"]
    cpu_seconds += time.process_time() - busy
    copies, leaking = {pair.index for pair in duplicates}, {pair.index for pair in leaks}
    # Two rows may leak the same held-out row, which makes the second a copy too.
    clean = set(range(num_rows)).difference(*planted.values())
    peak_kib = processes.peak_host_memory_bytes() // 1024
    return {
        "near_found": len(copies & planted["near"]) / len(planted["near"]),
        "verbatim_found": len(leaking & planted["verbatim"]) / len(planted["verbatim"]),
        "inside_found": len(leaking & planted["inside"]) / len(planted["inside"]),
        "edited_found": len(leaking & planted["edited"]) / len(planted["edited"]),
        "false_duplicates": len(copies & clean) / len(clean),
        "false_leaks": len(leaking & clean) / len(clean),
        "seconds": sum(seconds.values()),
        "cpu_seconds": cpu_seconds,
        "peak_gib": peak_kib / (1 << 20),
        **{f"seconds_{name}": value for name, value in seconds.items()},
    }


def run_peer() -> dict[str, float]:
    """Returns what datasketch finds of the same rows with the same sequences, and how fast."""
    peer = importlib.import_module("datasketch")
    planted: Planted = {kind: set() for kind in PLANTED}
    rows = [row for chunk in chunks(PEER_ROWS, Source(1).rows(1000), planted) for row in chunk]
    started = time.process_time()
    texts = Texts()
    for row in rows:
        texts.add(row)
    ours = {pair.index for pair in find_duplicates(texts, Deduplicate())}
    between = time.process_time()
    theirs = set()
    index = peer.MinHashLSH(threshold=SIMILARITY, num_perm=64)
    for number, row in enumerate(rows):
        words = row.split()
        sketch = peer.MinHash(num_perm=64)
        sketch.update_batch([" ".join(words[at : at + 3]).encode() for at in range(len(words) - 2)])
        if index.query(sketch):
            theirs.add(number)
        else:
            index.insert(number, sketch)
    ended = time.process_time()
    near = planted["near"]
    return {
        "rows_per_cpu_second": PEER_ROWS / (between - started),
        "peer_rows_per_cpu_second": PEER_ROWS / (ended - between),
        "found": len(ours & near) / len(near),
        "peer_found": len(theirs & near) / len(near),
    }


def apart(argument: str) -> dict[str, float]:
    """Returns the result of a run in a process of its own, which has its own peak of memory."""
    command = [sys.executable, "-m", "benchmarks.duplicates", "--one", argument]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    print(argument, {name: round(value, 5) for name, value in result.items()}, flush=True)
    return result


def main() -> None:
    """Prints each run, then the measures."""
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(run_peer() if sys.argv[2] == "peer" else run(int(sys.argv[2]))))
        return
    num_rows = int(sys.argv[1]) if sys.argv[1:] else ROWS
    peer, tenth, whole = apart("peer"), apart(str(num_rows // 10)), apart(str(num_rows))
    faster = peer["rows_per_cpu_second"] / peer["peer_rows_per_cpu_second"]
    # Of the processor: others may use the machine at the same time.
    ratio = whole["cpu_seconds"] / tenth["cpu_seconds"]
    most_seconds = 100 * num_rows / ROWS
    least = {"near": 0.95, "verbatim": 0.99, "inside": 0.99, "edited": 0.9}
    measures: list[Measure] = [
        (
            f"duplicates.{name}_found",
            whole[f"{name}_found"],
            target,
            whole[f"{name}_found"] >= target,
        )
        for name, target in least.items()
    ]
    measures += [
        (f"duplicates.{name}", value, target, value <= target)
        for name, value, target in (
            ("false_ratio", whole["false_duplicates"], 0.001),
            ("false_leak_ratio", whole["false_leaks"], 0.001),
            ("seconds", whole["seconds"], most_seconds),
            ("peak_gib", whole["peak_gib"], 1.2),
            ("ratio_to_a_tenth", ratio, 11),
        )
    ]
    measures.append(("duplicates.times_datasketch", faster, 5, faster >= 5))
    show(measures)


if __name__ == "__main__":
    main()
