"""Datasets saved to disk, in folders and on the Hub, read with the library `datasets`."""

import shutil

import fsspec
import pytest

from retort.data.sources import digest, hub
from retort.errors import SpecError, StoreError
from retort.spec.prepare import HubDataset
from tests.support.source_rows import ROWS, jsonl, rows_of, values


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved dataset, a saved dict of two splits, and a folder of plain files."""
    import datasets

    home = tmp_path_factory.mktemp("saved")
    rows = [{**row, "score": 0.5} for row in ROWS]
    one = datasets.Dataset.from_list(rows, split="test")
    one.save_to_disk(home / "one")
    datasets.DatasetDict(train=one, test=one.select(range(3))).save_to_disk(home / "dict")
    (home / "plain").mkdir()
    (home / "plain/train.jsonl").write_bytes(jsonl(rows))
    (home / "plain/test.jsonl").write_bytes(jsonl(rows[:2]))
    return home, rows


@pytest.fixture
def cached(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def test_a_saved_dataset_is_read_by_its_path_or_as_a_dataset(saved, capfd):
    home, rows = saved
    assert values(home / "one") == values(home / "dict") == rows
    assert values(HubDataset(dataset=str(home / "dict"), split="test")) == rows[:3]
    assert values(HubDataset(dataset=str(home / "one"), split="test", streaming=True)) == rows
    first = rows_of(HubDataset(dataset=str(home / "dict"), split="test"))[0]
    assert (first.file, first.line) == (f"hub:{home}/dict/test", 1)
    assert rows_of(home / "one")[0].file == str(home / "one")
    with pytest.raises(
        SpecError, match=r"x: .* no split 'tset' \(did you mean 'test'\?\); .*train"
    ):
        rows_of(HubDataset(dataset=str(home / "dict"), split="tset"))
    assert capfd.readouterr() == ("", "")


def test_a_saved_dataset_is_read_from_s3_too(saved, s3_here):
    home, rows = saved
    fsspec.filesystem("s3").put(f"{home}/dict/", "s3://retort/saved/", recursive=True)
    assert values("s3://retort/saved") == rows
    assert values(HubDataset(dataset="s3://retort/saved/", split="test")) == rows[:3]
    there, here = (HubDataset(dataset=place) for place in ("s3://retort/saved", f"{home}/dict"))
    assert digest(there, "x") == digest(here, "x")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_files_is_a_dataset_too(saved, cached, streaming):
    home, rows = saved
    source = {"dataset": str(home / "plain"), "streaming": streaming}
    assert values(HubDataset(**source)) == rows
    assert values(HubDataset(**source, split="test")) == rows[:2]
    with pytest.raises(SpecError, match=r"cannot be loaded: .*nope.*\['train', 'test'\]"):
        rows_of(HubDataset(**source, split="nope"))
    with pytest.raises(SpecError, match=r"cannot be loaded: .*'nope' not found.*default"):
        rows_of(HubDataset(**source, config="nope"))


def test_a_folder_of_far_too_many_files_is_refused_before_each_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "MOST_FILES", 20)
    for name in range(7):
        (tmp_path / f"{name}/deep").mkdir(parents=True)
        for number in range(3):
            (tmp_path / f"{name}/deep/{number}.jsonl").write_bytes(jsonl(ROWS[:1]))
    for use in (rows_of, lambda source: digest(source, "x")):
        with pytest.raises(SpecError, match="more than 20 files are in this folder"):
            use(HubDataset(dataset=str(tmp_path)))


@pytest.mark.parametrize("url", ["http://[", "zip://x", "github://a", "ftp://[::", "dir://"])
def test_an_address_that_no_scheme_can_read_is_refused_in_our_words(cached, url):
    for use in (rows_of, lambda source: digest(source, "x")):
        with pytest.raises((SpecError, StoreError, FileNotFoundError)):
            use(HubDataset(dataset=url))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_whose_files_are_bad_says_how_to_keep_the_good_rows(tmp_path, cached, streaming):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.jsonl").write_bytes(jsonl(ROWS) + b"nonsense\n")
    with pytest.raises(SpecError, match=r"x: hub:.*nvalid"):
        rows_of(HubDataset(dataset=str(tmp_path / "data"), streaming=streaming))
    assert [row.error is None for row in rows_of(tmp_path / "data")] == [True] * 600 + [False]


def test_a_dataset_that_is_not_here_says_that_the_hub_cannot_be_reached(cached):
    source = HubDataset(dataset="nobody/nothing-at-all")
    for use in (rows_of, lambda source: digest(source, "x")):
        with pytest.raises(SpecError, match=r"x: hub:nobody/nothing-at-all/train cannot be loaded"):
            use(source)


def test_images_of_a_dataset_need_no_library_and_are_there_to_be_refused(tmp_path):
    import datasets

    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["a", "b"]),
            "grid": datasets.Array2D((1, 2), "int32"),
        }
    )
    row = {"image": {"bytes": b"x", "path": None}, "label": 1, "grid": [[1, 2]]}
    datasets.Dataset.from_list([row], features=features).save_to_disk(tmp_path / "d")
    image = {"path": None, "bytes": None}
    assert values(tmp_path / "d") == [{"image": image, "label": 1, "grid": [[1, 2]]}]


def test_the_digest_of_a_dataset_is_of_its_split_and_not_of_its_place(saved, tmp_path):
    home, _ = saved
    shutil.copytree(home, tmp_path / "copy")
    names = [("one", "train"), ("dict", "train"), ("dict", "test"), ("plain", "train")]
    names += [("plain", "test")]
    found = []
    for place in (home, tmp_path / "copy"):
        sources = [HubDataset(dataset=str(place / name), split=split) for name, split in names]
        found.append([digest(source, "x") for source in sources])
    assert found[0] == found[1]
    assert found[0][1] != found[0][2]
    assert found[0][3] != found[0][4]
    assert digest(str(home / "one"), "x") == found[0][0]


def test_a_folder_of_far_too_many_files_is_refused_and_one_of_many_is_read(tmp_path, monkeypatch):
    from retort.store import urls

    for number in range(12):
        (tmp_path / f"{number % 3}").mkdir(exist_ok=True)
        (tmp_path / f"{number % 3}" / f"{number:02d}.jsonl").write_text("{}\n")
    monkeypatch.setattr(urls, "MOST_FILES", 12)
    assert len(urls.find_urls(str(tmp_path))) == 12
    (tmp_path / "2" / "more.jsonl").write_text("{}\n")
    with pytest.raises(SpecError, match="holds more than 12 files; name the folder of the rows"):
        urls.find_urls(str(tmp_path))
