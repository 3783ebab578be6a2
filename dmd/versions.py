"""Version of each stage: raised when the same inputs and spec would give other bytes.

Code behind `python -m` does not trigger a rerun; these numbers, which the rules pass as a parameter, do.
"""

VERSIONS: dict[str, int] = {
    "fetch": 1,
    "teacher": 1,
    "text_encoder": 1,
    "autoencoder": 1,
    "reference": 2,
    "prompts": 1,
    "pairs": 1,
    "manifest": 1,
    "distill": 1,
    "sample": 1,
    "features": 1,
    "evaluate": 2,
    "inception_score": 1,
    "clip": 1,
    "latency": 1,
    "tables": 1,
    "charts": 1,
    "pictures": 1,
    "sheet": 1,
    "export": 1,
    "pipeline": 1,
    "lora": 1,
}
