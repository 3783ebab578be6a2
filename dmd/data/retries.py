"""How often a server is asked again, and how long it is waited for; without the library that asks."""

TRIES = 5  # in a row without a byte further than before
PAUSE = 1.0  # seconds after a first failure, doubled after each
TIMEOUT = (15, 60)  # seconds: to connect, between two pieces
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses of a server that may answer later
