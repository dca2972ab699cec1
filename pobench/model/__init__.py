"""The model: loading, devices, layouts of rows, log-probabilities and generation."""
