"""Rows of images, pairs and prompts: shards, manifests, readers, and remote storage."""
