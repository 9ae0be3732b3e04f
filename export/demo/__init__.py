"""The demo models: scenes drawn from a seed, and small transformers trained on them."""
