"""Stage autoencoder: what decodes latents, of a pipeline's folder (full) or of a folder of its own (tiny)."""

from pathlib import Path

from dmd.cluster import job, reporting
from dmd.importers import autoencoder_files, teachers
from dmd.importers import pipeline_files as pipelines
from dmd.provenance import record
from dmd.provenance import tensors as tensor_files

KINDS = ("stable-diffusion", "diffusers", "tiny")


def run(*, output: Path, source: Path, kind: str, sha256: str | None = None) -> None:
    """Writes weights and configuration; nothing reads them from the folder again.

    Args:
        output: teacher/autoencoder.safetensors or teacher/tiny_autoencoder.safetensors.
        source: the folder that the teacher comes from, or that of the tiny autoencoder.
        kind: that of the teacher, "stable-diffusion" or "diffusers", for the AutoencoderKL of its folder; "tiny" for an
            AutoencoderTiny.
        sha256: what the digest of `source` is, or begins with; None takes any.

    Raises:
        ValueError: another kind; the folder is not the pinned one, lacks something, or holds what cannot be used.
    """
    if kind not in KINDS:
        raise ValueError(f"autoencoder kind {kind!r} is none of {', '.join(KINDS)}")
    tiny = kind == "tiny"
    place, form = (source, "tiny") if tiny else (source / "vae", "full")
    key = "teacher.tiny_autoencoder.sha256" if tiny else "teacher.sha256"
    with record.exclusive(output):
        own = autoencoder_files.source_files(place, form)
        whole = own if tiny else teachers.KINDS[kind].files(source)
        found, digest = pipelines.digests(source, whole, sha256, key=key)
        if absent := [path for path in own if path not in found]:
            raise ValueError(f"{source}/model_index.json names no AutoencoderKL as vae, though {absent[0]} is there")
        inputs = {"source": {str(path): found[path] for path in own}}
        tensors, facts = autoencoder_files.load(place, form)
        channels, scale = facts["latent_channels"], facts["scale"]
        reporting.log(f"{place}: latents have {channels} channels, a side of one is {scale} pixels")
        provenance = record.provenance("autoencoder", {"kind": kind, "sha256": sha256}, inputs)
        metadata = {**provenance, "kind": "autoencoder", "source_sha256": digest, **facts}
        with record.publish(output, stage="autoencoder", inputs=inputs) as temporary:
            tensor_files.write(temporary, tensors, metadata)


if __name__ == "__main__":
    job.main(run)
