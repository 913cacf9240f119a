"""What is measured of Respool itself: one function a case, each run in a process of its own.

`python -m bench.cases NAME [--quick]` prints one JSON object, as the peers do.
"""
