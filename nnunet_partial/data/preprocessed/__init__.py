"""nnU-Net's preprocessed folder: label directories, splits, what is annotated on a case."""
