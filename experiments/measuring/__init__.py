"""What every binary measures."""
