"""Block images, from the reading side: where their bytes lie, one read at random, one written to a device."""
