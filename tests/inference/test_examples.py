"""The examples of the documentation run."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import pytest
from colours import picture, predictor
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*httpx.*")
def test_the_web_service_answers() -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("httpx")
    pytest.importorskip("python_multipart")
    from fastapi.testclient import TestClient

    spec = importlib.util.spec_from_file_location("serve", ROOT / "examples" / "serve.py")
    assert spec is not None
    assert spec.loader is not None
    serve: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(serve)
    serve.model = predictor
    client = TestClient(serve.app)
    file = io.BytesIO()
    Image.fromarray(picture(70, 90, 4, 2)).save(file, "PNG")
    answer = client.post("/objects", files={"file": file.getvalue()}).json()
    wanted = predictor().predict(picture(70, 90, 4, 2))[0]
    assert [f["properties"]["classification"]["name"] for f in answer["features"]] == wanted.names
    drawn = client.post("/drawn", files={"file": file.getvalue()})
    assert Image.open(io.BytesIO(drawn.content)).format == "PNG"
    assert client.post("/objects", files={"file": b"no picture"}).status_code == 422
    assert client.post("/objects?score=7", files={"file": file.getvalue()}).status_code == 422


def test_the_page_s_python_is_python() -> None:
    text = (ROOT / "docs" / "use_what_you_trained.md").read_text()
    blocks = [b.split("```")[0] for b in text.split("```python\n")[1:]]
    assert len(blocks) >= 3
    for block in blocks:
        compile(block, "use_what_you_trained.md", "exec")
