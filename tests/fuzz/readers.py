"""The readers of files, each with a whole file that it reads, to be damaged."""

import gzip
import json
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors
import safetensors.torch
import torch
from PIL import Image

import dmd
from dmd import config
from dmd.data import (
    captions,
    feature_blocks,
    glyphs,
    idx_files,
    image_file,
    image_folder,
    manifest,
    pairs,
    prompt_sources,
    remote,
    shards,
)
from dmd.data import prompts as prompt_files
from dmd.importers import feature_files, moments_file, openai, pipeline_files, teachers, text_files
from dmd.models import loading, published_lora
from dmd.models.autoencoder import Codec
from dmd.models.networks import build
from dmd.models.text_encoder import Text, clip_tokenizer
from dmd.provenance import audit, files, record, tensor_files
from dmd.report import score_files
from dmd.train import checkpoints, state
from dmd.train.trainer import Trainer
from tests.edm_files import make_edm_pickle
from tests.fuzz.mutations import JSON
from tests.idx_files import idx
from tests.small_distillation import distillation
from tests.stable_diffusion_files import make_tokenizer

ROOT = Path(__file__).resolve().parents[2]
SHAPE = {"resolution": 4, "channels": 1, "width": 8, "multipliers": [1], "blocks": 1, "attention": []}
NETWORK = {"kind": "ddpmpp", "num_classes": 2, "dropout": 0.1, **SHAPE}
DISTILLATION = distillation()
DISTILLATION.method.buffers["counts"] = torch.arange(3)
HOSTILE = tuple(
    b"cos\nsystem\n(S'touch executed'\ntR|\x8c\x02os\x8c\x06system\x93X\x0e\x00\x00\x00touch executed\x85R|"
    b'cbuiltins\neval\n(S\'open("executed","w")\'\ntR|\x82\x01|Pexecuted\n|cposix\nsystem\n|torch.load|'
    b"ctorch.storage\n_load_from_bytes\n|ccollections\nOrderedDict\n|ctorch._utils\n_rebuild_tensor_v2\n".split(b"|")
)
NAMES = (b"../../../etc/passwd", b"/etc/passwd", b"..", b"__meta__/", b".npy", b"0" * 12, b"7" * 11, b"-1")


@dataclass(frozen=True)
class Reader:
    """Attributes:
    make: writes a whole file below a folder; its path.
    read: reads the file at a path, and what a stage would look at in it.
    tokens: words of the format for `mutations.mutated`.
    refused: the whole file already has to be.
    outside: whether others make such files: then what is no file is tried, too, and the message says what it is.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    tokens: Sequence[bytes] = ()
    refused: bool = False
    outside: bool = False


def _items(num: int = 4) -> list[tuple[int, shards.Item]]:
    random = np.random.default_rng(0)
    fields = {"image": (1, 4, 4), "noise": (1, 4, 4)}
    drawn = [{name: random.standard_normal(shape).astype("f4") for name, shape in fields.items()} for _ in range(num)]
    return [(index, {**item, "label": np.array(index % 2, "i8")}) for index, item in enumerate(drawn)]


def _make_shard(folder: Path) -> Path:
    shards.write(folder / "00000.tar", _items(), {"origin": {"stage": "pairs"}, "shard": 0, "facts": {}})
    return folder / "00000.tar"


def _read_shard(path: Path) -> None:
    shards.read_record(path)
    for _, item in shards.read(path):
        assert all(value.nbytes <= path.stat().st_size for value in item.values())


def _make_manifest(folder: Path) -> Path:
    tar = _make_shard(folder)
    with shards.Shard(tar) as shard:
        places = list(shard.index())
    num = len(places)
    columns = {"key": [f"{index:08d}" for index, _ in places], "shard": ["00000.tar"] * num}
    columns |= {"index": list(range(num)), "label": [0] * num, "seed": list(range(num))}
    columns |= {name: [getattr(place, name) for _, place in places] for name in ("offset", "length")}
    columns |= {"size": [tar.stat().st_size] * num, "sha256": [record.check(tar)] * num}
    manifest.write(folder / "manifest.parquet", pa.table(columns, schema=manifest.SCHEMA), {"facts": {}})
    return folder / "manifest.parquet"


def _read_manifest(path: Path) -> None:
    reader = pairs.PairReader(manifest.read(path), seed=0)
    reader.batch(0, len(reader))


def _make_prompts(folder: Path) -> Path:
    texts = pa.array([f"prompt {number}, {'a' * (number % 7)}" for number in range(50)])
    prompt_files.write(folder / "prompts.parquet", [texts], lambda: {"spec": {"source": {}}})
    return folder / "prompts.parquet"


def _make_rows(folder: Path) -> Path:
    """The rows of a manifest as JSON, of which `_read_rows` makes one: damage inside a table, not of its format."""
    table = pq.read_table(_make_manifest(folder))
    (folder / "rows.json").write_text(json.dumps(table.to_pydict()))
    return folder / "rows.json"


def _read_rows(path: Path) -> None:
    try:
        table = pa.table(json.loads(path.read_bytes()))
    except Exception as error:
        raise ValueError(f"{path} makes no table") from error
    made = path.with_name("manifest.parquet")
    manifest.write(made, table, {"facts": {}})
    _read_manifest(made)


def _read_prompts(path: Path) -> None:
    found = prompt_files.Prompts(path)
    assert all(len(text) < 1 << 20 for text in found.rows(range(len(found))))


def _make_table(folder: Path) -> Path:
    table = {"text": [f"prompt {number}" for number in range(50)], "score": [number / 10 for number in range(50)]}
    pq.write_table(pa.table(table), folder / "table.parquet")
    return folder / "table.parquet"


def _read_table(path: Path) -> None:
    for _ in prompt_sources.column(path, "text"):
        pass
    for batch in prompt_sources._batches(path, {"text": "text", "score": "score"}):
        prompt_sources._usable(batch, 1.0, Counter())


def _make_coco(folder: Path) -> Path:
    captions = [{"image_id": number // 2, "id": number, "caption": f"caption {number}"} for number in range(20)]
    (folder / "captions.json").write_text(json.dumps({"annotations": captions}))
    return folder / "captions.json"


def _make_tensors(folder: Path) -> Path:
    network = build(NETWORK)
    state = {f"ema.{name}": value for name, value in network.state_dict().items()}
    facts = {"kind": "train", "network": NETWORK, "sigma_data": 0.5, "shape": [1, 4, 4], "num_classes": 2}
    tensor_files.save(folder / "denoiser.safetensors", state, facts)
    return folder / "denoiser.safetensors"


def _read_tensors(path: Path) -> None:
    tensor_files.load(path)
    with safetensors.safe_open(path, framework="pt") as stream:
        tensor_files.load_some(path, *stream.keys())


def _make_checkpoint(folder: Path) -> Path:
    rows = [{"update": 0.0, "phase": 0.0, "loss": 1.0}, {"update": 1.0, "phase": 0.0, "gap": 2.0}]
    checkpoints.save(folder, key="key", stage="distill", update=5, tensors=state.state(DISTILLATION), rows=rows)
    return folder / "00000005.safetensors"


def _read_checkpoint(path: Path) -> None:
    """Damage is ignored; what was written as it stands, in seven of eight cases, is refused or restored whole."""
    content = path.read_bytes()
    if zlib.crc32(content) % 8 == 0:
        if record.read(path)["sha256"] != files.sha256(path):  # type: ignore[index]
            assert _resumed(path, DISTILLATION) == (0, [])
        return
    with record.publish(path, stage="distill", inputs={}) as temporary:
        temporary.write_bytes(content)
    _resume(path)


def _resumed(path: Path, trainer: Trainer) -> tuple[int, list[dict[str, float]]]:
    return checkpoints.resume(path.parent, key="key", trainer=trainer, log=lambda line: None)


def _resume(path: Path) -> None:
    """What comes back is all that the file holds."""
    found = DISTILLATION
    update, rows = _resumed(path, found)
    if update == 0:
        assert rows == []
        return
    assert update == 5
    tensors, _ = tensor_files.load(path)
    learnt = {f"state.{name}": value for name, value in state.state(found).items()}
    assert learnt.keys() == {name for name in tensors if not name.startswith("log.")}
    assert all(value.numpy().tobytes() == tensors[name].numpy().tobytes() for name, value in learnt.items())
    assert all(len(row) == len(tensors) - len(learnt) for row in rows)


def _make_learnt(folder: Path) -> Path:
    """What a checkpoint holds as JSON, of which `_read_learnt` makes one: damage inside it, not of its format."""
    tensors, metadata = tensor_files.load(_make_checkpoint(folder))
    held = {name: [str(value.dtype).removeprefix("torch."), value.tolist()] for name, value in tensors.items()}
    (folder / "learnt.json").write_text(json.dumps({"metadata": metadata, "tensors": held}))
    return folder / "learnt.json"


def _read_learnt(path: Path) -> None:
    made = path.with_name("00000005.safetensors")
    try:
        held = json.loads(path.read_bytes())
        tensors = {
            name: torch.tensor(value, dtype=getattr(torch, kind)) for name, (kind, value) in held["tensors"].items()
        }
        with record.publish(made, stage="distill", inputs={}) as temporary:
            tensor_files.write(temporary, tensors, dict(held["metadata"]))
    except Exception as error:
        raise ValueError(f"{path} makes no checkpoint") from error
    _resume(made)


def _make_sidecar(folder: Path) -> Path:
    _make_checkpoint(folder)
    return folder / ".00000005.safetensors.json"


def _read_sidecar(path: Path) -> None:
    record.read(path.parent / "00000005.safetensors")
    audit.audit(path.parent, remote.sizes)


def _make_block(folder: Path) -> Path:
    facts = {name: None for name in feature_blocks.SHARED} | {"num_samples": 4, "inputs": {"reference": "digest"}}
    facts |= {"repetition": 0, "first_index": 0, "count": 4, "first_seed": 0}
    tensor_files.save(folder / "00000-00000.safetensors", {"features": torch.zeros(4, 2)}, facts)
    return folder / "00000-00000.safetensors"


def _make_teacher_file(folder: Path) -> Path:
    tensors, facts = tensor_files.load(_make_tensors(folder))
    halves = {name: value.half() for name, value in tensors.items()}
    tensor_files.save(folder / "teacher.safetensors", halves, {**facts, "kind": "teacher-file"})
    return folder / "teacher.safetensors"


def _read_teacher_file(path: Path) -> None:
    teachers.load("file", path, sha256=None, resolution=None)


def _make_edm(folder: Path) -> Path:
    make_edm_pickle(folder / "teacher.pkl", family="ddpmpp", augment=3, num_classes=2, **SHAPE)
    return folder / "teacher.pkl"


def _read_edm(path: Path) -> None:
    teachers.load("edm", path, sha256=None, resolution=None)


def _make_openai(folder: Path, *, zipped: bool = True) -> Path:
    """Our network in the names of OpenAI's: one level, one class embedding; the order of channels does not matter."""
    shape = {"resolution": 8, "channels": 3, "width": 64, "multipliers": [1], "blocks": 1, "attention": []}
    network = {"kind": "adm", "num_classes": 2, "dropout": 0.1, **shape}
    blocks, parts = openai._block_names(network), openai.PARTS | openai.ATTENTION
    names = {f"{ours}.{part}": f"{block}.{key}" for block, ours in blocks.items() for key, part in parts.items()}
    names |= {ours: layer for layer, ours in (openai.ENDS | {"input_blocks.0.0": "enc.8x8_conv"}).items()}
    names |= {f"dec.8x8_in0.{part}": f"middle_block.1.{key}" for key, part in openai.ATTENTION.items()}
    names |= {f"dec.8x8_in0.{part}": f"middle_block.0.{key}" for key, part in openai.PARTS.items()}
    state = {"label_emb.weight": torch.zeros(2, 256)}
    for name, value in build(network).state_dict().items():
        layer, _, kind = name.rpartition(".")
        if layer != "map_label":
            state[f"{names[layer]}.{kind}"] = value
    torch.save(state, folder / "teacher.pt", _use_new_zipfile_serialization=zipped)
    return folder / "teacher.pt"


def _make_openai_of_old(folder: Path) -> Path:
    return _make_openai(folder, zipped=False)


def _read_openai(path: Path) -> None:
    teachers.load("openai", path, sha256=None, resolution=8)


def _make_moments(folder: Path) -> Path:
    np.savez(folder / "moments.npz", mu=np.zeros(6), sigma=np.eye(6))
    return folder / "moments.npz"


def _make_image(folder: Path, kind: str) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f"image.{kind}")
    return folder / f"image.{kind}"


def _read_image(path: Path) -> None:
    image_file.read([path], resolution=8, channels=3, resize="lanczos", crop="center")


def _make_score(folder: Path) -> Path:
    (folder / "fid.json").write_text(json.dumps({"experiment": "digits", "metric": "fid", "value": 1.5}))
    return folder / "fid.json"


def _make_config(folder: Path) -> Path:
    whole = (ROOT / "config.yaml").read_bytes()
    (folder / "config.yaml").write_bytes(whole[whole.index(b"experiments:") :][:6000].rpartition(b"\n\n")[0] + b"\n")
    return folder / "config.yaml"


def _make_eps(folder: Path) -> Path:
    """Under the name of a picture, what Pillow would give to a program to draw."""
    lines = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    (folder / "image.png").write_bytes(lines)
    return folder / "image.png"


def _make_idx(folder: Path, *, zipped: bool) -> Path:
    content = idx(np.random.default_rng(0).integers(0, 256, (6, 8, 8), np.uint8))
    (folder / "images.idx").write_bytes(gzip.compress(content, mtime=0) if zipped else content)
    return folder / "images.idx"


def _read_idx(path: Path) -> None:
    assert idx_files.read(path, 3).values.nbytes <= 2000 * path.stat().st_size


def _make_labels(folder: Path) -> Path:
    (folder / "labels.csv").write_text("file,label\n" + "".join(f"{number}.png,{number % 3}\n" for number in range(9)))
    return folder / "labels.csv"


def _read_labels(path: Path) -> None:
    image_folder.labels(path.parent, [f"{number}.png" for number in range(9)], str(path))


def _make_caption_table(folder: Path) -> Path:
    rows = "".join(f"{65 + n:X},,letter {n}\n{65 + n:X},held_out,sign {n}\n" for n in range(9))
    (folder / "captions.csv").write_text(f"codepoint,split,caption\n{rows}")
    return folder / "captions.csv"


def _make_font(folder: Path) -> Path:
    shutil.copy(Path(matplotlib.get_data_path(), "fonts", "ttf", "cmsy10.ttf"), folder / "font.ttf")
    return folder / "font.ttf"


def _read_font(path: Path) -> None:
    glyphs.draw(path, ["A", "B"], resolution=16)


def _make_scheduler(folder: Path) -> Path:
    levels: dict[str, Any] = {"_class_name": "DDIMScheduler", "beta_schedule": "linear", "num_train_timesteps": 100}
    levels["flow_shift"] = 1.0  # a default, with which all schedulers of diffusers are asked
    (folder / "scheduler_config.json").write_text(json.dumps(levels))
    return folder / "scheduler_config.json"


def _make_tokenizer(folder: Path) -> Path:
    make_tokenizer(folder)
    vocab, merges = (
        json.loads((folder / "vocab.json").read_text()),
        (folder / "merges.txt").read_text().splitlines()[1:],
    )
    (folder / "tokenizer.json").write_text(
        json.dumps({"added_tokens": [], "model": {"vocab": vocab, "merges": merges}})
    )
    return folder / "tokenizer.json"


def _read_tokenizer(path: Path) -> None:
    texts = text_files.tokenizer_texts([path], 77)
    try:
        clip_tokenizer(texts)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _make_part(folder: Path, kind: str) -> Path:
    """An autoencoder or a text encoder, as their stages write them."""
    if kind == "autoencoder":
        config = {"block_out_channels": [8], "down_block_types": ["DownEncoderBlock2D"], "norm_num_groups": 4}
        section: dict[str, Any] = {"kind": "full", "config": {**config, "up_block_types": ["UpDecoderBlock2D"]}}
        state = Codec(**section).state_dict()
    else:
        make_tokenizer(folder)
        texts = {name: (folder / name).read_text() for name in ("vocab.json", "merges.txt")}
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        section = {"config": {**sizes, "vocab_size": len(json.loads(texts["vocab.json"]))}, "tokenizer": texts}
        state = Text(**section).state_dict()
    tensor_files.save(folder / f"{kind}.safetensors", state, {"kind": kind, kind.replace("-", "_"): section})
    return folder / f"{kind}.safetensors"


def _make_lora(folder: Path) -> Path:
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    pair = {f"{layer}.lora_A.weight": torch.ones(2, 8), f"{layer}.lora_B.weight": torch.ones(8, 2)}
    safetensors.torch.save_file(pair, folder / "lora.safetensors")
    return folder / "lora.safetensors"


def _read_lora(path: Path) -> None:
    published_lora.load(path, scale=1.0)


YAML = (b"&a [*a]", b"*a", b"<<:", b"!!python/object/apply:os.system ['touch executed']", b".nan", b"2001-99-99", b"- ")

Image.init()  # of Pillow's formats

READERS: dict[str, Reader] = {
    "shard": Reader(_make_shard, _read_shard, NAMES),
    "manifest": Reader(_make_manifest, _read_manifest, NAMES),
    "rows": Reader(_make_rows, _read_rows, JSON),
    "prompts": Reader(_make_prompts, _read_prompts),
    "table of prompts": Reader(_make_table, _read_table, outside=True),
    "captions": Reader(_make_coco, lambda path: prompt_sources.coco(path, num=None, seed=0), JSON, outside=True),
    "tensors": Reader(_make_tensors, _read_tensors, JSON),
    "denoiser": Reader(_make_tensors, lambda path: dmd.load(path, device="cpu"), JSON),
    "checkpoint": Reader(_make_checkpoint, _read_checkpoint, JSON),
    "learnt": Reader(_make_learnt, _read_learnt, JSON),
    "record": Reader(_make_sidecar, _read_sidecar, JSON),
    "features": Reader(_make_block, lambda path: feature_blocks.group([path], reference_sha256="digest"), JSON),
    "score": Reader(_make_score, lambda path: score_files.by_experiment([path]), JSON),
    "teacher file": Reader(_make_teacher_file, _read_teacher_file, JSON, outside=True),
    "edm": Reader(_make_edm, _read_edm, HOSTILE, outside=True),
    "openai": Reader(_make_openai, _read_openai, HOSTILE, outside=True),
    "openai of old": Reader(_make_openai_of_old, _read_openai, HOSTILE, outside=True),
    "inception": Reader(_make_openai, lambda path: feature_files.weights(path, "inception"), HOSTILE, outside=True),
    "moments": Reader(_make_moments, moments_file.load, (*HOSTILE, b"'|O'", b"'<f8'", b"(999999999,)"), outside=True),
    "labels": Reader(_make_labels, _read_labels, (b'"', b";", b"\0"), outside=True),
    "caption table": Reader(_make_caption_table, captions.of_code_points, (b'"', b";", b"\0", b"D800"), outside=True),
    "font": Reader(_make_font, _read_font, (b"glyf", b"\xff" * 4), outside=True),
    "idx": Reader(
        lambda folder: _make_idx(folder, zipped=False), _read_idx, (b"\0\0\x08\x03", b"\xff" * 4), outside=True
    ),
    "gzipped idx": Reader(lambda folder: _make_idx(folder, zipped=True), _read_idx, outside=True),
    "scheduler": Reader(
        _make_scheduler,
        lambda path: pipeline_files.scheduler_preconditioning(
            path, path.with_name("model_index.json"), ("DDIMScheduler",)
        ),
        JSON,
        outside=True,
    ),
    "tokenizer": Reader(_make_tokenizer, _read_tokenizer, JSON, outside=True),
    "lora": Reader(_make_lora, _read_lora, JSON, outside=True),
    "safetensors": Reader(_make_lora, tensor_files.read, JSON, outside=True),
    "autoencoder": Reader(lambda folder: _make_part(folder, "autoencoder"), loading.load_codec, JSON, outside=True),
    "text encoder": Reader(lambda folder: _make_part(folder, "text-encoder"), loading.load_text, JSON, outside=True),
    "png": Reader(
        lambda folder: _make_image(folder, "png"), _read_image, (b"IDAT", b"PLTE", b"tRNS", b"eXIf"), outside=True
    ),
    "jpg": Reader(
        lambda folder: _make_image(folder, "jpg"), _read_image, (b"\xff\xd8", b"\xff\xe1", b"Exif\0\0"), outside=True
    ),
    "gif": Reader(lambda folder: _make_image(folder, "gif"), _read_image, outside=True),
    "tif": Reader(lambda folder: _make_image(folder, "tif"), _read_image, outside=True),
    "eps": Reader(_make_eps, _read_image, refused=True, outside=True),
    "config": Reader(
        _make_config,
        lambda path: config.resolve(config.read_yaml(path)),
        (*YAML, *JSON),
    ),
}
