"""Reads a prepared dataset with h5py and anndata and compares it with its source, row by row.

Arguments: dataset directory, source directory in the legacy Spatial Transcriptomics layout.
"""

import json
import sys
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from PIL import Image

dataset, source = Path(sys.argv[1]), Path(sys.argv[2])
adata = anndata.read_h5ad(dataset / "adata.h5ad")
manifest = json.loads((dataset / "dataset.json").read_text())
with h5py.File(dataset / "patches.h5") as file:
    images, coords = file["img"][:], file["coords"][:]
    barcodes = file["barcode"].asstr()[:].ravel()
    size = file["img"].attrs["patch_size_target"]
assert len(images) == len(coords) == adata.n_obs == manifest["tiles"]

counts = {p.name.split(".")[0]: pd.read_csv(p, sep="\t", index_col=0) for p in (source / "counts").iterdir()}
pixels = {p.stem: np.asarray(Image.open(p).convert("RGB")) for p in (source / "images").iterdir()}
matrix = adata.to_df()
for row, (slide, barcode) in enumerate(zip(adata.obs["slide"], barcodes)):
    assert str(barcode) in str(adata.obs_names[row])
    want = counts[slide].loc[barcode]
    assert (matrix.iloc[row][want.index] == want).all() and matrix.iloc[row].sum() == want.sum()
    x, y = coords[row]
    tile = pixels[slide][y : y + size, x : x + size].astype(int)
    # Two JPEG decoders may differ by a few levels.
    assert np.abs(tile - images[row]).mean() < 1.0, (slide, barcode)
    np.testing.assert_allclose(adata.obsm["spatial"][row], [x + size / 2, y + size / 2], atol=1.0)
print(f"{len(images)} rows agree with their source")
