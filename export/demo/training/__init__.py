"""How the demo models are trained: augmentation, matching, losses and the loop."""
