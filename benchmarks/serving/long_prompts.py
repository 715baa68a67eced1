"""`python -m benchmarks.serving.long_prompts PORT BYTES`: one request with a prompt of so many bytes for each
line on stdin; its status is printed. A process of its own: sending holds up whoever measures.
"""

from __future__ import annotations

import http.client
import json
import random
import sys


def prose(num_bytes: int) -> str:
    """Made-up words in lines and paragraphs."""
    rng = random.Random(0)
    letters = "etaoinshrdlucmfw"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(4000)]
    text = " ".join(rng.choices(words, k=num_bytes // 5))
    lines = [text[i : i + 70] for i in range(0, num_bytes, 70)]
    return "\n".join(lines)[:num_bytes]


def main() -> None:
    port, num_bytes = int(sys.argv[1]), int(sys.argv[2])
    # cut behind the tokenizer: what the engine is sent, and has to decode, stays small
    body = {"prompt": prose(num_bytes), "max_tokens": 1, "truncate_prompt_tokens": 64}
    payload = json.dumps(body).encode()
    print("ready", flush=True)
    for _ in sys.stdin:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", payload, headers)
        print(connection.getresponse().status, flush=True)
        connection.close()


if __name__ == "__main__":
    main()
