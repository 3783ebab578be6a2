"""Every file format: safetensors, WebDataset shards, parquet manifests, datasets, and their records."""
