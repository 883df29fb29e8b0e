"""The `smsnap` command: one module a group of verbs, each imported when it is used."""
