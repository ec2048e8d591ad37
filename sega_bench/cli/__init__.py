"""The command line: one file composes the configuration, one runs it, and one holds each sub-command."""
