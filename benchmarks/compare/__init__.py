"""Continuo beside what people would pick instead, on the same weights, prompts and cores: `make compare`."""
