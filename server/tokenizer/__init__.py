"""Text to token ids and back: byte-level BPE read from a model directory, run by tiktoken."""

from server.tokenizer.encoding import Tokenizer
from server.tokenizer.files import load_tokenizer
from server.tokenizer.stream import StreamDecoder

__all__ = ["StreamDecoder", "Tokenizer", "load_tokenizer"]
