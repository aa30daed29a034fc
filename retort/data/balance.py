"""Groups of rows: counts, a stratified sample, a cap, a split by hash, and weights.

Nothing here depends on the order of the rows or on a seed: the sha256 of an id decides, so that
rows added later do not move other rows to another split.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from retort.records import Example, chat_text

if TYPE_CHECKING:
    import numpy.typing as npt

    Numbers = npt.NDArray[Any]

NONE, ALL = "none", "all"
# In counts that are only shown, the groups beyond these are one group "(others)".
MOST_GROUPS = 64
# Clusters are fitted on at most so many rows and so many characters of each.
FITTED_ROWS, READ_CHARACTERS, CHUNK_ROWS, DIRECTIONS = 20_000, 2_000, 10_000, 32


def group_of(example: Example, by: str) -> str:
    """Returns the group of an example by "label", "metadata.KEY" or "auto".

    An example without a label or value is in group "none". "auto" is the label for a closed set of
    answers, and "all" otherwise. Raises ValueError for another `by`; for "cluster" see `clusters`.
    """
    if by == "label":
        return example.expected or NONE
    if by == "auto":
        return example.expected or ALL if example.options else ALL
    if by.startswith("metadata."):
        value = example.metadata.get(by.removeprefix("metadata."))
        return NONE if value is None else str(value)
    raise ValueError(f"balance.by: '{by}' names no group of one row; use label or metadata.KEY")


def text_of(example: Example) -> str:
    """Returns what the user says in an example, by which it is clustered."""
    return chat_text(turn for turn in example.messages if turn["role"] == "user")


def spread(groups: Iterable[str]) -> dict[str, int]:
    """Returns the number of rows of each group, largest first, equal ones by name."""
    counted = Counter(groups)
    return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))


def share(id: str) -> float:
    """Returns a number in [0, 1) made from an id: a split by hash is `share(content) < ratio`.

    It is independent of `pick` and `cap`, which hash with another salt.
    """
    digest = hashlib.sha256(b"split:" + id.encode(errors="surrogatepass")).digest()
    # 53 bits: with more the largest would round to 1.0.
    return (int.from_bytes(digest[:8]) >> 11) / 2**53


def largest(counts: Mapping[str, int], most: int = MOST_GROUPS) -> dict[str, int]:
    """Returns the largest counts, equal ones by name, and the sum of the rest as "(others)"."""
    others = counts.get("(others)", 0)
    named = [(name, count) for name, count in counts.items() if name != "(others)"]
    ordered = sorted(named, key=lambda item: (-item[1], item[0]))
    others += sum(count for _, count in ordered[most:])
    return dict(ordered[:most]) | ({"(others)": others} if others else {})


def pick(groups: Sequence[str], ids: Sequence[str], limit: int) -> list[bool]:
    """Returns which rows are in a stratified sample of `limit`: each group by its share.

    Shares are rounded by the largest remainder. Within a group the rows with the smallest hashes
    are taken, not the first rows: files are often sorted, and rows added later change little. A
    larger limit takes the same rows and more, except that rounding may give a group one row less
    (the Alabama paradox).
    """
    import numpy as np

    if limit >= len(ids):
        return [True] * len(ids)
    order, ranks, codes = _ranked(groups, ids)
    sizes = np.bincount(codes)
    exact = sizes * limit
    counts, remainders = exact // len(ids), exact % len(ids)
    # Of equal remainders the group with the smallest hash comes first, whatever its name.
    first = codes[order][ranks == 0]
    by_hash = np.empty_like(first)
    by_hash[np.argsort(_hashes([ids[row] for row in order[ranks == 0]]))] = np.arange(len(first))
    places = np.empty_like(first)
    places[first] = by_hash
    rounded_up = np.lexsort((places, -remainders))[: limit - int(counts.sum())]
    counts[rounded_up] += 1
    return _chosen(order, ranks < counts[codes[order]])


def cap(groups: Sequence[str], ids: Sequence[str], most: int) -> list[bool]:
    """Returns which rows are kept if each group keeps its `most` rows with the smallest hashes."""
    order, ranks, _ = _ranked(groups, ids)
    return _chosen(order, ranks < most)


def weights(groups: list[str], mode: Literal["none", "oversample", "weights"]) -> list[float]:
    """Returns how often an epoch shows each row; n is the size of the row's group.

    oversample: largest / n, every group is shown as often as the largest; weights: N / (G n), each
    of G groups gets the same share of N rows; none: 1.
    """
    sizes = Counter(groups)
    if mode == "none" or not sizes:
        return [1.0] * len(groups)
    each = max(sizes.values()) if mode == "oversample" else len(groups) / len(sizes)
    factors = {group: each / size for group, size in sizes.items()}
    return [factors[group] for group in groups]


def clusters(texts: Sequence[str], num_clusters: int) -> tuple[list[str], list[str]]:
    """Returns the name of each text's cluster, and all names, largest cluster first.

    A name is "cluster: " and the three words most specific to it. The clusters are k-means on 32
    dimensions (latent semantic analysis) of the TF-IDF of each text's first 2,000 characters,
    fitted on 20,000 evenly spaced rows. There are fewer if there are fewer different texts.
    """
    import numpy as np
    from threadpoolctl import threadpool_limits

    rows = np.unique(np.linspace(0, max(len(texts) - 1, 0), FITTED_ROWS).astype(int)).tolist()
    sample = [texts[row][:READ_CHARACTERS] for row in rows] if texts else []
    vectorizer = _vectorizer(sample)
    if vectorizer is None:
        return ["cluster: no words"] * len(texts), ["cluster: no words"] if texts else []
    numbers: list[int] = []
    # With several threads the order of additions varies, and with it the clusters.
    with threadpool_limits(1):
        points = vectorizer.transform(sample)
        model = _fitted(points, num_clusters)
        names = _names(points, model.predict(points), vectorizer.get_feature_names_out())
        for start in range(0, len(texts), CHUNK_ROWS):
            chunk = [text[:READ_CHARACTERS] for text in texts[start : start + CHUNK_ROWS]]
            numbers += model.predict(vectorizer.transform(chunk)).tolist()
    members = [names[cluster] for cluster in numbers]
    return members, list(spread(members))


def _fitted(points: Any, num_clusters: int) -> Any:
    """Returns a fitted pipeline that predicts the cluster of rows of TF-IDF."""
    import numpy as np
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer

    # In so many dimensions plain k-means makes one large cluster and some of a few rows.
    directions = min(DIRECTIONS, min(points.shape) - 1)
    reduce = [TruncatedSVD(directions, random_state=0)] if directions > 0 else []
    place = make_pipeline(*reduce, Normalizer())
    with np.errstate(invalid="ignore"):  # equal texts have no variance to explain
        placed = place.fit_transform(points)
    dense = placed if reduce else placed.toarray()
    different = len(np.unique(dense.round(4), axis=0))
    model = KMeans(min(num_clusters, different), random_state=0, n_init=5).fit(placed)
    return make_pipeline(place, model)


def _vectorizer(sample: list[str]) -> Any:
    """Returns TF-IDF of the words that some but not most texts hold; None if there are none."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    # A word of a single text groups nothing; one of most texts belongs to the prompts' template.
    for least, most in ((min(5, 1 + len(sample) // 20), 0.5), (1, 1.0)):
        try:
            return TfidfVectorizer(
                token_pattern=r"(?u)\b[^\W\d_]{2,}\b",
                stop_words="english",
                min_df=least,
                max_df=most,
                max_features=8192,
                sublinear_tf=True,
                dtype=np.float32,
            ).fit(sample)
        except ValueError:  # no word is left
            continue
    return None


def _names(points: Any, clusters_of: "Numbers", words: "Numbers") -> list[str]:
    """Returns a name for each cluster; a number is added to a name that exists already."""
    import numpy as np

    mean = np.asarray(points.mean(axis=0))[0]
    names: list[str] = []
    for cluster in range(clusters_of.max() + 1):
        center = np.asarray(points[clusters_of == cluster].mean(axis=0))[0]
        best = [at for at in np.argsort(mean - center, kind="stable")[:3] if center[at] > 0]
        name = "cluster: " + (" ".join(words[at] for at in best) or "other words")
        names.append(name if name not in names else f"{name} ({cluster + 1})")
    return names


def _ranked(groups: Sequence[str], ids: Sequence[str]) -> "tuple[Numbers, Numbers, Numbers]":
    """Returns the rows sorted by group and hash, their ranks in their groups, and each row's group
    as a number."""
    import numpy as np

    assert len(groups) == len(ids)
    numbers: dict[str, int] = {}
    codes = np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64)
    order = np.lexsort((_hashes(ids), codes))
    sizes = np.bincount(codes)
    starts = np.cumsum(sizes) - sizes
    return order, np.arange(len(ids)) - starts[codes[order]], codes


def _hashes(ids: Sequence[str]) -> "Numbers":
    """Returns the first 64 bits of each id's sha256."""
    import numpy as np

    sha256 = hashlib.sha256
    digests = [sha256(b"pick:" + id.encode(errors="surrogatepass")).digest() for id in ids]
    return np.frombuffer(b"".join(digests), dtype=">u8")[::4].astype(np.uint64)


def _chosen(order: "Numbers", taken: "Numbers") -> list[bool]:
    """Returns whether each row was taken, given it for the rows in sorted order."""
    import numpy as np

    chosen = np.zeros(len(order), dtype=bool)
    chosen[order] = taken
    result: list[bool] = chosen.tolist()
    return result
