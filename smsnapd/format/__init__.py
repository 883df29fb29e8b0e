"""The repository format: bytes to bytes, no input or output. FORMAT.md in here is the specification."""
