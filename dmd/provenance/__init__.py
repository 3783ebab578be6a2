"""What an artifact was made from: whole files, digests, records, and what `verify` compares."""
