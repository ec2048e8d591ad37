"""The scores that analysis and views know by name."""

from __future__ import annotations

GAIN, COST = "clip_concept_delta", "lpips"
"""The two sides of a trade-off: how much of the concept was added, how far the image moved."""

SUCCESSES = ("attribute_success", "success")
"""The scores that say whether an edit succeeded, the better judge first."""

JUDGES = ("attribute_success",)
"""The success scores that are right often enough for a verdict to rest on them."""

SUMMARISED = (GAIN, "clip_directional", "clip_image", COST, "ssim", "changed_fraction")
"""The scores that every summary reduces; others only where they were taken."""

TRENDS = (GAIN, "changed_fraction", COST)
"""The scores whose trend along an axis is reported, and in which settings are compared in pairs."""
