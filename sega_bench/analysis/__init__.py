"""What a sweep's rows say: the summary, the best setting, claims and advice, each computed once."""
