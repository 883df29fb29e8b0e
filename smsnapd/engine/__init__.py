"""What is done with a volume and a repository: back up, restore, look, check."""
