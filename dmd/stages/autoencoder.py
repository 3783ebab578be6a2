"""Stage autoencoder: the decoder of latents, from the teacher's pipeline folder or from a tiny autoencoder's folder."""

from pathlib import Path

from dmd.importers import autoencoder_files, teachers
from dmd.importers import pipeline_files as pipelines
from dmd.jobs import job, reporting
from dmd.provenance import record, tensor_files

KINDS = ("stable-diffusion", "diffusers", "tiny")


def run(*, output: Path, source: Path, kind: str, sha256: str | None = None, variant: str | None = None) -> None:
    """Writes weights and configuration; later stages do not read the folder.

    Args:
        output: teacher/autoencoder.safetensors or teacher/tiny_autoencoder.safetensors.
        source: the folder of the teacher, or of the tiny autoencoder.
        kind: the teacher's kind, "stable-diffusion" or "diffusers", for the AutoencoderKL in its folder; "tiny" for an
            AutoencoderTiny.
        sha256: digest of `source`, or its first digits; None accepts any.
        variant: of the weights, such as fp16; None: the plain ones, or else the only variant.

    Raises:
        ValueError: an unknown kind; or the folder has another digest, lacks files, or holds unusable files.
    """
    if kind not in KINDS:
        raise ValueError(f"autoencoder kind {kind!r} is none of {', '.join(KINDS)}")
    tiny = kind == "tiny"
    folder, form = (source, "tiny") if tiny else (source / "vae", "full")
    key = "teacher.tiny_autoencoder.sha256" if tiny else "teacher.sha256"
    with record.writing(output):
        own = autoencoder_files.source_files(folder, form, variant)
        if tiny:
            pipelines.check_variant(folder, own, variant)
        paths = own if tiny else teachers.KINDS[kind].files(source, variant)
        digests, digest = pipelines.digests(source, paths, sha256, key=key)
        if unlisted := [path for path in own if path not in digests]:
            raise ValueError(f"{source}/model_index.json names no AutoencoderKL as vae, though {unlisted[0]} exists")
        inputs = {"source": {str(path): digests[path] for path in own}}
        tensors, facts = autoencoder_files.load(folder, form, variant)
        channels, scale = facts["latent_channels"], facts["scale"]
        reporting.log(f"{folder}: latents have {channels} channels, and one value per {scale} x {scale} pixels")
        spec = {"kind": kind, "sha256": sha256} | ({"variant": variant} if variant else {})
        provenance = record.provenance("autoencoder", spec, inputs)
        metadata = {**provenance, "kind": "autoencoder", "source_sha256": digest, **facts}
        with record.publish(output, stage="autoencoder", inputs=inputs) as temporary:
            tensor_files.write(temporary, tensors, metadata)


if __name__ == "__main__":
    job.main(run)
