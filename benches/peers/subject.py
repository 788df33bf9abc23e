"""One peer in one mode, in a process of its own: prints what it took as JSON.

    subject.py PEER MODE MODEL TILES THREADS SECONDS VALUES

PEER is onnxruntime or openvino, MODE latency or throughput. TILES holds raw RGB tiles; VALUES receives the predictions
of all of them as float32.
"""

import json
import sys
import threading
import time

import numpy as np


def peak_memory_kib():
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("VmHWM:")).split()[1])


class OnnxRuntime:
    """Throughput: one session that computes with the calling thread, called from several threads at a time; that is as
    fast as a session for each thread and takes less memory. Latency: one session on all threads."""

    def __init__(self, path, mode, threads):
        import onnxruntime

        many = mode == "throughput"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1 if many else threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name
        self.callers = threads if many else 1

    def runners(self):
        return [lambda tile: self.session.run(None, {self.input: tile})[0]] * self.callers


class OpenVino:
    """Streams as its throughput hint chooses them, one request for each."""

    def __init__(self, path, mode, threads):
        import openvino

        hint = {"latency": "LATENCY", "throughput": "THROUGHPUT"}[mode]
        options = {
            "PERFORMANCE_HINT": hint,
            "INFERENCE_NUM_THREADS": threads,
            # Without this, processors with bfloat16 compute in it.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        core = openvino.Core()
        model = core.read_model(path)
        model.reshape([1, *model.inputs[0].partial_shape[1:]])
        self.compiled = core.compile_model(model, "CPU", options)
        self.count = 1 if mode == "latency" else self.compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")

    def runners(self):
        requests = [self.compiled.create_infer_request() for _ in range(self.count)]
        return [lambda tile, r=r: r.infer({0: tile})[self.compiled.output(0)] for r in requests]


def main():
    peer, mode, path, tile_file, threads, seconds, values = sys.argv[1:]
    threads, seconds = int(threads), float(seconds)
    kind = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}[peer]
    __import__(peer)
    raw = np.fromfile(tile_file, np.uint8)
    start = time.perf_counter()
    engine = kind(path, mode, threads)
    runners = engine.runners()
    load_ms = 1e3 * (time.perf_counter() - start)
    side = int(np.load(tile_file + ".side.npy"))
    tiles = raw.reshape(-1, 1, side, side, 3)
    np.concatenate([np.array(runners[0](tile), np.float32).ravel() for tile in tiles]).tofile(values)
    for runner in runners:
        runner(tiles[0])

    times, lock = [], threading.Lock()
    barrier = threading.Barrier(len(runners) + 1)

    def work(number, runner):
        own = []
        barrier.wait()
        end = time.perf_counter() + seconds
        k = number
        while True:
            began = time.perf_counter()
            runner(tiles[k % len(tiles)])
            now = time.perf_counter()
            own.append(1e3 * (now - began))
            k += 1
            if now >= end and len(own) >= 3:
                break
        with lock:
            times.extend(own)

    workers = [threading.Thread(target=work, args=pair) for pair in enumerate(runners)]
    for worker in workers:
        worker.start()
    barrier.wait()
    cpu, wall = time.process_time(), time.perf_counter()
    for worker in workers:
        worker.join()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    print(json.dumps({
        "load_ms": load_ms,
        "median_ms": float(np.median(times)),
        "per_second": len(times) / wall,
        "cpu_ms": 1e3 * cpu / len(times),
        "peak_memory_kib": peak_memory_kib(),
    }))


main()
