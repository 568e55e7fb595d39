"""The methods: each paper's algorithm as users call it."""
