"""Parts of pages with HTML, CSS or JavaScript of their own."""
