"""`mdmf evaluate`: measure a bundle on images whose class is known."""
