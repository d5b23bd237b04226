"""Items of a data set: images and masks in memory, and checks of them."""
