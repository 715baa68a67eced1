"""Numbers to tensors: owns device memory, builds a step's inputs, runs the model, samples."""
