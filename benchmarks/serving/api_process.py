"""`python -m benchmarks.serving.api_process SOCKET LISTENER_FD MODEL_DIR`: the real api process alone."""

from __future__ import annotations

import sys

from benchmarks.serving.api_load import MODEL_NAME, listener_of
from server.api.process import run_api
from server.config import EngineConfig, ServeConfig

if __name__ == "__main__":
    path, descriptor, model = sys.argv[1:]
    config = ServeConfig(EngineConfig(model=model), served_model_name=MODEL_NAME)
    run_api(config, path, listener_of(descriptor), lambda: None)
