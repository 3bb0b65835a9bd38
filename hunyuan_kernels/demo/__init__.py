"""The package's main job on real input: train a small model, quantize its experts, check both."""
