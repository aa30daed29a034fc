"""Where the real data lies that some tests read; a checkout without it skips those."""

import pytest

from tests.conftest import ROOT

SHARED = (ROOT.parent / "shared/data").resolve()
GSM8K = SHARED / "gsm8k/test_200.jsonl"
AZURE = SHARED / "azure"
needs_azure = pytest.mark.skipif(not AZURE.is_dir(), reason="the data is not here")
needs_gsm8k = pytest.mark.skipif(not GSM8K.exists(), reason="the data is not here")
every_real_file = pytest.mark.parametrize(
    "path", sorted(SHARED.rglob("*.jsonl")), ids=lambda path: path.name
)
