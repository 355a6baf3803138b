"""What takes long: data sets, models, training, and building a bundle."""
