"""Rows of images, pairs and prompts: shards, manifests, readers, and storage elsewhere."""
