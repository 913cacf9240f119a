"""Kafka: the log is Kafka's, the state is borrowed from another engine."""
