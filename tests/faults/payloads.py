"""Hostile and unusable checkpoints. Run as ``python payloads.py FOLDER``: tries each, prints JSON.

Every payload carries a right digest where it can: whoever makes such a file can compute one. A payload that runs code
leaves a file named CANARY; none may.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import resource
import struct
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from states import state_at

from maskrcnn_coco.checkpoint import archive
from maskrcnn_coco.checkpoint.store import load, save
from maskrcnn_coco.errors import CheckpointError

Payload = Callable[[Path], bytes | None]
PAYLOADS: dict[str, Payload] = {}


def sign(zipped: bytes) -> bytes:
    """A right digest behind a zip, as the project writes it."""
    head = zipped[:-2] + struct.pack("<H", len(archive.MARK) + 64) + archive.MARK
    return head + hashlib.sha256(head).hexdigest().encode()


def zipped(pickled: bytes, storages: dict[str, bytes] | None = None, *, method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip with torch's layout around any pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as z:
        z.writestr("archive/data.pkl", pickled)
        z.writestr("archive/byteorder", "little")
        for key, data in (storages or {}).items():
            z.writestr(f"archive/data/{key}", data)
        z.writestr("archive/version", "3\n")
    return out.getvalue()


def document(pickled_model: bytes, *, head: bytes = b"\x80\x02", storages: dict[str, bytes] | None = None) -> bytes:
    """A signed file of otherwise right content whose ``model`` is made by the given instructions."""
    body = head + b"}(" + _text("model") + pickled_model
    body += _text("format") + b"K\x01" + _text("serial") + b"K\x01" + _text("names") + b"]" + _text("x.pth") + b"a"
    body += _text("loop") + b"}(" + _text("step") + b"K\x01" + _text("epoch") + b"K\x00uu."
    return sign(zipped(body, storages))


def _text(s: str) -> bytes:
    data = s.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _number(n: int) -> bytes:
    data = n.to_bytes(n.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def tensor(shape: tuple[int, ...], stride: tuple[int, ...], *, numel: int, offset: int = 0, key: str = "0") -> bytes:
    """The instructions for one float32 tensor with any description of itself."""
    storage = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text(key) + _text("cpu") + _number(numel) + b"tQ"
    sizes = b"(" + b"".join(map(_number, shape)) + b"t(" + b"".join(map(_number, stride)) + b"t"
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + _number(offset) + sizes + hooks + b"tR"


def weights(*tensors: bytes) -> bytes:
    return b"}(" + b"".join(_text(f"w{i}") + t for i, t in enumerate(tensors)) + b"u"


class _Call:
    """Pickles as a call of ``function``; the class under attack decides whether it is made."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


def _calls(canary: Path) -> dict[str, bytes]:
    """GLOBAL + REDUCE of everything that is known to have been used, by ``module\\nname\\n`` and arguments."""
    shell, code = _text(f"touch {canary}"), _text(f"open({str(canary)!r}, 'w').close()")
    name = _text(str(canary))
    return {
        "os.system": b"cos\nsystem\n(" + shell + b"tR",
        "posix.system": b"cposix\nsystem\n(" + shell + b"tR",
        "os.popen": b"cos\npopen\n(" + shell + b"tR",
        "os.mkdir": b"cos\nmkdir\n(" + name + b"tR",
        "subprocess.call": b"csubprocess\ncall\n((" + _text("touch") + name + b"ttR",
        "subprocess.Popen": b"csubprocess\nPopen\n((" + _text("touch") + name + b"ttR",
        "builtins.eval": b"cbuiltins\neval\n(" + code + b"tR",
        "builtins.exec": b"cbuiltins\nexec\n(" + code + b"tR",
        "__builtin__.eval": b"c__builtin__\neval\n(" + code + b"tR",
        "builtins.open": b"cbuiltins\nopen\n(" + name + _text("w") + b"tR",
        "builtins.__import__": b"cbuiltins\n__import__\n(" + _text("antigravity") + b"tR",
        "builtins.getattr": b"cbuiltins\ngetattr\n(cos\nsystem\n" + _text("__call__") + b"tR(" + shell + b"tR",
        "importlib.import_module": b"cimportlib\nimport_module\n(" + _text("antigravity") + b"tR",
        "runpy.run_path": b"crunpy\nrun_path\n(" + name + b"tR",
        "timeit.timeit": b"ctimeit\ntimeit\n(" + code + b"tR",
        "code.InteractiveInterpreter": b"ccode\nInteractiveInterpreter\n)R",
        "pty.spawn": b"cpty\nspawn\n(" + shell + b"tR",
        "ctypes.CDLL": b"cctypes\nCDLL\n(" + name + b"tR",
        "shutil.rmtree": b"cshutil\nrmtree\n(" + name + b"tR",
        "pathlib.Path.touch": b"cpathlib\nPath.touch\n(cpathlib\nPath\n(" + name + b"tRtR",
        "functools.partial": b"cfunctools\npartial\n(cos\nsystem\n" + shell + b"tR)R",
        "operator.methodcaller": b"coperator\nmethodcaller\n(" + _text("system") + shell + b"tR(cos\n__dict__\ntR",
        "types.CodeType": b"ctypes\nCodeType\n)R",
        "pickle.loads": b"cpickle\nloads\n(" + _text("cos\nsystem\n.") + b"tR",
        "numpy.load": b"cnumpy\nload\n(" + name + b"tR",
        "torch.load": b"ctorch\nload\n(" + name + b"tR",
        "torch.hub.load": b"ctorch.hub\nload\n(" + name + _text("m") + b"tR",
        "torch.jit.load": b"ctorch.jit\nload\n(" + name + b"tR",
        "torch.save": b"ctorch\nsave\n(K\x01" + name + b"tR",
        "torch._rebuild_from_type_v2": b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\n" + shell + b"N)tR",
        "torch._rebuild_wrapper_subclass": b"ctorch._utils\n_rebuild_wrapper_subclass\n(cos\nsystem\n" + shell + b"tR",
        "webbrowser.open": b"cwebbrowser\nopen\n(" + name + b"tR",
        "main.canary": b"c__main__\ntouch_canary\n)R",
        "INST os.system": b"(" + shell + b"ios\nsystem\n",
        "OBJ os.system": b"(cos\nsystem\n" + shell + b"o",
        "NEWOBJ": b"cos\nsystem\n" + shell + b"\x85\x81",
        "BUILD __setstate__": b"ccollections\nOrderedDict\n)R}(" + _text("__class__") + b"cos\nsystem\nub",
        "STACK_GLOBAL": _text("os") + _text("system") + b"\x93(" + shell + b"tR",
        "REDUCE of a tuple": b"(" + _text("torch._utils _rebuild_tensor_v2") + b"t(tR",
        "REDUCE of text": _text("os system") + b"(" + shell + b"tR",
        "EXT1": b"\x82\x01)R",
        "PERSID text": b"Pos.system\n",
        "BINPERSID of text": _text("os.system") + b"Q",
        "torch dtype as function": b"ctorch\nFloatStorage\n(" + shell + b"tR",
        "OrderedDict with arguments": b"ccollections\nOrderedDict\n((" + _text("a") + b"K\x01tttR",
        "collections.Counter": b"ccollections\nCounter\n)R",
        "bytearray of a terabyte": b"cbuiltins\nbytearray\n(" + _number(1 << 40) + b"tR",
        "codecs.encode": b"c_codecs\nencode\n(" + _text("a") + _text("rot13") + b"tR",
        "set": b"cbuiltins\nset\n(]tR",
        "torch.device": b"ctorch\ndevice\n(" + _text("cuda:0") + b"tR",
    }


def _bombs() -> dict[str, bytes]:
    four = {"0": b"\0" * 16}
    laughs = b"(]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60)) + b"t"
    huge = bytearray(zipped(b"\x80\x02}."))
    at = huge.rfind(b"PK\x01\x02")
    huge[at + 20 : at + 28] = b"\xfe\xff\xff\x7f" * 2
    over = zipped(b"\x80\x02}.", {str(i): b"x" for i in range(4)})
    return {
        "stride 0, 10^12 elements": document(weights(tensor((10**6, 10**6), (0, 0), numel=4)), storages=four),
        "stride 0 in one dimension": document(weights(tensor((10**9, 4), (0, 1), numel=4)), storages=four),
        "overlapping strides": document(weights(tensor((3, 2), (1, 1), numel=4)), storages=four),
        "storage says more than it has": document(weights(tensor((10**9,), (1,), numel=10**9)), storages=four),
        "storage says less than it has": document(weights(tensor((1,), (1,), numel=1)), storages=four),
        "storage missing": document(weights(tensor((4,), (1,), numel=4, key="7")), storages=four),
        "storage outside the archive": document(weights(tensor((4,), (1,), numel=4, key="../0")), storages=four),
        "reaches outside its storage": document(weights(tensor((4,), (1,), numel=4, offset=1)), storages=four),
        "offset of 2^62": document(weights(tensor((4,), (1,), numel=4, offset=2**62)), storages=four),
        "negative offset": document(weights(tensor((4,), (1,), numel=4, offset=-1)), storages=four),
        "negative size": document(weights(tensor((-4,), (1,), numel=4)), storages=four),
        "negative stride": document(weights(tensor((4,), (-1,), numel=4, offset=3)), storages=four),
        "negative number of elements": document(weights(tensor((0,), (1,), numel=-4)), storages=four),
        "a million dimensions": document(weights(tensor((1,) * 10**5, (1,) * 10**5, numel=4)), storages=four),
        "size of 2000 digits": document(weights(tensor((1 << 2000,), (1,), numel=4)), storages=four),
        "one storage, a million views": document(
            b"}(" + b"".join(_text(str(i)) + tensor((2**18,), (1,), numel=2**18) for i in range(400)) + b"u",
            storages={"0": b"\0" * 2**20},
        ),
        "memo index of 2^31": document(b"}r\xff\xff\xff\x7f"),
        "list in lists, 2^60": document(laughs),
        "list in itself": document(b"]q\x00h\x00a"),
        "dict in itself": document(b"}q\x00(" + _text("w") + b"h\x00u"),
        "nested 100000 deep": document(b"]" * 10**5 + b"a" * (10**5 - 1)),
        "text that claims a gigabyte": document(b"X\x00\x00\x00\x40abc"),
        "pickle cut short": sign(zipped(b"\x80\x02}(")),
        "pickle of nothing": sign(zipped(b"")),
        "pickle with an empty stack": sign(zipped(b"\x80\x020.")),
        "pickle of 17 MiB": sign(zipped(b"\x80\x02" + b"(" * (17 << 20) + b".")),
        "protocol 4 frame of 2^60": document(b"}", head=b"\x80\x04\x95" + struct.pack("<Q", 1 << 60)),
        "colliding keys": document(b"}(" + b"".join(_number(i * (2**61 - 1)) + b"N" for i in range(20000)) + b"u"),
        "compressed bomb": sign(zipped(b"\x80\x02}.", {"0": b"\0" * (64 << 20)}, method=zipfile.ZIP_DEFLATED)),
        "bzip2 bomb": sign(zipped(b"\x80\x02}.", {"0": b"\0" * (64 << 20)}, method=zipfile.ZIP_BZIP2)),
        "entry that claims 2 GiB": sign(bytes(huge)),
        "directory twice as long": sign(over[: over.find(b"PK\x01\x02")] + over[over.find(b"PK\x01\x02") :] * 2),
        "unknown entry": sign(_with_entry("archive/constants.pkl", b"\x80\x02}.")),
        "code entry": sign(_with_entry("archive/code/__torch__.py", b"import os")),
        "entry of another folder": sign(_with_entry("other/data/0", b"\0" * 4)),
        "entry with a path upwards": sign(_with_entry("archive/../../data/0", b"\0" * 4)),
        "entry twice": sign(_with_entry("archive/version", b"3\n")),
        "no pickle": sign(_only("archive/version")),
        "empty zip": sign(b"PK\x05\x06" + b"\0" * 18),
    }


def _with_entry(name: str, data: bytes) -> bytes:
    import warnings

    out = io.BytesIO(zipped(b"\x80\x02}."))
    with warnings.catch_warnings(), zipfile.ZipFile(out, "a") as z:
        warnings.simplefilter("ignore")
        z.writestr(name, data)
    return out.getvalue()


def _only(name: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr(name, "3\n")
    return out.getvalue()


def _foreign(folder: Path) -> dict[str, bytes]:
    """Files that are no checkpoints of this project, and ones whose content is wrong though the digest is right."""
    plain, legacy = io.BytesIO(), io.BytesIO()
    torch.save(state_at(1), plain)
    torch.save(state_at(1)["model"], legacy, _use_new_zipfile_serialization=False)
    good = folder / "good.pth"
    save(good, state_at(3), names=("good.pth", "x.pth"))
    return {
        "empty file": b"",
        "text": b"hello\n" * 100,
        "png": b"\x89PNG\r\n\x1a\n" + b"\0" * 200,
        "elf": b"\x7fELF" + b"\0" * 200,
        "plain pickle": pickle.dumps({"model": {}}),
        "torch.save without digest": plain.getvalue(),
        "torch.save of before 2020": legacy.getvalue(),
        "torch.save of before 2020, signed": sign(legacy.getvalue()),
        "digest alone": sign(b"\0" * 22),
        "newer format": _changed({"format": 99}),
        "format as text": _changed({"format": "1"}),
        "format true": _changed({"format": True}),
        "no format": _changed({}, drop="format"),
        "no model": _changed({}, drop="model"),
        "model is a list": _changed({"model": [1, 2]}),
        "no step": _changed({"loop": {"epoch": 1}}),
        "step is a fraction": _changed({"loop": {"step": 1.5, "epoch": 1}}),
        "serial is text": _changed({"serial": "9"}),
        "names is text": _changed({"names": "x.pth"}),
        "a list, not a dict": _signed([1, 2, 3]),
        "a tensor, not a dict": _signed(torch.zeros(3)),
        "NaN weight": _changed({"model": {"w": torch.tensor([1.0, float("nan")])}}),
        "infinite buffer": _changed({"model": {"running_var": torch.tensor([float("inf")])}}),
        "NaN momentum": _changed({"optimizer": {"state": {0: {"momentum_buffer": torch.tensor(float("nan"))}}}}),
        "infinite learning rate": _changed({"optimizer": {"param_groups": [{"lr": float("inf")}]}}),
        "NaN loss scale": _changed({"scaler": {"scale": float("nan")}}),
        "complex weights": _changed({"model": {"w": torch.zeros(2, dtype=torch.complex64)}}),
        "sparse weights": _changed({"model": {"w": torch.eye(2).to_sparse()}}),
        "a module": _signed(torch.nn.Linear(1, 1)),
    }


def _changed(change: dict[str, Any], *, drop: str = "") -> bytes:
    value = {**state_at(3), "format": 1, "names": ["x.pth"], "serial": 1, **change}
    value.pop(drop, None)
    return _signed(value)


def _signed(value: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return sign(out.getvalue())


def touch_canary() -> None:
    """What the payload ``main.canary`` would call."""
    (Path(sys.argv[1]) / "CANARY").touch()


def every(folder: Path) -> dict[str, bytes]:
    """All payloads, by name."""
    code = {f"runs {name}": document(body) for name, body in _calls(folder / "CANARY").items()}
    return {**code, **_bombs(), **_foreign(folder)}


def attempt(path: Path) -> dict[str, Any]:
    """What loading ``path`` does: refused (with the sentence) or taken, and how long it took."""
    began = time.monotonic()
    try:
        load(path)
        outcome, message = "taken", ""
    except CheckpointError as e:
        outcome, message = "refused", str(e)
    except Exception as e:
        outcome, message = "other error", f"{type(e).__name__}: {e}"
    return {"outcome": outcome, "message": message, "seconds": time.monotonic() - began}


def main() -> None:
    """Without a second argument: make the payloads, then try them in a fresh process, whose memory is measured."""
    folder = Path(sys.argv[1])
    if len(sys.argv) == 2:
        made = every(folder)
        for name, content in made.items():
            place = folder / name.replace("/", "_")
            place.mkdir()
            (place / "x.pth").write_bytes(content)
        os.mkfifo(folder / "pipe.pth")
        (folder / "zero.pth").symlink_to("/dev/zero")
        (folder / "all.json").write_text(json.dumps(list(made)))
        os.execv(sys.executable, [sys.executable, __file__, str(folder), "try"])
    names = json.loads((folder / "all.json").read_text())
    paths = {name: folder / name.replace("/", "_") / "x.pth" for name in names}
    others = {"a pipe": "pipe.pth", "a folder": "", "no file": "absent.pth", "an endless device": "zero.pth"}
    paths |= {name: folder / place for name, place in others.items()}
    good = attempt(folder / "good.pth")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results = {name: attempt(path) for name, path in paths.items()}
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    executed = (folder / "CANARY").exists()
    json.dump({"results": results, "good": good, "executed": executed, "grown": grown}, sys.stdout)


if __name__ == "__main__":
    main()
