"""Asks the ONNX checker and onnxruntime about quantised models, and compares onnxruntime's outputs with ours.

Arguments: the directory that `diffbulk bench quant` wrote, then the models.
"""

import csv
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

directory = Path(sys.argv[1])
spec = json.loads((directory / "cells/spec.json").read_text())["cell"]
side, count = spec["side"], spec["count"]
tiles = np.fromfile(directory / "cells/tiles.bin", np.uint8).reshape(count, side, side, 3)
rows = list(csv.DictReader((directory / "quant.csv").open()))

for path in map(Path, sys.argv[2:]):
    onnx.checker.check_model(str(path), full_check=True)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    theirs = np.concatenate([session.run(None, {"image": tile[None]})[0] for tile in tiles])
    for row in rows:
        if row["model"] != path.name or row["problem"]:
            continue
        found = [
            own
            for own in (directory / "cells").glob("*.outputs")
            if hashlib.sha256(own.read_bytes()).hexdigest() == row["outputs_sha256"]
        ]
        ours = np.fromfile(found[0], "<f4").reshape(theirs.shape)
        share = np.abs(ours - theirs).max() / np.abs(theirs).max()
        print(f"{path.name} {row['engine']}: {share:.1e} of the largest output")
        assert share < 1e-2, (path, row["engine"], share)
