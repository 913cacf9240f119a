"""What `respool demo` runs: two versions of an app (`v1`, `v2`), and the story told about them."""
