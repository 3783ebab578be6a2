"""The reader of released EDM files: hostile and damaged ones are refused in one line, and nothing in them runs."""

import io
import pickle
import random
import re
import struct

import pytest
import torch

from dmd.importers import edm_pickle, pickled_tensors
from tests.edm_files import make_edm_pickle

PROTO, MARK, STOP = b"\x80\x04", b"(", b"."
SYSTEM = b"cos\nsystem\n"
COMMAND = b"X\x0e\x00\x00\x00touch executed"
RUN = SYSTEM + COMMAND + b"\x85R"  # os.system("touch executed")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> bytes:
    """A small file as released."""
    path = tmp_path_factory.mktemp("edm") / "made.pkl"
    shape = {"resolution": 4, "channels": 1, "width": 8, "multipliers": [1], "blocks": 1, "attention": []}
    make_edm_pickle(path, family="ddpmpp", augment=3, num_classes=2, **shape)
    return path.read_bytes()


@pytest.fixture
def refusal(tmp_path, monkeypatch):
    """The message for the given content; fails if anything was executed."""
    monkeypatch.chdir(tmp_path)

    def read(content: bytes, **limits: int) -> str:
        path = tmp_path / "hostile.pkl"
        path.write_bytes(content)
        with pytest.raises(ValueError) as refused:
            edm_pickle.read(path, **limits)
        assert not (tmp_path / "executed").exists()
        assert str(path) in str(refused.value) and "\n" not in str(refused.value) and len(str(refused.value)) < 700
        return str(refused.value)

    return read


def persistent(state: bytes, *, source: bytes = b"") -> bytes:
    """{"ema": module} with the given pickled state."""
    meta = b"}(" + text(b"type") + text(b"class") + text(b"module_src") + text(source)
    meta += text(b"class_name") + text(b"EDMPrecond") + text(b"state") + state + b"u"
    call = b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n" + meta + b"\x85R"
    return PROTO + b"}" + text(b"ema") + call + b"s."


def text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


def integer(value: int) -> bytes:
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a\x09" + data


def tensor(blob: bytes, *, offset: int = 0, size: tuple[int, ...] = (4,), stride: tuple[int, ...] = (1,)) -> bytes:
    """A pickled tensor over the given bytes of a storage."""
    storage = b"ctorch.storage\n_load_from_bytes\nB" + struct.pack("<I", len(blob)) + blob + b"\x85R"
    extents = [b"(" + b"".join(map(integer, values)) + b"t" for values in (size, stride)]
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + integer(offset) + b"".join(extents) + b"\x89}tR"


def weighted(part: bytes) -> bytes:
    """A file whose only parameter is the given pickled value."""
    return persistent(b"}" + text(b"_parameters") + b"}" + text(b"weight") + part + b"ss")


def storage(values: torch.Tensor | None = None) -> bytes:
    """What torch saves of a storage inside such files."""
    stream = io.BytesIO()
    found = torch.arange(4.0) if values is None else values
    typed = torch.storage.TypedStorage(wrap_storage=found.untyped_storage(), dtype=found.dtype, _internal=True)
    torch.save(typed, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def test_own_layout_reads_what_was_written(tmp_path):
    (tmp_path / "file.pkl").write_bytes(weighted(tensor(storage(), offset=1, size=(2,), stride=(2,))))
    found = edm_pickle.read(tmp_path / "file.pkl")
    assert found.class_name == "EDMPrecond" and dict(found.state())["weight"].tolist() == [1.0, 3.0]


def test_storages_of_all_types_keep_their_values(tmp_path):
    for dtype in pickled_tensors.STORAGES.values():
        values = torch.tensor([1.5, -2.0, 0.25, 7.0]).to(dtype)
        (tmp_path / "file.pkl").write_bytes(weighted(tensor(storage(values))))
        assert torch.equal(edm_pickle.read(tmp_path / "file.pkl").tensors["weight"], values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PROTO + RUN + STOP, "global os.system is refused"),
        (PROTO + b"\x8c\x02os\x8c\x06system\x93" + COMMAND + b"\x85R.", "global os.system is refused"),
        (PROTO + b"cbuiltins\neval\n" + text(b"open('executed','w')") + b"\x85R.", "global builtins.eval is refused"),
        (PROTO + b"ctorch.storage\n_load_from_bytes.__globals__\n.", "__globals__ is refused"),
        (PROTO + b"ctorch\nload\n.", "global torch.load is refused"),
        (PROTO + b"cnumpy\nload\n.", "global numpy.load is refused"),
        (PROTO + MARK + COMMAND + b"ios\nsystem\n.", "opcode INST is refused"),
        (PROTO + MARK + b"ccollections\nOrderedDict\no.", "opcode OBJ is refused"),
        (PROTO + b"\x82\x01.", "opcode EXT1 is refused"),
        (PROTO + b"\x83\x01\x00.", "opcode EXT2 is refused"),
        (PROTO + b"\x84\x01\x00\x00\x00.", "opcode EXT4 is refused"),
        (PROTO + b"Pexecuted\n.", "opcode PERSID is refused"),
        (PROTO + text(b"executed") + b"Q.", "opcode BINPERSID is refused"),
        (PROTO + b"ccollections\nOrderedDict\n)}\x92.", "opcode NEWOBJ_EX is refused"),
        (PROTO + b"ccollections\nOrderedDict\n)R}b.", "BUILD on a dict is refused"),
        (PROTO + b"ctorch._utils\n_rebuild_parameter\n}" + text(b"__call__") + RUN + b"sb.", "os.system is refused"),
        (PROTO + b"ctorch._utils\n_rebuild_parameter\n}" + text(b"__call__") + b"Nsb.", "BUILD on a Global is refused"),
        (PROTO + b"ctorch.storage\n_load_from_bytes\nB\x00\x00\x00\x00\x85R}b.", "BUILD on a Storage is refused"),
        (PROTO + b"ctorch.nn.modules.container\nModuleDict\n)\x81Nb.", "a ModuleDict whose state is no dict"),
        (PROTO + b"ctorch.nn.modules.container\nModuleDict\n}b.", "BUILD on a Global is refused"),
        (PROTO + b"cnumpy\ndtype\n" + text(b"O8") + b"\x89\x88\x87R(K\x03" + text(b">") + b"tb.", "little-endian"),
        (PROTO + b"}" + b"\x8c\x01a" + b"\x85Ks.", "damaged"),
        (PROTO + b"}K\x02K\x01s.", "no dict with a module"),
        (PROTO + b"})\x85K\x01s.", "a tuple as a key"),
        (PROTO + b"N.", "no dict with a module 'ema'"),
        (PROTO + b"h\x05.", "damaged"),
        (PROTO + b"NN.", "does not end with exactly one object"),
        (b"\x80\xff.", "protocol"),
        (b"", "it is empty"),
        (b"PK\x03\x04" + bytes(60), "refused|damaged|left|unknown"),
        (PROTO + b"\x8e" + struct.pack("<Q", 10 << 30) + b".", f"{10 << 30} bytes are needed, but 1 are left"),
        (PROTO + b"B" + struct.pack("<I", 4_000_000_000) + b".", "4000000000 bytes are needed"),
        (PROTO + b"\x8d" + struct.pack("<Q", 2**63 - 1) + b".", "bytes are needed"),
        (PROTO + b"\x95" + struct.pack("<Q", 10 << 30) + b"N.", "no dict with a module"),
        (PROTO + b"Nr\xff\xff\xff\xff.", "no dict with a module"),
        (weighted(RUN), "global os.system is refused"),
        (weighted(tensor(PROTO + RUN + STOP)), "in a nested storage: global os.system is refused"),
        (weighted(tensor(storage()[:137] + PROTO + RUN + STOP)), "in a nested storage: global os.system is refused"),
        (weighted(tensor(storage()[:137] + PROTO + b"Pexecuted\n.")), "in a nested storage: opcode PERSID is refused"),
        (weighted(tensor(storage()[:137] + PROTO + b"\x82\x01.")), "in a nested storage: opcode EXT1 is refused"),
        (weighted(tensor(storage()[:-1])), "in a nested storage: 16 bytes are needed, but 15 are left"),
        (weighted(tensor(storage() + b"\0")), "in a nested storage: it does not hold exactly one storage"),
        (weighted(tensor(storage()[:-20])), "in a nested storage: .* bytes are needed, but .* are left"),
        (weighted(tensor(b"PK\x03\x04")), "in a nested storage"),
        (weighted(tensor(pickle.dumps([1, 2, 3]))), "in a nested storage"),
        (weighted(tensor(storage(), size=(5,))), "beyond its 4 stored values"),
        (weighted(tensor(storage(), offset=1)), "beyond its 4 stored values"),
        (weighted(tensor(storage(), stride=(2,))), "beyond its 4 stored values"),
        (weighted(tensor(storage(), size=(2,), stride=(2**39,))), "beyond its 4 stored values"),
        (weighted(tensor(storage(), size=(2**39,), stride=(0,))), "beyond its 4 stored values"),
        (weighted(tensor(storage(), offset=-1)), "negative or not integers"),
        (weighted(tensor(storage(), size=(-1,))), "negative or not integers"),
        (weighted(tensor(storage(), stride=(-1,))), "negative or not integers"),
        (weighted(tensor(storage(), size=(2**63,))), "negative or not integers"),
        (weighted(tensor(storage(), size=(4, 1))), "2 sizes and 1 strides"),
        (weighted(tensor(storage(), size=(1,) * 9, stride=(1,) * 9)), "not a tuple of at most 8"),
        (weighted(tensor(storage(), size=(0,))), "weight: the tensor is empty"),
        (weighted(tensor(storage(), size=(2**39, 2**39, 0), stride=(1, 1, 1))), "weight: the tensor is empty"),
        (weighted(b"K\x01"), "weight: a tensor was expected"),
        (persistent(b"}" + text(b"_modules") + b"}" + text(b"model") + b"K\x01ss"), "a module was expected"),
    ],
)
def test_hostile_file_is_refused_without_side_effect(refusal, content, message):
    found = refusal(content)
    assert re.search(message, found), found


def test_source_code_stays_text(refusal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file.pkl"
    path.write_bytes(persistent(b"}", source=b"import os; os.system('touch executed')"))
    assert len(edm_pickle.read(path).source_sha256) == 64
    assert not (tmp_path / "executed").exists()


def test_size_of_a_file_is_limited_before_it_is_read(refusal):
    assert "101 bytes, more than the allowed 100" in refusal(b"N" * 101, max_size=100)


def test_huge_storage_claimed_in_a_small_file_takes_no_memory(refusal):
    blob = storage().replace(b"K\x04Nt", b"\x8a\x05" + (10 << 30).to_bytes(5, "little") + b"Nt")
    blob = blob[: -16 - 8] + struct.pack("<q", 10 << 30) + blob[-16:]
    assert f"{40 << 30} bytes are needed, but 16 are left" in refusal(weighted(tensor(blob, size=(10 << 30,))))


def module(state: bytes) -> bytes:
    """A module within another, with the given pickled state."""
    return persistent(state)[len(PROTO + b"}" + text(b"ema")) : -2]


def test_modules_without_end_or_at_two_places_are_refused(refusal):
    part = b"}"
    for _ in range(40):
        part = b"}" + text(b"_modules") + b"}" + text(b"m") + module(part) + b"ss"
    assert "modules are nested too deep" in refusal(persistent(part))
    both = b"}" + text(b"a") + module(b"}") + b"q\x01s" + text(b"b") + b"h\x01s"
    assert "or one occurs twice" in refusal(persistent(b"}" + text(b"_modules") + both + b"s"))


def test_one_storage_shared_by_many_tensors_is_read_a_bounded_number_of_times(refusal):
    many = b"}" + text(b"w0") + tensor(storage(torch.ones(1000))) + b"q\x01s"
    many += b"".join(text(b"w%d" % num) + b"h\x01s" for num in range(1, 300))
    assert "more numbers in tensors than the file holds" in refusal(
        persistent(b"}" + text(b"_parameters") + many + b"s")
    )


def test_storage_of_one_number_and_a_long_header_is_not_parsed_for_every_tensor(refusal):
    blob = storage(torch.ones(1))
    place = blob.index(b"}q") + len(b"}q\x00(")  # the dict that describes the machine it was saved on
    blob = blob[:place] + text(b"x") + b"](" + b"N" * 10_000 + b"e" + blob[place:]
    many = b"}" + text(b"w0") + tensor(blob, size=(1,)) + b"q\x01s"
    many += b"".join(text(b"w%d" % num) + b"h\x01s" for num in range(1, 20))
    assert "more numbers in tensors than the file holds" in refusal(
        persistent(b"}" + text(b"_parameters") + many + b"s")
    )


@pytest.mark.parametrize("key", [b"_parameters", b"_buffers", b"_modules", b"_init_kwargs"])
def test_names_that_would_multiply_are_refused(refusal, key):
    assert "names of at most 100 characters" in refusal(persistent(b"}" + text(key) + b"}" + text(b"n" * 101) + b"Nss"))
    shared = b"}" + text(key) + b"}(" + b"".join(text(b"%d" % num) + b"N" for num in range(1000)) + b"uq\x01s"
    below = b"".join(text(b"m%d" % num) + module(b"}" + text(key) + b"h\x01s") for num in range(60))
    state = b"}" + text(b"_modules") + b"}(" + text(b"first") + module(shared) + below + b"us"
    assert "more than 50000 names of tensors, modules and arguments" in refusal(persistent(state))


def test_sharing_that_would_grow_without_bound_is_cheap(refusal):
    doubled = b")" + b"q\x00h\x00\x86" * 200  # 2^200 leaves in 600 operations
    assert "no dict with a module" in refusal(PROTO + doubled + STOP)
    assert "a tuple as a key" in refusal(PROTO + b"}" + doubled + b"Ns.")


def test_truncated_file_is_refused_wherever_it_ends(refusal, made):
    places = sorted({*range(0, 200, 7), *random.Random(0).sample(range(len(made)), 150), len(made) - 1})
    for place in places:
        refusal(made[:place])


def test_damaged_bytes_are_refused_or_read_and_never_worse(made, tmp_path):
    path, chosen, outcomes = tmp_path / "damaged.pkl", random.Random(1), {"read": 0, "refused": 0}
    for number in range(400):
        content = bytearray(made)
        for _ in range(chosen.choice((1, 3, 20))):
            content[chosen.randrange(len(content) if number % 2 else 3000)] = chosen.randrange(256)
        path.write_bytes(content)
        try:
            dict(edm_pickle.read(path).state())
            outcomes["read"] += 1
        except ValueError as error:
            assert "\n" not in str(error)[:400]
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20
