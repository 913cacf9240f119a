"""The task queues that Respool is measured beside. One module a peer; nothing here imports respool."""
