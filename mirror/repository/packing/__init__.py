"""Making and indexing packs: one contract (`engine`), two implementations (git, dulwich)."""
