"""PostgreSQL: log and state on a server, for workers on many machines."""
