"""The worker: a supervisor that looks after processes, and the executor that runs calls in them.

What happens to a call here, in order: `executor` claims it and runs it, `verdicts` says how the run
ended, `executor` settles it. `page` is the memory that each child shares with its `supervisor`, who
beats, watches, gives back (P7), and settles and blames when a child dies (P6); `takeover` does the same
for another worker that died.
"""
