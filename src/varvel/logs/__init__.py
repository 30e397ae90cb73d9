"""Log lines as readers ask for them: which ones, in pages from the store, and as a live stream."""
