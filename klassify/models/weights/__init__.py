"""Reading weights: ours and published ones, without running their code."""

WEIGHTS = "model.safetensors"  # in a system's folder
EXPORTED = "model.onnx"  # the same model in the form that onnxruntime reads
