"""The apps that the benchmarks' workers run. Their log is the one in `$RESPOOL_URL`."""
