"""Files that run a fine-tuned model elsewhere, one module per format; each defines a ``FORMAT``.

The table names modules instead of importing them: a command line that is only asked for help needs no torch. Of two
formats with the same ending, the later one is asked first whether a file is its own.
"""

FORMATS = {
    "torchvision": "torchvision_weights",
    "detr": "detr_weights",
    "safetensors": "safetensors_weights",
    "onnx": "onnx_graph",
    "pt2": "torch_program",
}
PARTS = ("classifier", "extractor")
