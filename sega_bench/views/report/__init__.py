"""The sweep as a page that opens from disk (``python -m sega_bench report FOLDER`` builds it again)."""
