"""One file per pruning method; the file name is the name of the method."""
