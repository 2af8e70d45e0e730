from __future__ import annotations

import copyreg
import io
import os
import pickle
import sys
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2deploy.model.foreign_pickle import Foreign, plain, plain_items, read_foreign_checkpoint
from ds2deploy.runtimes.errors import MissingFileError, ModelFileError

BESIDE = Path(__file__).resolve().parents[4] / "shared"
REFERENCES = Path(os.environ.get("DS2DEPLOY_TEST_DATA", BESIDE)) / "fixtures/deepspeech_pytorch"
CHECKPOINTS = ["digits-bigru128x2", "digits-unilstm160x2"]


def archive(data: bytes, members: dict[str, bytes] | None = None, compression: int = 0) -> bytes:
    """Return a checkpoint as torch lays it out, around any pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as made:
        made.writestr("archive/data.pkl", data)
        for name, content in {"version": b"3\n", **(members or {})}.items():
            made.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def read(tmp_path: Path, content: bytes) -> dict[Any, Any]:
    path = tmp_path / "foreign.ckpt"
    path.write_bytes(content)
    return read_foreign_checkpoint(path)


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def value_pickle(value: bytes) -> bytes:
    """Return the pickle of {"x": VALUE} for the opcodes that push VALUE."""
    return b"\x80\x02}" + text("x") + value + b"s."


def tensor_opcodes(
    offset: int = 0,
    shape: object = (2, 3),
    strides: object = (3, 1),
    *,
    kind: str = "FloatStorage",
    size: int = 6,
) -> bytes:
    """Return opcodes of a tensor in a storage of 24 bytes, as torch writes them."""

    def literal(value: object) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text("0") + text("cpu")
    storage += literal(size) + b"tQ"
    arguments = literal(offset) + literal(shape) + literal(strides) + b"\x89ccollections\n"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + arguments + b"OrderedDict\n)RtR"


def tensor_archive(*args: Any, **kwargs: Any) -> bytes:
    data = value_pickle(tensor_opcodes(*args, **kwargs))
    return archive(data, {"data/0": np.arange(6, dtype="<f4").tobytes()})


def test_document_of_torch_save_is_itself(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.GRU(3, 4), torch.nn.BatchNorm1d(4)).bfloat16()
    values = {
        "scalars": [None, True, False, 0, -1, 2**70, 1.5, 2j, "\u00e9", b"\x00\xff"],
        "containers": [(), (1,), {1, 2}, {"a": [{}]}, bytearray(b"\x80")],
        "ordered": OrderedDict(b=1, a=2),
    }
    torch.save({**values, "state_dict": module.state_dict()}, tmp_path / "module.ckpt")
    found = read_foreign_checkpoint(tmp_path / "module.ckpt")
    weights = found.pop("state_dict")
    assert found == values
    assert weights.keys() == module.state_dict().keys()
    for name, weight in module.state_dict().items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=0)


def test_defaultdict_is_a_plain_dict(tmp_path: Path) -> None:
    made: defaultdict[str, dict[str, int]] = defaultdict(dict, a={"b": 1})
    assert read(tmp_path, archive(pickle.dumps({"x": made}, 2))) == {"x": {"a": {"b": 1}}}


class Calls:
    """Pickled as a call of anything."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, f"{os.system.__module__}.system"),
        (eval, "builtins.eval"),
        (exec, "builtins.exec"),
        (__import__, "builtins.__import__"),
        (open, f"{open.__module__}.open"),
    ],
)
def test_calls_do_not_happen(tmp_path: Path, function: Callable[..., Any], name: str) -> None:
    canary = tmp_path / "canary"
    argument = {
        "system": f"touch {canary}",
        "open": str(canary),
        "__import__": "this",
    }.get(function.__name__, f"open({str(canary)!r}, 'w')")
    arguments = (argument, "w") if function is open else (argument,)
    with pytest.raises(ModelFileError, match=name):
        read(tmp_path, archive(pickle.dumps({"x": Calls(function, *arguments)}, 2)))
    with pytest.raises(ModelFileError, match="damaged"):  # other opcodes name the function
        read(tmp_path, archive(pickle.dumps({"x": Calls(function, *arguments)}, 4)))
    assert not canary.exists()
    assert "this" not in sys.modules


def test_stand_ins_do_not_outlive_the_call(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    content = archive(value_pickle(b"comegaconf.a\nB\n)R"))
    assert isinstance(read(tmp_path, content)["x"], Foreign)
    with pytest.raises(ModelFileError):
        read(tmp_path, archive(value_pickle(b"comegaconf.a\nB\n)RR")))
    assert set(torch.serialization.get_safe_globals()) == before


def test_checkpoints_are_read_in_several_threads(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.ckpt" for number in range(8)]
    for path in paths:
        content = b"(" + b"comegaconf.a\nB\n)\x81" * 300 + b"t"
        path.write_bytes(archive(value_pickle(content)))
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(read_foreign_checkpoint, paths):
            assert len(found["x"]) == 300


@pytest.mark.parametrize(
    "opcodes",
    [
        b"comegaconf.canary\nrun\n)R",
        b"comegaconf.canary\nRun\n)\x81",
        b"comegaconf.canary\nRun\n)}\x92",
        text("omegaconf.canary") + text("run.__globals__") + b"\x93)R",
        b"(iomegaconf.canary\nrun\n",
        b"(comegaconf.canary\nRun\no",
        b"comegaconf.canary\nRun\n)\x81}" + text("a") + b"K\x01sb",
        b"c__builtin__\ngetattr\n(comegaconf.canary\nRun\n" + text("run") + b"tR)\x81",
        b"c_operator\ngetitem\n(comegaconf.canary\nTABLE\nK\x00tR)\x81",
        b"ctorch\nload\n(" + text("http://localhost/") + b"tRcomegaconf.canary\nrun\n\x85\x81",
        b"comegaconf.canary\nRun\n)\x81(K\x01K\x02e(K\x01K\x02u(K\x03\x90K\x04a",
    ],
)
def test_names_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opcodes: bytes
) -> None:
    (tmp_path / "omegaconf").mkdir()
    (tmp_path / "omegaconf/canary.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        found = read(tmp_path, archive(value_pickle(opcodes)))
    except ModelFileError:  # torch has fewer opcodes, and calls nothing that a call has made
        pass
    else:
        assert isinstance(found["x"], Foreign)
    assert "omegaconf.canary" not in sys.modules


def test_objects_keep_what_they_were_given(tmp_path: Path) -> None:
    found = read(tmp_path, archive(value_pickle(b"comegaconf.b\nC\nK\x01\x85\x81K\x07b")))["x"]
    assert (found.name, found.args, found.state) == ("omegaconf.b.C", (1,), 7)


@pytest.mark.parametrize(
    "opcodes",
    [
        # State, entries or elements for a name, not for an object: nothing of ours may change.
        b"ctorch._utils\n_rebuild_tensor_v2\n}" + text("name") + b"K\x01sb",
        b"ctorch._utils\n_rebuild_tensor_v2\nN}" + text("name") + b"K\x01s\x86b",
        b"ccollections\nOrderedDict\nN}" + text("items") + b"K\x01s\x86b",
        b"ccollections\nOrderedDict\nK\x01K\x02s",
        b"comegaconf.a\nB\nK\x01a",
        b"comegaconf.a\nB\n}" + text("name") + b"K\x01sb",
        b"c__builtin__\nbytes\nK\x05\x85R",
        tensor_opcodes(kind="FloatStorage") + b"(K\x01)NK\x00" + text("") + b"tb",
    ],
)
def test_pickle_opcodes_that_change_shared_objects_are_refused(
    tmp_path: Path, opcodes: bytes
) -> None:
    with pytest.raises(ModelFileError):
        read(tmp_path, archive(value_pickle(opcodes), {"data/0": bytes(24)}))
    assert read(tmp_path, tensor_archive())["x"].shape == (2, 3)


def test_attributes_of_an_ordered_dict_do_not_reach_its_reader(tmp_path: Path) -> None:
    ordered = b"ccollections\nOrderedDict\n)R" + text("a") + b"K\x02s}" + text("items") + b"K\x01sb"
    for name, read_items in (("x", plain), ("state_dict", plain_items)):
        content = archive(b"\x80\x02}" + text(name) + ordered + b"s.")
        assert list(read_items(read(tmp_path, content)[name]).items()) == [("a", 2)]


def test_extension_codes_are_refused(tmp_path: Path) -> None:
    # Resolved once, an extension is cached in the process, and find_class no longer asked.
    copyreg.add_extension("os", "getcwd", 241)
    try:
        assert pickle.loads(b"\x80\x02\x82\xf1.") is os.getcwd  # noqa: S301
        with pytest.raises(ModelFileError):
            read(tmp_path, archive(value_pickle(b"\x82\xf1)R")))
    finally:
        copyreg.remove_extension("os", "getcwd", 241)


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (1, (2, 3), (3, 1)),
        (0, (2, 3), (4, 1)),
        (6, (1,), (1,)),
        (0, (7,), (1,)),
        (-1, (2,), (1,)),
        (0, (-2,), (1,)),
        (5, (2,), (-1,)),
        (0, (2, 3), (1,)),
        (0, (2**40, 2**40), (0, 0)),
        (2**63, (1,), (1,)),
        (0, (2,), (2**62,)),
        (0, (True,), (1,)),
        (0, (2.0,), (1,)),
        (0, None, None),
    ],
)
def test_tensors_stay_inside_their_storage(
    tmp_path: Path, offset: int, shape: object, strides: object
) -> None:
    with pytest.raises(ModelFileError):
        read(tmp_path, tensor_archive(offset, shape, strides))


SMALL = tensor_archive()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated, or not written by torch.save"),
        (b"garbage" * 100, "truncated, or not written by torch.save"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + b"rest", "current torch"),
        (SMALL[:-40], "truncated, or not written by torch.save"),
        (SMALL.replace(b"FloatStorage", b"FloatStorag3"), "damaged.*data.pkl"),
        (SMALL.replace(np.arange(6, dtype="<f4").tobytes(), bytes(24)), "damaged.*data/0"),
        (archive(b"").replace(b"data.pkl", b"meta.pkl"), "damaged"),
        (archive(b""), "damaged"),
        (archive(b"\x80\x02}"), "damaged"),
        (archive(b"\x80\x02}q\x00h\x05."), "damaged"),
        (
            archive(value_pickle(b"c__builtin__\nbytearray\n\x8a\x07" + b"\x7f" * 7 + b"\x85R")),
            "damaged",
        ),
        (archive(pickle.dumps([1], 2)), "'list'; expected a dict"),
        (archive(b"comegaconf.m\nModel\n)\x81."), "'omegaconf.m.Model'; expected a dict"),
        (archive(value_pickle(text("0") + b"Q")), "damaged"),
        (archive(pickle.dumps({}, 2), compression=zipfile.ZIP_DEFLATED), "compressed"),
        (archive(value_pickle(tensor_opcodes())), "damaged"),
        (tensor_archive(size=7), "damaged"),
        (tensor_archive(kind="DoubleStorage"), "damaged"),
        (tensor_archive(kind="QInt8Storage"), "damaged"),
    ],
)
def test_files_that_are_no_checkpoints_are_one_line_errors(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(ModelFileError, match=message) as caught:
        read(tmp_path, content)
    assert str(caught.value).startswith(f"{tmp_path / 'foreign.ckpt'}: ")
    assert "\n" not in str(caught.value)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damage_is_a_model_file_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    good = value_pickle(tensor_opcodes() + b"comegaconf.b\nC\n)\x81}b\x86")
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        content = archive(bytes(damaged), {"data/0": bytes(24)})
        assert isinstance(read(tmp_path_factory.getbasetemp(), content), dict)
    except ModelFileError:
        pass


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        content = archive(pickle.dumps({}, 2), {"data.pkl": pickle.dumps({"a": 1}, 2)})
    with pytest.raises(ModelFileError, match="duplicate members"):
        read(tmp_path, content)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"none\.ckpt: no such file"):
        read_foreign_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(MissingFileError, match="is a directory"):
        read_foreign_checkpoint(tmp_path)


def foreign(name: str, *args: Any, state: Any = None) -> Any:
    made = type("Foreign", (Foreign,), {"name": name})(*args)
    made.state = state
    return made


def test_plain_settings() -> None:
    gru = type(foreign("torch.nn.modules.rnn.GRU"))
    node = foreign("omegaconf.nodes.EnumNode", state={"_val": foreign("enums.RNNType", gru)})
    config = foreign("omegaconf.dictconfig.DictConfig")
    size = foreign("omegaconf.nodes.IntegerNode", state={"_parent": config, "_val": 7})
    betas = foreign("omegaconf.listconfig.ListConfig", state={"_content": [size, size]})
    config.state = {"_parent": config, "_content": {"rnn": node, "betas": betas, "none": None}}
    spect = foreign("m.Spect", state={"window": foreign("enums.Window", "hamming"), "rates": (1,)})
    unknown = foreign("m.f", 1, 2)
    assert plain({"model": config, "spect": spect, "class": gru, "other": unknown}) == {
        "model": {"rnn": "GRU", "betas": [7, 7], "none": None},
        "spect": {"window": "hamming", "rates": (1,)},
        "class": "GRU",
        "other": unknown,
    }


def test_settings_that_contain_themselves_are_refused() -> None:
    around: list[Any] = []
    around.append({"a": foreign("m.C", state={"b": around})})
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    for value in (around, deep):
        with pytest.raises(ModelFileError, match="contain themselves"):
            plain(value)
    wide: list[Any] = []
    for _ in range(100):  # 2**100 paths, 100 lists
        wide = [wide, wide]
    assert plain(wide)[0] is not None


def reference(name: str) -> Path:
    path = REFERENCES / f"{name}.ckpt"
    if not path.exists():
        pytest.skip(f"no {path}: fixtures of deepspeech.pytorch are not in this checkout")
    return path


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_settings_of_deepspeech_pytorch(name: str) -> None:
    checkpoint = read_foreign_checkpoint(reference(name))
    assert "deepspeech_pytorch" not in sys.modules
    offline = {"rnn_type": "GRU", "hidden_size": 128, "hidden_layers": 2}
    streaming = {"rnn_type": "LSTM", "hidden_size": 160, "hidden_layers": 2}
    assert plain(checkpoint["hyper_parameters"]) == {
        "labels": list("_'ABCDEFGHIJKLMNOPQRSTUVWXYZ "),
        "model_cfg": offline if "bigru" in name else {**streaming, "lookahead_context": 20},
        "precision": 32,
        "optim_cfg": {
            "learning_rate": 0.00015,
            "learning_anneal": 0.99,
            "weight_decay": 1e-05,
            "eps": 1e-08,
            "betas": [0.9, 0.999],
        },
        "spect_cfg": {
            "sample_rate": 16000,
            "window_size": 0.02,
            "window_stride": 0.01,
            "window": "hamming",
        },
    }


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_weights_of_deepspeech_pytorch(name: str) -> None:
    torch = pytest.importorskip("torch")
    path = reference(name)

    class Unpickler(pickle.Unpickler):
        """Torch's own names, and nothing of any other."""

        def find_class(self, module: str, name: str) -> Any:
            known = module.startswith(("torch", "collections", "__builtin__"))
            return super().find_class(module, name) if known else type(foreign(name))

    fake = SimpleNamespace(Unpickler=Unpickler, load=pickle.load, __name__="pickle")
    expected = torch.load(path, weights_only=False, pickle_module=fake)["state_dict"]
    ours = read_foreign_checkpoint(path)["state_dict"]
    assert list(ours) == list(expected)
    for key, tensor in expected.items():
        np.testing.assert_array_equal(ours[key], tensor.numpy(), err_msg=key)
