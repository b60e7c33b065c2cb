"""Where the images and labels of a data set come from."""
