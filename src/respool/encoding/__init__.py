"""Values to bytes and back: what is sent is what arrives. Signatures and annotations say what is meant.

`signature` checks a call's arguments, by `kinds` and `models` of their annotations; `codec` packs them, with
`extensions` for dates and the like, and `refusals` says why it does not; `remote` is for errors.
"""
