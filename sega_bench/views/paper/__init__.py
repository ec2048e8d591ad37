"""Vector figures and a LaTeX table for a paper."""
