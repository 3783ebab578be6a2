"""What an artifact was made from: atomic writes, digests, records, and the comparison that `verify` makes."""
