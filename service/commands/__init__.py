"""The commands of the console program, a file each or a few that belong together."""
