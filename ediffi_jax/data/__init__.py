"""Records in, batches out: the embedded scenes, their files, and the loader."""
