"""Licences: what a model's own folder says goes before what its name suggests."""

from pathlib import Path

import pytest

from retort.stages.report import licences


@pytest.mark.parametrize(
    ("model", "licence", "distillation"),
    [
        ("deepseek-ai/DeepSeek-R1", "mit", "allowed"),
        ("Qwen/Qwen2.5-0.5B-Instruct", "apache-2.0", "allowed"),
        ("/models/Qwen2.5-3B-Instruct", "qwen-research", "unknown"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "llama3.1", "allowed"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama2", "unknown"),
        ("google/gemma-2-2b-it", "gemma", "allowed"),
        ("microsoft/Phi-4-mini-instruct", "mit", "allowed"),
        ("openai/gpt-oss-20b", "apache-2.0", "allowed"),
        ("gpt-4o-mini", "OpenAI's terms", "forbidden"),
        ("ft:gpt-4o-mini-2024-07-18:org::id", "OpenAI's terms", "forbidden"),
        ("o3-mini", "OpenAI's terms", "forbidden"),
        ("claude-sonnet-4-5", "Anthropic's terms", "forbidden"),
        ("gemini-2.5-pro", "Google's terms", "forbidden"),
        ("somebody/something", None, "unknown"),
        ("", None, "unknown"),
    ],
)
def test_families_are_known_by_their_names(model, licence, distillation):
    found = licences.of(model)
    assert (found.license, found.distillation) == (licence, distillation)
    assert found.note.endswith("As far as known; check it.")


def test_the_llama_licence_says_how_the_student_must_be_named():
    assert "must have a name that begins with Llama" in licences.of("Llama-3.2-1B").note


@pytest.mark.parametrize(
    ("files", "licence", "distillation"),
    [
        ({"README.md": "---\nlicense: mit\n---\n"}, "mit", "allowed"),
        ({"README.md": "---\nlicense: [cc-by-nc-4.0]\n---\n"}, "cc-by-nc-4.0", "unknown"),
        (
            {"README.md": "---\nlicense: other\nlicense_name: qwen-research\n---\n"},
            "qwen-research",
            "unknown",
        ),
        ({"README.md": "---\nlicense: my-own\n---\n"}, "my-own", "unknown"),
        (
            {"README.md": "# no front matter", "LICENSE": "  Apache License\n Version 2.0"},
            "apache-2.0",
            "allowed",
        ),
        ({"LICENSE.txt": "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n"}, "llama3.1", "allowed"),
        ({"LICENSE": "META LLAMA 3 COMMUNITY LICENSE AGREEMENT"}, "llama3", "unknown"),
        ({"LICENCE": "Qwen RESEARCH LICENSE AGREEMENT"}, "qwen-research", "unknown"),
        ({"config.json": '{"_name_or_path": "google/gemma-2b"}'}, "gemma", "allowed"),
        ({"README.md": "---\n: [\n---\n", "config.json": "{"}, None, "unknown"),
        ({"README.md": "---\n- a list\n---\n", "config.json": "[1]"}, None, "unknown"),
    ],
)
def test_a_folder_says_it_itself(tmp_path, files, licence, distillation):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = licences.of(str(tmp_path))
    assert (found.license, found.distillation) == (licence, distillation)
    assert str(tmp_path) not in f"{found.source} {found.note}"


def test_the_folders_own_word_goes_before_its_name(tmp_path):
    folder = tmp_path / "gpt-4o"
    folder.mkdir()
    assert licences.of(str(folder)).distillation == "forbidden"
    Path(folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    found = licences.of(str(folder))
    assert (found.distillation, found.source) == ("allowed", "README.md of the model")
