"""Stage text_encoder: the text encoder of a Stable Diffusion folder and its tokenizer, in one file."""

from pathlib import Path

from dmd.importers import pipeline_files as pipelines
from dmd.importers import stable_diffusion, text_files
from dmd.jobs import job, reporting
from dmd.provenance import record, tensor_files


def run(*, output: Path, source: Path, sha256: str | None = None, variant: str | None = None) -> None:
    """Writes weights, configuration and tokenizer; later stages do not read the folder.

    Args:
        output: teacher/text_encoder.safetensors.
        source: the folder of the teacher.
        sha256: `teacher.sha256`, the digest of the folder or its first digits; None accepts any.
        variant: `teacher.variant`, of the weights.

    Raises:
        ValueError: the folder has another digest, lacks files, or holds unusable ones.
    """
    with record.writing(output):
        paths = stable_diffusion.source_files(source, variant)
        digests, digest = pipelines.digests(source, paths, sha256, key="teacher.sha256")
        inputs = {"source": {str(path): digests[path] for path in text_files.source_files(source, variant)}}
        tensors, facts = text_files.load(source, variant)
        reporting.log(f"{source}: text states of {facts['text']['length']} tokens, width {facts['text']['width']}")
        spec = {"sha256": sha256} | ({"variant": variant} if variant else {})
        provenance = record.provenance("text_encoder", spec, inputs)
        metadata = {**provenance, "kind": "text-encoder", "source_sha256": digest, **facts}
        with record.publish(output, stage="text_encoder", inputs=inputs) as temporary:
            tensor_files.write(temporary, tensors, metadata)


if __name__ == "__main__":
    job.main(run)
