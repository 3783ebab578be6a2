"""Constants for retries of requests, in a module that imports no HTTP library."""

TRIES = 5  # failures in a row, none with a byte of progress
PAUSE = 1.0  # seconds after a first failure, doubled after each
TIMEOUT = (15, 60)  # seconds: to connect, between two pieces
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses of a server that may answer later
