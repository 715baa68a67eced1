"""Where the Triton kernels' tests run: on the GPU where there is one, else in the interpreter."""

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
