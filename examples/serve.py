"""A web service: a picture in, its objects out. MODEL names a checkpoint or an exported model.

pip install fastapi uvicorn python-multipart
MODEL=checkpoints/best.pth uvicorn serve:app --app-dir examples
"""

import io
import os
from functools import lru_cache

from fastapi import FastAPI, File, HTTPException, Query, Response
from PIL import Image

from maskrcnn_coco import load
from maskrcnn_coco.inference.formats import geojson

app = FastAPI(title="maskrcnn_coco")


@lru_cache(maxsize=1)
def model():
    """The predictor, loaded once."""
    return load(os.environ.get("MODEL", "checkpoints/best.pth"))


def found(picture: bytes, score: float):
    """The result of an uploaded picture; 422 where it is none."""
    try:
        image = Image.open(io.BytesIO(picture), formats=("JPEG", "PNG", "WEBP", "TIFF", "BMP"))
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        raise HTTPException(422, f"not a picture: {e}") from e
    return model().predict(image, score=score, progress=False)[0]


@app.post("/objects")
def objects(file: bytes = File(), score: float = Query(0.5, ge=0, le=1)) -> dict:
    """Outlines, classes and scores as GeoJSON, in pixels."""
    return geojson(found(file, score))


@app.post("/drawn")
def drawn(file: bytes = File(), score: float = Query(0.5, ge=0, le=1)) -> Response:
    """The picture with its objects drawn, PNG."""
    out = io.BytesIO()
    found(file, score).draw().save(out, "PNG")
    return Response(out.getvalue(), media_type="image/png")
