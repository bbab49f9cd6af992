"""What training and evaluation read: rows, pictures that are not opened yet, ids of pictures, readers of files."""
