"""The runner of a GPU: device-resident rows, CUDA graphs, one step ahead of the host."""
