"""Reads a prediction's outputs with the tools that users have and insists that they agree, and that
the model passes the ONNX checker.

Arguments: output directory, stem, ONNX model, and optionally a slide whose tiles are cut out
with Pillow and predicted with onnxruntime for comparison (only when it needs no resampling).
Prints one JSON line with what was found.
"""

import json
import sys
from pathlib import Path

import anndata
import numpy as np
import onnx
import pandas as pd
import pyarrow.parquet

directory, stem, model = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

onnx.checker.check_model(onnx.load(model), full_check=True)

run = json.loads((directory / "run.json").read_text())
genes = run["genes"]

parquet = pd.read_parquet(directory / f"{stem}.parquet")
csv = pd.read_csv(directory / f"{stem}.csv", dtype={"id": str})
adata = anndata.read_h5ad(directory / f"{stem}.h5ad")
geojson = json.loads((directory / f"{stem}.geojson").read_text())

count = run["tiles"]["predicted"]
assert len(parquet) == len(csv) == adata.n_obs == len(geojson["features"]) == count > 0
assert list(adata.var_names) == genes
assert list(parquet.columns[-len(genes):]) == genes == list(csv.columns[-len(genes):])

# Columns of the user's own file of centres, between the fixed ones and the genes.
fixed = ["id", "x", "y", "width", "height", "tissue", "confidence"]
given = list(parquet.columns[len(fixed) : len(parquet.columns) - len(genes)])
assert list(parquet.columns[: len(fixed)]) == fixed == list(csv.columns[: len(fixed)])
texts = pd.read_csv(directory / f"{stem}.csv", dtype=str, keep_default_na=False)
for column in given:
    values = list(parquet[column])
    assert values == list(texts[column]) == list(adata.obs[column.replace("/", "_")].astype(str))
    assert values == [f["properties"]["metadata"][column] for f in geojson["features"]]

expression = np.asarray(adata.X)
assert expression.dtype == np.float32 and np.isfinite(expression).all()
np.testing.assert_array_equal(parquet[genes].to_numpy(), expression)
np.testing.assert_array_equal(csv[genes].to_numpy().astype(np.float32), expression)
centres = parquet[["x", "y"]].to_numpy(float) + parquet[["width", "height"]].to_numpy(float) / 2
np.testing.assert_allclose(adata.obsm["spatial"], centres, atol=1e-6)
for feature, row, centre in zip(geojson["features"], expression, centres):
    assert feature["properties"]["objectType"] == "tile"
    ring = np.array(feature["geometry"]["coordinates"][0])
    assert (ring[0] == ring[-1]).all() and len(ring) == 5
    np.testing.assert_allclose(ring[:4].mean(0), centre, atol=0.01)
    measured = [feature["properties"]["measurements"][gene] for gene in genes]
    np.testing.assert_allclose(measured, row, rtol=1e-5, atol=1e-6)

metadata = {
    k.decode(): v.decode()
    for k, v in pyarrow.parquet.read_schema(directory / f"{stem}.parquet").metadata.items()
}
assert run["model"]["sha256"] in metadata.values(), metadata
assert run["model"]["sha256"] in json.dumps({k: str(v) for k, v in adata.uns.items()}), adata.uns

if len(sys.argv) > 4:
    import onnxruntime
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    image = Image.open(sys.argv[4]).convert("RGB")
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    panel = json.loads(session.get_modelmeta().custom_metadata_map["diffbulk.panel"])
    columns = [panel.index(gene) for gene in genes]
    largest = 0.0
    for index in range(min(4, count)):
        x, y, side = parquet.x[index], parquet.y[index], parquet.width[index]
        assert x == int(x) and y == int(y) and side == run["model"]["tile_px"], "needs resampling"
        tile = np.asarray(image.crop((int(x), int(y), int(x + side), int(y + side))))
        want = session.run(["expression"], {"image": tile[None]})[0][0, columns]
        largest = max(largest, np.abs(want - expression[index]).max() / np.abs(want).max())
    # JPEG decoders may differ by a level or two; the rest is arithmetic.
    assert largest < (1e-4 if sys.argv[4].endswith(".png") else 5e-3), largest

print(json.dumps({
    "difference": float(largest) if len(sys.argv) > 4 else None,
    "tiles": count,
    "genes": len(genes),
    "given": {column: list(parquet[column]) for column in given},
    "complete": run["complete"],
    "pictures": sorted(p.name for p in directory.glob("*.png")),
    "ids": list(map(str, parquet["id"])),
    "x": list(parquet["x"]),
}))
