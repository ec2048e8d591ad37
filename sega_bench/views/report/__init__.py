"""The sweep as a page that opens from disk (``python -m sega_bench.views.report FOLDER`` builds it again)."""
