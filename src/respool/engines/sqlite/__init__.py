"""The embedded engine: log and state in one SQLite file."""
