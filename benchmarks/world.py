"""The quickstart's folder, and what makes its problems and models."""

import importlib
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent / "examples" / "quickstart"


def module(name: str) -> Any:
    """Returns a module of the quickstart's own."""
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))
    return importlib.import_module(name)
