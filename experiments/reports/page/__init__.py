"""What finished runs found, as one HTML file that opens anywhere."""
