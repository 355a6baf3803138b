"""Data sets, folders of images, and the backdoor that is planted in them."""
