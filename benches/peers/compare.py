"""Compares this project's engine with onnxruntime and OpenVINO.

    benches/peers/run [MODEL ...] [--int8 MODEL.int8.onnx ...] [--rounds N] [--seconds S] [--threads N] [--json FILE]

Every measurement is a fresh process, and in every round all engines take turns in both modes, so that whatever else the
machine does falls on all of them alike. Tiles are cut from the test slides. The table shows medians over the rounds;
ratios are to the better peer. With --int8, files beside the float ones are compared in accuracy too: signal to
quantisation noise against onnxruntime's float32 predictions.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

import numpy as np
import onnx
from PIL import Image

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PEERS = ["onnxruntime", "openvino"]
OURS = "diffbulk"
MODES = ["throughput", "latency"]


def side_of(path):
    """Side of the model's tile."""
    shape = onnx.load(path, load_external_data=False).graph.input[0].type.tensor_type.shape.dim
    return shape[1].dim_value


def write_tiles(path, side, count):
    """Tiles of real tissue, one after the other."""
    pictures = sorted((ROOT / "tests/data/her2st-crops/images").glob("*.jpg"))
    tiles = []
    for k in range(count):
        picture = Image.open(pictures[k % len(pictures)]).convert("RGB")
        width, height = picture.size
        if min(width, height) < side:
            picture = picture.resize((max(width, side), max(height, side)))
            width, height = picture.size
        x, y = (k * 97) % (width - side + 1), (k * 61) % (height - side + 1)
        tiles.append(np.asarray(picture.crop((x, y, x + side, y + side)), np.uint8))
    np.stack(tiles).tofile(path)
    np.save(str(path) + ".side.npy", np.array(side))


def measure(engine, mode, model, tiles, arguments, values):
    """One fresh process."""
    threads, seconds = str(arguments.threads), str(arguments.seconds)
    if engine == OURS:
        command = [os.environ["DIFFBULK"], "bench", "engine", model, "--engine", "cpu", "--threads", threads,
                   "--seconds", seconds, "--tiles", tiles, "--values", values, "--only", mode, "--json"]
    else:
        command = [sys.executable, str(HERE / "subject.py"), engine, mode, model, tiles, threads, seconds, values]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{engine} failed on {model}:\n{done.stderr}")
    result = json.loads(done.stdout[done.stdout.index("{"):])
    if engine == OURS:
        result = {**result[mode], **{key: result[key] for key in ["load_ms", "peak_memory_kib"]}}
    return result


def compare(model, reference, arguments, scratch):
    """Medians over all rounds: {engine: {mode: {figure: value}}}, and each engine's SQNR against `reference`."""
    tiles = str(scratch / "tiles.rgb")
    write_tiles(tiles, side_of(model), arguments.tiles)
    taken = {engine: {mode: [] for mode in MODES} for engine in [OURS, *PEERS]}
    values = {}
    for _ in range(arguments.rounds):
        for mode in MODES:
            for engine in taken:
                out = str(scratch / f"{engine}.f32")
                taken[engine][mode].append(measure(engine, mode, model, tiles, arguments, out))
                values[engine] = np.fromfile(out, np.float32).astype(np.float64)
    medians = {
        engine: {
            mode: {key: statistics.median(run[key] for run in runs) for key in runs[0] if runs[0][key] is not None}
            for mode, runs in modes.items()
        }
        for engine, modes in taken.items()
    }
    reference = values["onnxruntime"] if reference is None else reference
    for engine, value in values.items():
        noise = float(((value - reference) ** 2).sum())
        signal = float(((reference - reference.mean()) ** 2).sum())
        medians[engine]["sqnr_db"] = None if noise == 0 else 10 * float(np.log10(signal / noise))
        medians[engine]["largest_difference"] = float(np.abs(value - reference).max() / np.abs(reference).max())
    return medians, reference


def better(figures, mode, key, largest):
    pick = max if largest else min
    return pick(figures[peer][mode][key] for peer in PEERS)


def ratios(figures):
    """How many times better than the better peer; memory and load are compared with onnxruntime."""
    ours, ort = figures[OURS], figures["onnxruntime"]
    return {
        "throughput": ours["throughput"]["per_second"] / better(figures, "throughput", "per_second", True),
        "cpu": better(figures, "throughput", "cpu_ms", False) / ours["throughput"]["cpu_ms"],
        "latency": better(figures, "latency", "median_ms", False) / ours["latency"]["median_ms"],
        "memory": ours["throughput"]["peak_memory_kib"] / ort["throughput"]["peak_memory_kib"],
        "load": ours["latency"]["load_ms"] / ort["latency"]["load_ms"],
    }


def table(name, figures):
    lines = [
        f"**{name}**", "",
        "| engine | tiles/s | CPU ms/tile | one tile, ms | load, ms | peak memory, MiB | difference |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for engine, modes in figures.items():
        many, one = modes["throughput"], modes["latency"]
        lines.append(
            f"| {engine} | {many['per_second']:.1f} | {many['cpu_ms']:.2f} | {one['median_ms']:.2f} "
            f"| {one['load_ms']:.0f} | {many['peak_memory_kib'] / 1024:.0f} | {modes['largest_difference']:.1e} |"
        )
    r = ratios(figures)
    lines += ["", f"Throughput {r['throughput']:.2f}x the better peer (CPU time {r['cpu']:.2f}x), one tile "
              f"{r['latency']:.2f}x, peak memory {r['memory']:.2f} and load time {r['load']:.2f} of onnxruntime's.", ""]
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[str(ROOT / "models/her2st-edge.onnx")])
    parser.add_argument("--int8", nargs="*", default=[], help="quantised (QDQ) files, compared with the first model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--tiles", type=int, default=8)
    parser.add_argument("--json", help="also write all figures here")
    arguments = parser.parse_args()
    everything, lines = {}, []
    with tempfile.TemporaryDirectory() as scratch:
        first = None
        for model in arguments.models:
            figures, reference = compare(model, None, arguments, pathlib.Path(scratch))
            first = (figures, reference) if first is None else first
            everything[model] = {"engines": figures, "ratios": ratios(figures)}
            lines += table(pathlib.Path(model).name, figures)
        for model in arguments.int8:
            figures, _ = compare(model, first[1], arguments, pathlib.Path(scratch))
            everything[model] = {"engines": figures, "ratios": ratios(figures)}
            lines += table(pathlib.Path(model).name, figures)
            sqnr = ", ".join(f"{engine} {modes['sqnr_db']:.1f}" for engine, modes in figures.items())
            best = max(figures[OURS]["throughput"]["per_second"], first[0][OURS]["throughput"]["per_second"])
            ratio = best / better(figures, "throughput", "per_second", True)
            lines += [f"SQNR in dB: {sqnr}. Our best precision does {ratio:.2f}x the tiles of their better int8.", ""]
    lines.append(f"{arguments.threads} threads, medians of {arguments.rounds} interleaved rounds; difference: largest, "
                 "over the largest value, from onnxruntime's float32.")
    print("\n".join(lines))
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(everything, indent=2) + "\n")


main()
