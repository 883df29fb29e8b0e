"""Block images: a device read in cells and told by pieces; and brought back, or looked into."""
