"""Networks: built, trained, retrained without some images, and whose code may build them."""
