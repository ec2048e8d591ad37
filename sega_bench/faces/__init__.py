"""The embedded model: a tiny Stable Diffusion of drawn faces, its CLIP scorer and an attribute classifier."""

from pathlib import Path

_WEIGHTS = Path(__file__).parent / "weights"

PIPELINE_DIR = _WEIGHTS / "pipeline"
"""A diffusers `StableDiffusionPipeline` folder."""
SCORER_DIR = _WEIGHTS / "scorer"
"""An open_clip folder, for `open_clip.create_model_and_transforms(f"local-dir:{SCORER_DIR}")`."""
CLASSIFIER_PATH = _WEIGHTS / "classifier.safetensors"
"""The attribute classifier: for the model card, scores of success and leakage, and tests only."""
