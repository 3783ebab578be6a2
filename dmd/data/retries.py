"""Constants for requests and their retries, in a module that imports no HTTP library."""

TRIES = 5  # failures in a row, none with a byte of progress
PAUSE = 1.0  # seconds after a first failure, doubled after each
TIMEOUT = (15, 60)  # seconds: to connect, between two pieces
ANSWER = 60.0  # seconds: from a request to the end of the headers of its answer
WINDOW, LEAST = 60.0, 1 << 16  # a body has at least `LEAST` bytes in each `WINDOW` seconds
REDIRECTS = 5  # followed for one request
MOST = 200 * 10**9  # bytes of a file of which neither server nor configuration know the size
SMALL = 64 << 20  # bytes of a file that is read into memory
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses of a server that may answer later
