"""Reading weights: ours and published ones, without running their code."""

WEIGHTS = "model.safetensors"  # in a system's folder
