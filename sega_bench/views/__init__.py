"""Views of a finished sweep: image sheets, a report page, terminal tables, figures."""
