"""Embeddings in batches of 500, where one text of 500 is malformed.

    python examples/embeddings_with_a_malformed_item.py

The model takes many texts at once, and raises for all of them where one is bad. Respool finds that one by
running parts of the batch: 499 calls succeed, and one is a dead letter with its input. Then the text is
mended and the dead letter is run again; the other 499 are not.

The log is a file in the working directory, or what RESPOOL_URL says.
"""

from __future__ import annotations

from respool import App
from respool.testing import work

app = App("embeddings")
model_ran: list[int] = []


def model(texts: list[str]) -> list[list[float]]:
    """Stand for a model that refuses the whole batch for one bad text."""
    model_ran.append(len(texts))
    if not all(texts):
        raise ValueError("an empty text cannot be embedded")
    return [[float(len(text)), float(text.count("1"))] for text in texts]


@app.task(batch=500, batch_wait=0.1)
def embed(texts: list[str]) -> list[list[float]]:
    return model(texts)


def main() -> None:
    results = embed.delay_many("" if n == 387 else f"text number {n}" for n in range(500))
    work(app)  # in this process, for the example; else: respool -A embeddings_with_a_malformed_item worker

    vectors = list(results.iterate(timeout=0, propagate=False))
    good = [vector for vector in vectors if not isinstance(vector, Exception)]
    print(f"{len(good)} of {len(vectors)} texts are embedded; item 387: {vectors[387]!r}")
    print(f"the model ran {len(model_ran)} times; the first time with {model_ran[0]} texts")

    letters = app.dead_letters(task="embed")
    print(f"{letters.count()} dead letter; mended, and given back")
    letters.redrive(set={"args[0]": "text number 387"})
    model_ran.clear()
    work(app)
    print(f"now embedded: {results.get(timeout=0)[387]}; this time the model ran with {model_ran} text")


if __name__ == "__main__":
    main()
