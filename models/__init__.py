"""Vision transformers in plain PyTorch: normalised images in, named tensors out."""
