"""One bare mirror on disk: its refs, its objects, its packs."""
