"""The embedded model: a tiny Stable Diffusion trained on drawn faces, its CLIP scorer and a classifier."""

from pathlib import Path

_WEIGHTS = Path(__file__).parent / "weights"

PIPELINE_DIR = _WEIGHTS / "pipeline"
"""A diffusers `StableDiffusionPipeline` folder."""
SCORER_DIR = _WEIGHTS / "scorer"
"""An open_clip model folder, for `open_clip.create_model_and_transforms(f"local-dir:{SCORER_DIR}")`."""
CLASSIFIER_PATH = _WEIGHTS / "classifier.safetensors"
"""The attribute classifier: judges edits for the model card, the success and leakage scores, and tests."""
