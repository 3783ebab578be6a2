"""Files of others: teachers, adapters and feature networks that someone else trained."""
