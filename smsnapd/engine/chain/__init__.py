"""Writing to a chain, for every kind of writer: its tenure, durable chunks, catalogs, the local index."""
