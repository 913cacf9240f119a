"""The delivery core: what becomes of a group's records, decided without I/O, clocks or threads.

Read `model` for the words, then `claim`, `settle`, `death` and `admin` for the transitions: each is a
function from what was read (a `View`) to what is to be written (a `Change`). The engine reads and writes
them in one transaction. `spans`, `sizing`, `retry` and `liveness` are the arithmetic they stand on.
"""
