"""From a plan to records: what is missing goes through the engine and the scorers into the store."""
