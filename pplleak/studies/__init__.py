"""One question over many attacks a folder, each with its measure, its picture and its files."""
