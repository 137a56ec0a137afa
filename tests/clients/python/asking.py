"""The mode `ask` of a client: for each line of standard input, it gets credentials and prints one line of JSON."""

import json
import os
import sys


def answer_each_line(access_key_id):
    """Prints {"access_key_id": …} or {"error": …} for each line. `access_key_id` reads credentials or raises."""
    for _line in sys.stdin:
        try:
            answer = {"access_key_id": access_key_id()}
        except Exception as error:
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
        print(json.dumps(answer), flush=True)
    # The threads of a native library must not delay the end.
    os._exit(0)
