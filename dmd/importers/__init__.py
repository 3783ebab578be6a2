"""Reads published files: teachers, feature networks, CLIP, moments."""
