"""From a plan to records: generates the missing cells, scores them, and writes them to the store."""
